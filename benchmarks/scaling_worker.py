"""One of the processes that torchrun starts for benchmarks/scaling.py: does the named parts, one after the other.

Results of a part are put into --out as soon as it is done, by the first process. What the parts are: scaling.py.
"""

import argparse
import datetime
import gc
import json
import tempfile
import time
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median

from training_speed import RandomRows

LLAMA_8B = dict(  # Llama-3.1-8B's published configuration
    model_type="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
TINY = dict(
    model_type="qwen3",
    vocab_size=2048,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
BENCHED = {"0p6b": "qwen3-0.6b", "1p5b": "qwen2.5-1.5b"}  # shapes of `gendistill bench`
OTHERS = {"8b": LLAMA_8B, "tiny": TINY}
KEEP_EVERY, BOUND = 4, -5.0  # a quarter of the layers keeps attention
KD = dict(objective="forward_kl", train=["mixer", "mlp", "norm"], learning_rate=1e-5)
ALIGN = dict(objective="mixer_l2", train=["mixer_qk", "mixer_conv", "mixer_gate"], learning_rate=1e-4)
# Shape, settings, sequences of a step and of a micro-batch, steps, strategy of one process and of several.
TRAINED = {
    "kd": ("0p6b", KD, 64, 4, 6, "whole", "replicas"),
    "exchange": ("0p6b", KD, 64, 4, 6, "replicas", None),
    "align": ("0p6b", ALIGN, 64, 8, 8, "whole", "replicas"),
    "kd_16": ("0p6b", KD, 64, 16, 6, "whole", None),
    "fsdp": ("0p6b", KD, 64, 16, 6, "fsdp", "fsdp"),
    "zero2": ("0p6b", KD, 64, 16, 6, "zero2", "zero2"),
    "kd_1p5b": ("1p5b", KD, 64, 4, 5, "whole", "replicas"),
    "fsdp_1p5b": ("1p5b", KD, 64, 16, 5, "fsdp", "fsdp"),
    "fsdp_8b": ("8b", KD, 64, 2, 5, "fsdp", "fsdp"),
}
ASKED = ("evaluation", "synthesis")
PARTS = [name for name in TRAINED if name != "fsdp_8b"] + list(ASKED)
STEADY = 2  # steps before it compile and capture
PROFILED = 2  # steps, the last ones


def train(name: str, tiny: bool) -> dict | None:
    """A stage in the real loop; None on processes that only take part."""
    import torch
    from rich.console import Console

    from gendistill import distributed
    from gendistill.distill.engine import Pace
    from gendistill.distill.objectives import unmeasured_conversion_report
    from gendistill.distill.roles import set_trainable
    from gendistill.distill.sharding import shard
    from gendistill.distill.stage import train_stage
    from gendistill.models.conversion import convert
    from gendistill.models.families import student_config
    from gendistill.plan.price import Planner
    from gendistill.recipe.stage import Stage

    shape, settings, sequences, micro_batch, steps, alone, together = TRAINED[name]
    length = 64 if tiny else 2048
    if tiny:
        sequences, micro_batch = 8, 2
    strategy = alone if distributed.processes() == 1 else together
    compute = replace(compute_of(tiny), strategy=strategy)
    teacher = make_teacher("tiny" if tiny else shape, compute)
    config = student_config(teacher.config, list(range(0, teacher.config.num_hidden_layers, KEEP_EVERY)))
    if not tiny:  # the kernels of bounded gates take heads of 64 and 128
        config.log_decay_bound = BOUND
    student, _ = convert(teacher, config, seed=0)
    stage = Stage(
        **settings,
        data="text",
        tokens=steps * sequences * length,
        sequence_length=length,
        sequences_per_step=sequences,
        micro_batch=micro_batch,
        checkpoint_every=steps + 1,
    )
    planner = Planner(teacher.config, student.config, compute)
    price, flops = planner.price(stage), planner.price(stage).flops_per_token
    student = student.to(compute.device, torch.float32).train()
    set_trainable(student, stage.train)
    if compute.shards_teacher:
        shard(teacher, compares="end_to_end", compute=compute)
    rows = RandomRows(stage.steps * sequences, teacher.config.vocab_size, packed=False, length=length)
    clear(compute.device)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Communication(stage.steps, compute.device) as communication:
        history, _ = train_stage(
            stage,
            teacher,
            student,
            rows,
            conversion_report=unmeasured_conversion_report(student.config),
            vocabulary=teacher.config.vocab_size,
            compute=compute,
            folder=Path(folder),
            fingerprint={},
            title=name,
            console=Console(quiet=True),
            pace=Pace(flops, compute.peak_flops),
        )
    on_gpu = compute.device == "cuda"
    peaks = distributed.of_all_processes(torch.cuda.max_memory_allocated() if on_gpu else None)
    # Those behind the profiler's are slowed by it.
    steady = history[STEADY : len(history) - PROFILED] or history[STEADY:]
    return {
        "strategy": strategy,
        "tokens_per_second": [step.tokens_per_second for step in steady],
        "mfu": [step.mfu for step in steady],
        "loss": [step.loss for step in history],
        "communication_share": communication.share,
        "peak_bytes": peaks,
        "planned_bytes": price.counted,
        "trained": planner.parameters(stage).trained,
        "first_step_seconds": history[0].seconds,
        "seconds": round(time.perf_counter() - began, 1),
    }


class Communication:
    """Share of the time of the last steps in which NCCL's kernels run on this process's GPU; None on a CPU."""

    def __init__(self, steps: int, device: str):
        self.first, self.device, self.share = steps - PROFILED, device, None

    def __enter__(self) -> "Communication":
        from gendistill.distill.engine import Trainer

        self.profiler, self.original = None, Trainer._start

        def start(trainer, step):
            if step.index == self.first and self.device == "cuda":
                self._begin()
            return self.original(trainer, step)

        Trainer._start = start
        return self

    def _begin(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        self.profiler, self.began = profile(activities=[ProfilerActivity.CUDA]), time.perf_counter()
        self.profiler.start()

    def __exit__(self, *_) -> None:
        import torch

        from gendistill.distill.engine import Trainer

        Trainer._start = self.original
        if self.profiler is None:
            return
        torch.cuda.synchronize()
        seconds = time.perf_counter() - self.began
        self.profiler.stop()
        kernels = [kernel for kernel in self.profiler.key_averages() if "nccl" in kernel.key.lower()]
        self.share = round(sum(kernel.self_device_time_total for kernel in kernels) / 1e6 / seconds, 4)


def ask(name: str, tiny: bool, data: Path | None) -> dict:
    """Seconds in which all processes answer, or write; the second time, when kernels are there."""
    import torch

    from gendistill import distributed
    from gendistill.models.loading import load_tokenizer

    compute = compute_of(tiny)
    model = make_teacher("tiny" if tiny else "0p6b", compute)
    tokenizer = load_tokenizer("embedded", model.config.vocab_size)
    # Random weights may say ids that this tokenizer does not have.
    model.lm_head.weight.data[len(tokenizer) :] = 0
    do = {"evaluation": evaluate, "synthesis": synthesize}[name]
    seconds = []
    for _ in range(2):
        distributed.barrier()
        began = time.perf_counter()
        answers = do(model, tokenizer, tiny, data)
        if compute.device == "cuda":
            torch.cuda.synchronize()
        distributed.barrier()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "answers": answers}


def evaluate(model, tokenizer, tiny: bool, data: Path | None) -> int:
    from gendistill import distributed
    from gendistill.evaluate.run import evaluate_model
    from gendistill.recipe.evaluation import Evaluation

    # As many as GSM8K's, with as many examples, and as long: random weights do not end their replies.
    items, tokens, shots = (12, 8, 1) if tiny else (1319, 256, 5)
    with shared_folder() as folder:
        path, shots_path = gsm8k(data) if data is not None else write_sums(folder, items, shots)
        sums = dict(kind="last_number", path=path, items=items, shots=shots, shots_path=shots_path)
        tasks = {
            "sums": dict(sums, max_new_tokens=tokens),
            "choice": dict(kind="multiple_choice", path="embedded:choice", items=12 if tiny else 500, max_new_tokens=4),
        }
        evaluate_model(
            model,
            tokenizer,
            Evaluation(tasks=tasks),
            seed=0,
            folder=folder,
            label="model",
            progress=False,
            share=distributed.own_share(),
        )
    return items + tasks["choice"]["items"]


def synthesize(model, tokenizer, tiny: bool, data: Path | None) -> int:
    """The replies alone: of random weights none would pass the checks."""
    from rich.console import Console

    from gendistill import distributed
    from gendistill.recipe.data import Synthesis
    from gendistill.synthesize.prompts import all_prompts
    from gendistill.synthesize.run import generate_replies

    size, batches, tokens = (2, 4, 8) if tiny else (64, 16, 256)
    with shared_folder() as folder:
        asked = dict(kind="last_number", path=write_sums(folder, size * batches)[0])
        synthesis = Synthesis(prompts=[asked], max_new_tokens=tokens, batch_size=size, temperature=1.0)
        prompts = all_prompts(synthesis, tokenizer, 0)
        answered, _ = generate_replies(
            model, tokenizer, prompts, synthesis, 0, folder, Console(quiet=True), distributed.own_share()
        )
    return len(answered)


def gsm8k(data: Path) -> tuple[str, str]:
    return str(data / "gsm8k.test.jsonl.gz"), str(data / "gsm8k.train.jsonl.gz")


def write_sums(folder: Path, count: int, shots: int = 0) -> tuple[str, str]:
    """So many embedded problems as a file, more than an evaluation of them has, and others as a file of examples."""
    from gendistill import distributed, embedded

    paths = folder / "sums.jsonl", folder / "shots.jsonl"
    if distributed.is_rank_zero():
        # Embedded problems repeat themselves, and examples must be none of the questions.
        problems = list(embedded.records("arithmetic", count=count + 100 * shots))
        asked = {each["question"] for each in problems[:count]}
        others = [each for each in problems[count:] if each["question"] not in asked]
        for path, some in zip(paths, (problems[:count], others), strict=True):
            path.write_text("".join(json.dumps(each) + "\n" for each in some))
    distributed.barrier()
    return str(paths[0]), str(paths[1])


class shared_folder(tempfile.TemporaryDirectory):
    """A temporary folder that the first process makes and deletes, and all know."""

    def __init__(self):
        from gendistill import distributed

        self.is_first = distributed.is_rank_zero()
        self.made = tempfile.TemporaryDirectory() if self.is_first else nullcontext()
        self.path = Path(distributed.as_rank_zero_says(lambda: self.made.name))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_) -> None:
        from gendistill import distributed

        distributed.barrier()
        if self.is_first:
            self.made.cleanup()


def compute_of(tiny: bool):
    import torch

    from gendistill import distributed
    from gendistill.compute import Compute

    processes = distributed.processes()
    if tiny:
        return Compute("cpu", torch.float32, compiled=False, kernels=False, processes=processes)
    return Compute("cuda", torch.bfloat16, compiled=True, kernels=True, processes=processes)


def make_teacher(shape: str, compute):
    """The same on every process."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gendistill.bench.models import SHAPES

    config = deepcopy(SHAPES[BENCHED[shape]]) if shape in BENCHED else AutoConfig.for_model(**OTHERS[shape])
    torch.manual_seed(0)
    with torch.device(compute.device):
        model = AutoModelForCausalLM.from_config(config, dtype=compute.dtype, trust_remote_code=False)
    return model.eval().requires_grad_(False)


def clear(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def work(out: Path, parts: list[str], tiny: bool, data: Path | None) -> None:
    """The parts that are for this number of processes."""
    from gendistill import distributed

    distributed.start("cpu" if tiny else "cuda")
    number = str(distributed.processes())
    for name in parts:
        if name in TRAINED and TRAINED[name][6 if distributed.processes() > 1 else 5] is None:
            continue  # of one process only
        result = train(name, tiny) if name in TRAINED else ask(name, tiny, data)
        gc.collect()  # models and graphs hang together in circles
        if distributed.is_rank_zero():
            results = json.loads(out.read_text())
            results.setdefault(number, {})[name] = result | {"measured": datetime.date.today().isoformat()}
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{number} processes, {name}: {_said(result)}", flush=True)


def _said(result: dict) -> str:
    if "tokens_per_second" in result:
        return f"{median(result['tokens_per_second']):,.0f} tokens/s, communication {result['communication_share']}"
    return f"{result['seconds'][-1]:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of results, there already")
    parser.add_argument("--parts", nargs="+", required=True, choices=[*TRAINED, *ASKED])
    parser.add_argument("--data", type=Path, help="folder with GSM8K's files, to be asked")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on CPUs: a rehearsal")
    arguments = parser.parse_args()
    work(arguments.out, arguments.parts, arguments.tiny, arguments.data)


if __name__ == "__main__":
    main()
