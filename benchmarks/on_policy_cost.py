"""What an on-policy step costs beside an off-policy one of as many tokens, and how speed holds up in long sequences.

    python benchmarks/on_policy_cost.py --out results/gpu/on_policy_cost.json            # on a GPU
    python benchmarks/on_policy_cost.py --out results/gpu/on_policy_cost.json --record    # into results/figures.json
    python benchmarks/on_policy_cost.py --out /tmp/on_policy.json --rehearse               # a tiny shape on a CPU

Both parts run the real training loop: data, float32 masters and AdamW included, weights random. The shapes take turns,
so that what drifts drifts for all.

steps    64 conversations, a prompt and a reply of 256 tokens each, packed by four. Off-policy the replies are given;
         on-policy the student writes every one of them, and since it never ends a reply, all have 256 tokens.
lengths  The same 16,384 tokens as sequences of 2,048, 8,192 and 16,384, one document each.
"""

import argparse
import gc
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from figures import on_policy_cost_figures
from ledger import gpu_machine, record_from_gpu

ROLES = ["mixer", "mlp", "norm"]
TURNS = 2
WARM_UPS = 3  # steps that compile and capture


@dataclass(frozen=True)
class Setting:
    """What is measured, and of what size."""

    shape: str
    device: str
    keep: int
    prompts: int  # a step
    new_tokens: int  # and as many tokens of each prompt
    sequence_length: int
    micro_batch: int
    lengths: tuple[int, ...]
    tokens: int  # of a micro-batch of the lengths
    steps: int


ON_GPU = Setting("qwen2.5-1.5b", "cuda", 7, 64, 256, 2048, 4, (2048, 8192, 16384), 16384, 6)
REHEARSAL = Setting("tiny", "cpu", 2, 8, 16, 64, 2, (64, 128, 256), 256, 2)


class Conversations:
    """Packed conversations of random words, each a prompt and a reply of `half` tokens."""

    def __init__(self, rows: int, length: int, half: int, vocabulary: int):
        self.ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length), dtype=np.int32)
        position = np.arange(length, dtype=np.int32) % (2 * half)
        self.columns = {
            "input_ids": self.ids,
            "position_ids": np.tile(position, (rows, 1)),
            "loss_mask": np.tile((position >= half).astype(np.uint8), (rows, 1)),
        }

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows):
        return {name: column[rows].copy() for name, column in self.columns.items()}


class Texts(Conversations):
    """Sequences of one document each, all of whose tokens count."""

    def __init__(self, rows: int, length: int, vocabulary: int):
        super().__init__(rows, length, length // 2, vocabulary)
        position = np.arange(length, dtype=np.int32)
        self.columns["position_ids"] = np.tile(position, (rows, 1))
        self.columns["loss_mask"] = np.tile((position > 0).astype(np.uint8), (rows, 1))


def steps_of(setting: Setting, teacher, stage, dataset) -> dict:
    """Seconds of each steady step of a stage in the real loop; for an on-policy one, of writing alone besides."""
    import torch
    from rich.console import Console

    from gendistill.bench.models import student_of_shape
    from gendistill.compute import Compute
    from gendistill.distill.objectives import unmeasured_conversion_report
    from gendistill.distill.on_policy import Writing
    from gendistill.distill.replies import ReplyTokens
    from gendistill.distill.roles import set_trainable
    from gendistill.distill.stage import train_stage

    on_gpu = setting.device == "cuda"
    torch.manual_seed(0)
    student = student_of_shape(teacher, setting.keep, log_decay_bound=-5.0 if on_gpu else None).float().train()
    set_trainable(student, stage.train)
    clear(on_gpu)
    # -1 is no token, so that no reply ends.
    tokens = ReplyTokens(ends=[-1], pad=0, decode=lambda ids: " ".join(map(str, ids)))
    with tempfile.TemporaryDirectory() as folder:
        history, _ = train_stage(
            stage,
            teacher,
            student,
            dataset,
            conversion_report=unmeasured_conversion_report(student.config),
            vocabulary=teacher.config.vocab_size,
            compute=Compute(
                setting.device, torch.bfloat16 if on_gpu else torch.float32, compiled=on_gpu, kernels=on_gpu
            ),
            folder=Path(folder),
            fingerprint={},
            title="benchmark",
            console=Console(quiet=True),
            writing=Writing(tokens),
        )
    seconds = [step.seconds for step in history[WARM_UPS:]]
    result = {"seconds": seconds, "tokens_per_second": [step.tokens_per_second for step in history[WARM_UPS:]]}
    if on_gpu:
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if stage.on_policy is not None:
        result["replies"] = dict(history[-1].replies)
        result["writing_seconds"] = writing_alone(setting, student, tokens, dataset, stage)
    return result


def writing_alone(setting: Setting, student, tokens, dataset, stage) -> list[float]:
    """Seconds of writing a step's replies, without the training around it."""
    from gendistill.distill.replies import ReplyWriter, prompts_of

    writer = ReplyWriter(student, tokens, student.dtype)
    prompts = [prompt.ids for row in prompts_of(dataset[: stage.sequences_per_step], 0) for prompt in row]
    found = []
    for turn in range(3):
        began = time.perf_counter()
        # Its ids come back to the host, so that the clock stops when all is done.
        writer.write(prompts, setting.new_tokens, 1.0, [f"{turn} {i}" for i in range(len(prompts))])
        found.append(round(time.perf_counter() - began, 4))
    return found


def make_stage(setting: Setting, *, length: int, sequences: int, micro_batch: int, **changes):
    from gendistill.recipe.stage import Stage

    steps = WARM_UPS + setting.steps
    return Stage(
        **dict(
            objective="forward_kl",
            loss_on="completion",
            data="conversations",
            train=ROLES,
            tokens=steps * sequences * length,
            sequence_length=length,
            sequences_per_step=sequences,
            micro_batch=micro_batch,
            learning_rate=1e-6,
        )
        | changes
    )


def clear(on_gpu: bool) -> None:
    import torch

    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_steps(setting: Setting, teacher, keep) -> None:
    """Off-policy and on-policy, by turns; on-policy with all sequences and with half of them, the default."""
    sequences = setting.prompts * 2 * setting.new_tokens // setting.sequence_length
    size = dict(length=setting.sequence_length, sequences=sequences, micro_batch=setting.micro_batch)
    written = {"on_policy": "conversations", "new_tokens": [setting.new_tokens] * 2}
    stages = {
        "off-policy": make_stage(setting, **size),
        "on-policy": make_stage(setting, **size, objective="reverse_kl", data=written | {"share": 1.0}),
        "on-policy, half": make_stage(setting, **size, objective="reverse_kl", data=written | {"share": 0.5}),
    }
    for turn in range(TURNS):
        for name, stage in stages.items():
            rows = stage.steps * sequences
            vocabulary = teacher.config.vocab_size
            dataset = Conversations(rows, setting.sequence_length, setting.new_tokens, vocabulary)
            keep(f"{name} {turn}", steps_of(setting, teacher, stage, dataset))


def measure_lengths(setting: Setting, teacher, keep) -> None:
    for turn in range(TURNS):
        for length in setting.lengths:
            sequences = setting.tokens // length
            size = dict(length=length, sequences=sequences, micro_batch=sequences)
            stage = make_stage(setting, **size, loss_on="all", data="texts")
            dataset = Texts(stage.steps * sequences, length, teacher.config.vocab_size)
            keep(f"length {length} {turn}", steps_of(setting, teacher, stage, dataset))


PARTS = {"steps": measure_steps, "lengths": measure_lengths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for results; those of other parts in it stay")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rehearse", action="store_true", help="a tiny shape on a CPU, to see that all of it runs")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    arguments = parser.parse_args()
    if arguments.record:
        return record_from_gpu(arguments.out, on_policy_cost_figures, "python benchmarks/on_policy_cost.py")

    import torch

    from gendistill.bench.models import teacher_of_shape

    setting = REHEARSAL if arguments.rehearse else ON_GPU
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    teacher = teacher_of_shape(setting.shape, max(setting.lengths), setting.device, dtype).requires_grad_(False)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results["setting"] = vars(setting)
    if not arguments.rehearse:
        results["machine"] = gpu_machine()

    def keep(name: str, result: dict) -> None:
        results[name] = result
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {median(result['seconds']):.3f} s a step", result, flush=True)

    for part in arguments.only:
        PARTS[part](setting, teacher, keep)
    if set(PARTS) == set(arguments.only):
        for name, figure in on_policy_cost_figures(arguments.out.parent, arguments.out.name).items():
            print(name, figure["value"], figure["spread"])


if __name__ == "__main__":
    main()
