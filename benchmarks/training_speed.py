"""How fast stages train on one GPU, against plain code in the same run; needs a CUDA device.

    python benchmarks/training_speed.py --out results/gpu/training_speed.json [--profile results/gpu/profile.txt]
    python benchmarks/training_speed.py --out results/gpu/training_speed.json --record    # into results/figures.json

The pair is Qwen3-0.6B's published shape with random weights, 21 of 28 layers Kimi Delta Attention with bounded gates.
"Plain" is what one writes first: transformers' teacher, the student, KL by checkpointed chunks, fla's kernels; 8 rows
of 2,048 tokens at once. "Ours" is a stage of recipes/qwen3-0.6b.yaml in the real training loop, data loading, float32
masters and AdamW included. The two take turns.
"""

import argparse
import gc
import json
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from figures import QWEN3_0_6B, training_speed_figures
from ledger import ROOT, gpu_machine, record_from_gpu

LENGTH = 2048
DOCUMENTS = [700, 37, 1, 900, 410]  # of a packed row
KEEP = [0, 2, 6, 11, 13, 18, 21]
BOUND = -5.0
MICRO_BATCH = {"logit_distillation": 4, "qk_alignment": 8, "block_alignment": 8}
PLAIN_ROWS = 8
PARTS = ["kd", "qk_alignment", "block_alignment", "loss", "packed", "unbounded"]


class RandomRows:
    """Rows of random words; of one document each, or packed."""

    def __init__(self, rows: int, vocabulary: int, packed: bool, length: int = LENGTH):
        import numpy as np

        self.ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length), dtype=np.int32)
        lengths = DOCUMENTS if packed else [length]
        self.positions = np.tile(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]), (rows, 1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows):
        mask = (self.positions[rows] > 0).astype("uint8")
        return {"input_ids": self.ids[rows].copy(), "position_ids": self.positions[rows].copy(), "loss_mask": mask}


def make_teacher():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda"):
        config = AutoConfig.for_model("qwen3", **QWEN3_0_6B)
        return (
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
            .eval()
            .requires_grad_(False)
        )


def make_student(teacher, stage, bound: float | None = BOUND):
    """A float32 student on the GPU in which the stage's roles train."""
    import torch

    from gendistill.distill.roles import set_trainable
    from gendistill.models.conversion import convert
    from gendistill.models.families import student_config

    student, _ = convert(teacher, student_config(teacher.config, KEEP, log_decay_bound=bound), seed=0)
    student = student.to("cuda", torch.float32).train()
    set_trainable(student, stage.train)
    return student


def ours(teacher, stage, steps: int, packed: bool, bound: float | None = BOUND, profile: Path | None = None) -> dict:
    """Tokens a second of each steady step of a stage in the real loop, and peak memory."""
    import torch
    from rich.console import Console

    from gendistill.compute import Compute
    from gendistill.distill.objectives import unmeasured_conversion_report
    from gendistill.distill.stage import train_stage

    stage = stage.model_copy(update={"tokens": steps * stage.sequences_per_step * LENGTH})
    student = make_student(teacher, stage, bound)
    dataset = RandomRows(stage.steps * stage.sequences_per_step, teacher.config.vocab_size, packed)
    clear()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, kernels_by_time(profile):
        history, _ = train_stage(
            stage,
            teacher,
            student,
            dataset,
            conversion_report=unmeasured_conversion_report(student.config),
            vocabulary=teacher.config.vocab_size,
            compute=Compute("cuda", torch.bfloat16, compiled=True, kernels=True),
            folder=Path(folder),
            fingerprint={},
            title="benchmark",
            console=Console(quiet=True),
        )
    seconds = time.perf_counter() - began
    speeds = [metrics.tokens_per_second for metrics in history[2:]]
    return {
        "micro_batch": stage.micro_batch,
        "packed": packed,
        "log_decay_bound": bound,
        "tokens_per_second": speeds,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "first_step_seconds": history[0].seconds,
        "seconds": round(seconds, 1),
        "loss": [metrics.loss for metrics in history],
    }


@contextmanager
def kernels_by_time(path: Path | None):
    """Writes what ran on the GPU inside the block, longest first: share of the time, milliseconds, calls."""
    if path is None:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield
    kernels = sorted(profiler.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    total = sum(kernel.self_device_time_total for kernel in kernels)
    lines = [
        f"{kernel.self_device_time_total / total:6.1%} {kernel.self_device_time_total / 1e3:10.1f} ms"
        f" {kernel.count:7d}  {kernel.key[:120]}\n"
        for kernel in kernels[:70]
    ]
    path.write_text(f"{total / 1e3:.1f} ms on the GPU\n" + "".join(lines))


def plain(teacher, stage, packed: bool, steps: int) -> dict:
    """The same work as plain code: eager, masks of [T, T], a host that waits for the loss of every step."""
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    student = make_student(teacher, stage).to(torch.bfloat16)
    for name, parameter in student.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.data = parameter.data.float()
    adamw = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-5)
    rows = RandomRows(PLAIN_ROWS, teacher.config.vocab_size, packed)[:]
    ids, positions = (torch.from_numpy(rows[name]).long().cuda() for name in ("input_ids", "position_ids"))
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    clear()

    def divergence(hidden, teacher_hidden):
        log_q = F.log_softmax((hidden @ student.lm_head.weight.T).float(), dim=-1)
        log_p = F.log_softmax((teacher_hidden @ teacher.lm_head.weight.T).float(), dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum()

    speeds = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        with torch.no_grad():
            targets = teacher.model(**inputs).last_hidden_state.flatten(0, 1)
        hidden = student.model(**inputs).last_hidden_state.flatten(0, 1)
        chunks = zip(hidden.split(2048), targets.split(2048), strict=True)
        loss = sum(checkpoint(divergence, *chunk, use_reentrant=False) for chunk in chunks) / ids.numel()
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        loss.item()
        speeds.append(ids.numel() / (time.perf_counter() - began))
    return {
        "rows": PLAIN_ROWS,
        "packed": packed,
        "tokens_per_second": speeds[2:],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def loss_memory(teacher) -> dict:
    """Peak memory of the loss alone at 16,384 tokens, over what was there before; the head frozen and trained."""
    import torch

    from gendistill.distill.divergences import VocabularyLoss

    tokens, weight = 16384, teacher.lm_head.weight
    vocabulary = weight.shape[0]
    hidden, targets = torch.randn(2, tokens, weight.shape[1], device="cuda", dtype=torch.bfloat16)
    words = torch.randint(0, vocabulary, (tokens,), device="cuda")
    settings = {"terms": {"forward_kl": 1.0}, "vocabulary": vocabulary, "temperature": 1.0}
    peaks = {}
    for name, trained in (("head frozen", False), ("head trained", True)):
        for _ in range(2):
            head, states = weight.detach().requires_grad_(trained), hidden.detach().requires_grad_()
            clear()
            before = torch.cuda.memory_allocated()
            token_weights = torch.ones(tokens, device="cuda")
            loss, _ = VocabularyLoss.apply(states, head, targets, weight, words, token_weights, settings, True)
            loss.backward()
            torch.cuda.synchronize()
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**30
            del head, states, loss
    return {"tokens": tokens, "vocabulary": vocabulary, "peak_gib": peaks}


def clear() -> None:
    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for results; those of other parts in it stay")
    parser.add_argument("--profile", type=Path, help="file for the kernels of one micro-batch, by time")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    arguments = parser.parse_args()
    if arguments.record:
        return record_from_gpu(arguments.out, training_speed_figures, "python benchmarks/training_speed.py")

    from gendistill.recipe.loading import load_recipe

    stages = load_recipe(ROOT / "recipes/qwen3-0.6b.yaml").stages
    stages = {name: stages[name].model_copy(update={"micro_batch": size}) for name, size in MICRO_BATCH.items()}
    teacher = make_teacher()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results["machine"] = gpu_machine()

    def keep(name: str, result: dict) -> None:
        results[name] = result
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        speeds = result.get("tokens_per_second")
        print(name, f"{median(speeds):,.0f} tok/s" if speeds else "", result, flush=True)

    if "kd" in arguments.only:
        kd = stages["logit_distillation"]
        for turn in range(2):
            keep(f"kd plain {turn}", plain(teacher, kd, packed=False, steps=6))
            profile = arguments.profile if turn else None
            keep(f"kd ours {turn}", ours(teacher, kd, 6, packed=False, profile=profile))
    for name in ("qk_alignment", "block_alignment"):
        if name in arguments.only:
            keep(name, ours(teacher, stages[name], 15, packed=False))
    if "loss" in arguments.only:
        keep("loss", loss_memory(teacher))
    if "packed" in arguments.only:
        keep("kd plain packed", plain(teacher, stages["logit_distillation"], packed=True, steps=4))
        keep("kd ours packed", ours(teacher, stages["logit_distillation"], 5, packed=True))
    if "unbounded" in arguments.only:
        keep("kd ours unbounded", ours(teacher, stages["logit_distillation"], 5, packed=False, bound=None))


if __name__ == "__main__":
    main()
