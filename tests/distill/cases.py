"""What two processes do for test_distributed.py: small stages that one process runs alike, then a whole recipe.

Started by torchrun: cases.py FOLDER. FOLDER/CASE gets metrics.jsonl and, from the first process, weights.pt, a saved
student and seen.json.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from torch.distributed.tensor import DTensor

from cli_tools import RECIPE
from gendistill import cli, distributed, errors
from gendistill.compute import Compute
from gendistill.data.dataset import PackedDataset
from gendistill.distill import engine
from gendistill.distill.on_policy import Writing
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distill.replies import ReplyTokens
from gendistill.distill.roles import set_trainable
from gendistill.distill.sharding import shard
from gendistill.distill.stage import train_stage
from gendistill.embedded import teacher_folder
from gendistill.errors import UserError
from gendistill.evaluate.partial import Partial
from gendistill.evaluate.run import evaluate_model
from gendistill.files import seal
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.placement import layerwise
from gendistill.placement.place import place
from gendistill.plan.holding import holding
from gendistill.plan.price import Planner
from gendistill.recipe.data import Synthesis
from gendistill.recipe.evaluation import Evaluation
from gendistill.recipe.placement import Beam
from gendistill.recipe.stage import Stage
from gendistill.synthesize.run import synthesize
from small_models import make_student, make_teacher, tokens

LENGTH, STEPS, ROWS = 16, 6, 40  # 50 steps: benchmarks/trials
STRATEGIES = ("replicas", "fsdp")
GATHERED_ONCE = ("mixers", "logits", "bfloat16")  # what zero2 has a time of its own to free
POWER = {"attention_mean_square": 0.3, "update_mean_square": 0.5, "hidden_mean_square": 2.0}
LOGITS = dict(objective="forward_kl", train=["mixer", "mlp", "norm"])
IN_FOUR = dict(sequences_per_step=4, micro_batch=1)  # several micro-batches on each of two processes


@dataclass(frozen=True)
class Case:
    stage: dict
    family: str = "qwen3"
    student: dict = field(default_factory=dict)  # options of `make_student`
    dtype: torch.dtype = torch.float32
    steps: int = STEPS


CASES = {
    "mixers": Case(dict(objective="mixer_l2", train=["mixer_qk", "mixer_conv", "mixer_gate"])),
    "blocks": Case(dict(objective={"block_l2": 1, "block_cosine": 0.5}, train=["mixer"]), "qwen2"),
    "logits": Case(LOGITS | IN_FOUR),
    "hidden states, tied embedding": Case(
        dict(
            objective={"hidden_l2": 1, "forward_kl": 0.5},
            train=["mixer", "attention", "embedding"],
            # Most rows of the embedding have next to no gradient, and Adam divides it by its own size.
            learning_rate=dict(mixer=1e-4, attention=1e-4, embedding=1e-5),
        )
    ),
    "data only, head of its own": Case(
        dict(objective="cross_entropy", train=["mixer", "mlp", "norm", "head"], gradient_checkpointing=True),
        "llama",
        dict(keep=(), mixer="gated_deltanet", mixer_in_layer={1: "mamba2"}),
    ),
    "bfloat16": Case(LOGITS | dict(learning_rate=2e-5), dtype=torch.bfloat16, steps=8),
    "window dropped": Case(LOGITS | dict(window_dropout=0.5) | IN_FOUR, student=dict(window=5, sinks=2)),
    "on policy": Case(
        dict(
            objective="jensen_shannon",
            loss_on="completion",
            data=dict(on_policy="text", share=0.75, new_tokens=(2, 6)),
            train=["mixer", "mlp", "norm"],
        )
        | IN_FOUR,
        steps=8,
    ),
    "short": Case(dict(objective="forward_kl", train=["mixer", "embedding"], checkpoint_every=3) | IN_FOUR, steps=9),
}
STAGES = ("qk_alignment", "instruction_distillation")
TASKS = ("facts", "choice")
SHORT_RECIPE = RECIPE | dict(
    stages={name: RECIPE["stages"][name] | dict(tokens=256) for name in STAGES},
    evaluation=dict(
        stages=list(STAGES[-1:]), tasks={name: RECIPE["evaluation"]["tasks"][name] | dict(items=2) for name in TASKS}
    ),
)


HELD_OUT, HELD_OUT_ROWS = "held out", 5  # a folder, of rows that two processes cannot share evenly


def write_rows(folder: Path, rows: int = ROWS) -> None:
    """A data set for every case. Each row holds two documents; every fourth row counts for no loss at all."""
    positions = np.tile(np.concatenate([np.arange(7), np.arange(LENGTH - 7)]), (rows, 1))
    mask = (positions > 0) & (np.random.default_rng(0).random((rows, LENGTH)) < 0.5)
    mask[::4] = False
    columns = {"input_ids": tokens(rows, LENGTH).numpy(), "position_ids": positions, "loss_mask": mask}
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    (folder / "stats.json").write_text(json.dumps({"key": "rows", "stats": {}}))
    seal(folder)
    if rows > HELD_OUT_ROWS:
        (folder / HELD_OUT).mkdir()
        write_rows(folder / HELD_OUT, HELD_OUT_ROWS)


def run_case(name: str, root: Path, folder: str | None = None, strategy: str = "fsdp", **changes) -> None:
    """Runs a case, or resumes with it, in root/folder; root holds the data set, `changes` are of the stage.

    Args:
        strategy: of many processes.
    """
    case, folder = CASES[name], root / (folder or name)
    strategy = strategy if distributed.processes() > 1 else "whole"
    processes = distributed.processes()
    # As if half of them were on another host.
    hosts = 2 if strategy == "hybrid" else 1
    compute = Compute("cpu", case.dtype, False, False, processes=processes, strategy=strategy, hosts=hosts)
    settings = dict(sequence_length=LENGTH, sequences_per_step=2, micro_batch=2, learning_rate=1e-4)
    settings |= case.stage | changes
    settings = dict(data="text", tokens=case.steps * settings["sequences_per_step"] * LENGTH) | settings
    stage = Stage(**settings)
    student = _shorten(make_student(case.family, **case.student)).train()
    set_trainable(student, stage.train)
    teacher = None
    if stage.needs_teacher:
        teacher = _shorten(make_teacher(case.family)).to(case.dtype).requires_grad_(False)
        if compute.shards_teacher:
            shard(teacher, compares="end_to_end", compute=compute)
    seen = _watch_dtypes(student.model.layers[0].linear_attn)
    with watching_shards(student) as sharded:
        _, optimizer = train_stage(
            stage,
            teacher,
            student,
            PackedDataset(root),
            conversion_report={
                "layers": [{"layer": i} | POWER for i in student.config.layers_of_type("linear_attention")]
            },
            vocabulary=97,
            compute=compute,
            folder=folder,
            fingerprint={"case": name},
            title=name,
            console=Console(quiet=True),
            writing=Writing(ReplyTokens(ends=range(2, 12), pad=0, decode=str)),
            held_out=PackedDataset(root / HELD_OUT),
        )
    weights = optimizer.weights()
    if teacher is not None:
        counts = Planner(teacher.config, student.config, compute).parameters(stage)
        planned = holding(strategy, counts, case.dtype.itemsize, processes, hosts)
        memory = {"planned": planned._asdict(), "held": bytes_held(teacher, student, optimizer)}
        (folder / f"memory-{distributed.rank()}.json").write_text(json.dumps(memory))
    if distributed.is_rank_zero():
        torch.save(weights, folder / "weights.pt")
        student.save_pretrained(folder / "student", state_dict=weights)  # empties the dictionary
        (folder / "seen.json").write_text(json.dumps(seen))
        (folder / "sharded.json").write_text(json.dumps(sharded))


@contextmanager
def watching_shards(student) -> Iterator[list[bool]]:
    """Whether the first layer is in shards behind each micro-batch, those of measurements among them."""
    found, micro_batch = [], engine.Trainer._micro_batch

    def watched(trainer, batch, scale):
        sums = micro_batch(trainer, batch, scale)
        found.append(any(isinstance(parameter, DTensor) for parameter in student.model.layers[0].parameters()))
        return sums

    with mock.patch.object(engine.Trainer, "_micro_batch", watched):
        yield found


def bytes_held(teacher, student, optimizer: MasterOptimizer) -> dict[str, int]:
    """What this process holds of each kind that plan knows, by plan's names."""

    def bytes_of(tensors) -> int:
        local = {id(x): x.to_local() if isinstance(x, DTensor) else x for x in tensors}  # tied ones once
        return sum(x.numel() * x.element_size() for x in local.values())

    own = [id(parameter) for parameter in student.parameters()]
    masters = list(optimizer.masters.values())
    return {
        "teacher": bytes_of(teacher.parameters()),
        "student": bytes_of(student.parameters()),
        "masters": bytes_of(master for master in masters if id(master) not in own),
        "gradients": bytes_of([*optimizer.sums.values(), *(master.grad for master in masters)]),
        "stepped": bytes_of(masters) // 4,
    }


def _shorten(model):
    """Two of the four layers, for speed."""
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    for name in ("layer_types", "mixers"):
        if getattr(model.config, name, None):
            setattr(model.config, name, getattr(model.config, name)[:2])
    return model


def _watch_dtypes(mixer: torch.nn.Module) -> dict[str, str]:
    """The precision of the mixer's parameters during its forward passes, by name."""
    seen = {}

    def look(module, *_):
        for name, parameter in module.named_parameters():
            assert seen.setdefault(name, str(parameter.dtype)) == str(parameter.dtype)

    mixer.register_forward_hook(look)
    return seen


class Stopped(Exception):
    pass


def run_until(step: int, stop: Callable[[], None], root: Path, folder: str, strategy: str = "fsdp") -> None:
    """Runs the short case and calls `stop` in the middle of a step: it has done the first of its micro-batches."""
    original, calls = engine.Trainer._micro_batch, count(1)
    held_out = -(-HELD_OUT_ROWS // distributed.processes())  # micro-batches before the first step
    at = held_out + (step - 1) * IN_FOUR["sequences_per_step"] // distributed.processes() + 1

    def micro_batch(self, *args):
        sums = original(self, *args)
        if next(calls) == at:
            stop()
        return sums

    with mock.patch.object(engine.Trainer, "_micro_batch", micro_batch):
        run_case("short", root, folder, strategy)


def run_and_stop(root: Path, folder: str, strategy: str = "fsdp") -> None:
    def stop():
        raise Stopped

    try:
        run_until(8, stop, root, folder, strategy)
    except Stopped:
        return
    raise AssertionError("it was not stopped")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_terminate(root: Path, folder: str) -> None:
    """SIGTERM comes to the last process alone, in step 4; checkpoints are due after steps 3 and 6."""

    def stop():
        if distributed.rank() == distributed.processes() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        run_until(4, stop, root, folder, "replicas")
    except errors.Stopped as stopped:
        (root / folder / f"said-{distributed.rank()}").write_text(str(stopped))
        return
    raise AssertionError("it was not stopped")


def ask(folder: Path, answers: int | None = None) -> None:
    """The embedded teacher is evaluated, in folder/model, and writes a set, in folder/set; or resumes with both.

    Args:
        answers: of this process, after which the evaluation is stopped; None: it ends, and the set is written.
    """
    model, tokenizer = load_model(str(teacher_folder()), torch.float32, "cpu"), load_tokenizer("embedded", 2048)
    share, tasks = distributed.own_share(), {name: RECIPE["evaluation"]["tasks"][name] for name in TASKS}
    evaluation = Evaluation(tasks=tasks, batch_size=3)  # of eight items: three batches, which two cannot share evenly
    original, calls = Partial.add, count(1)

    def add(self, finished):
        original(self, finished)
        if next(calls) == answers:
            raise Stopped

    with mock.patch.object(Partial, "add", add), suppress(Stopped):
        evaluate_model(model, tokenizer, evaluation, seed=0, folder=folder, label="model", progress=False, share=share)
    if answers is not None:
        return
    prompts = [dict(kind="multiple_choice", path="embedded:choice", records=3)]  # each at four letters
    synthesis = Synthesis(prompts=prompts, max_new_tokens=16, batch_size=5, margin=0.05)
    how = dict(seed=0, console=Console(quiet=True), share=share)
    synthesize(model, tokenizer, synthesis, {}, folder=folder / "set", teacher="embedded", **how)
    beam = Beam(method="beam", layers=1, candidates=2, prompts=3, length=160, window=16)
    # One prompt is a batch, of which three cannot be shared evenly.
    with mock.patch.object(layerwise, "TOKENS_AT_ONCE", 160):
        place(model, tokenizer, beam, name="embedded", folder=folder, **how)


def run_on_a_full_disk(root: Path, folder: str) -> None:
    """Runs the short case; the last process cannot write its part of the second checkpoint."""
    original = engine.save_checkpoint

    def save(path, step, *args):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = step == 6 and distributed.rank() == distributed.processes() - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192 if full else soft, hard))
        try:
            original(path, step, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with mock.patch.object(engine, "save_checkpoint", save):
        run_case("short", root, folder)


def error_of(do: Callable[[], None]) -> str:
    try:
        do()
    except UserError as error:
        return str(error)
    raise AssertionError("nothing went wrong")


class Silenced(Exception):
    pass


def uneven_recipe(root: Path) -> None:
    """The command line with rows that cannot be dealt out; a process that sleeps is one that torchrun would end."""
    arguments = ["gendistill", "run", str(root / "tiny.yaml"), "stages.qk_alignment.sequences_per_step=3"]
    patient = mock.patch.object(distributed.time, "sleep", side_effect=Silenced)
    with mock.patch.object(sys, "argv", arguments), patient, suppress(SystemExit, Silenced):
        cli.main()


def main(root: Path) -> None:
    distributed.start("cpu")
    last = distributed.rank() == distributed.processes() - 1
    if last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        run_until(8, die, root, "killed", "replicas")
    run_case("short", root, "killed", "replicas")
    for strategy in STRATEGIES:
        for name in CASES:
            run_case(name, root, f"{strategy}, {name}", strategy)
        run_and_stop(root, f"{strategy}, then one", strategy)
        # The folder holds what one process left.
        run_case("short", root, f"one, then {strategy}", strategy)
    run_case("short", root, "hybrid, short", "hybrid")
    for name in GATHERED_ONCE:
        run_case(name, root, f"zero2, {name}", "zero2")
    run_and_stop(root, "zero2, then fsdp", "zero2")
    run_case("short", root, "zero2, then fsdp", "fsdp")
    for first, then in (STRATEGIES, STRATEGIES[::-1]):
        run_and_stop(root, f"{first}, then {then}", first)
        run_case("short", root, f"{first}, then {then}", then)
    ask(root / "asked")
    ask(root / "asked, then one", answers=2)
    ask(root / "one, then asked")  # one process has begun
    run_and_terminate(root, "terminated")
    run_case("short", root, "terminated", "fsdp")
    errors = {
        "disk": error_of(lambda: run_on_a_full_disk(root, "full")),
        "differ": error_of(lambda: distributed.check_equal({"code": "a", "recipe": str(distributed.rank())})),
        "optimizer": error_of(lambda: run_case("short", root, "8 bit", optimizer="adamw_8bit")),
    }
    (root / f"errors-{distributed.rank()}.json").write_text(json.dumps(errors))
    uneven_recipe(root)
    cli.app(["run", str(root / "tiny.yaml"), "--output", str(root / "run")], standalone_mode=False)
    distributed.barrier()
    if last:
        (root / "died").write_text(str(time.time()))
        die()
    distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
