"""How long the first optimisation step takes on a machine that has never compiled a kernel; needs a CUDA device.

    python benchmarks/cold_start.py --out results/gpu/cold_start.json [--autotuning-limit 300]
    python benchmarks/cold_start.py --out results/gpu/cold_start.json --record    # into results/figures.json, anywhere

Every start is a process of its own with empty caches of compiled code. Its time runs from its start to the end of one
step of logit distillation (bfloat16, 2 packed rows of 2,048 tokens) of a student with random weights: imports, models,
compilation and all. With a limit the same is tried without the shipped launch settings, and cut off there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import QWEN3_0_6B, cold_start_figures
from launching import environment
from ledger import ROOT, gpu_machine, record_from_gpu

SHAPES = {
    "d64": dict(  # Qwen2.5-0.5B's published configuration
        model_type="qwen2",
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "d128": dict(model_type="qwen3", **QWEN3_0_6B),
}
KEEP = {"d64": [1, 5, 9, 13, 17, 21], "d128": [0, 2, 6, 11, 13, 18, 21]}


def first_step(shape: str, started: float) -> None:
    """Takes one step as a run does and prints the seconds since `started` and the step's loss."""
    import torch
    from rich.console import Console
    from training_speed import RandomRows
    from transformers import AutoConfig, AutoModelForCausalLM

    from gendistill.compute import Compute
    from gendistill.distill.objectives import unmeasured_conversion_report
    from gendistill.distill.roles import set_trainable
    from gendistill.distill.stage import train_stage
    from gendistill.models.conversion import convert
    from gendistill.models.families import student_config
    from gendistill.recipe.loading import load_recipe

    stage = load_recipe(ROOT / "recipes/qwen3-0.6b.yaml").stages["logit_distillation"]
    stage = stage.model_copy(update={"micro_batch": 2, "sequences_per_step": 2, "tokens": 2 * stage.sequence_length})
    config = AutoConfig.for_model(**SHAPES[shape])
    torch.manual_seed(0)
    with torch.device("cuda"):
        teacher = (
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
            .eval()
            .requires_grad_(False)
        )
    student, _ = convert(teacher, student_config(config, KEEP[shape]), seed=0)
    student = student.to("cuda", torch.float32).train()
    set_trainable(student, stage.train)
    with tempfile.TemporaryDirectory() as folder:
        (metrics,), _ = train_stage(
            stage,
            teacher,
            student,
            RandomRows(2, config.vocab_size, packed=True),
            conversion_report=unmeasured_conversion_report(student.config),
            vocabulary=config.vocab_size,
            compute=Compute("cuda", torch.bfloat16, compiled=True, kernels=True),
            folder=Path(folder),
            fingerprint={},
            title="first step",
            console=Console(quiet=True),
        )
    seconds = round(time.time() - started, 1)
    print(json.dumps({"seconds": seconds, "loss": metrics.loss, "gradient_norm": metrics.gradient_norm}))


def cold_start(shape: str, settings: str, limit: float) -> dict:
    """One start in a fresh process; `settings` is "shipped" or "autotuned"."""
    with tempfile.TemporaryDirectory() as cache:
        own = environment(TRITON_CACHE_DIR=f"{cache}/triton", TORCHINDUCTOR_CACHE_DIR=f"{cache}/inductor")
        if settings == "autotuned":
            own["FLA_CACHE_MODE"] = "disabled"
        command = [sys.executable, __file__, "--child", shape, str(time.time())]
        try:
            done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"cut_off_after_seconds": limit}
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the results; other starts in it are kept")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--autotuning-limit", type=float, help="seconds; without it only the shipped settings are tried"
    )
    parser.add_argument("--only-autotuned", action="store_true", help="leave the shipped settings out")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        shape, started = arguments.child
        return first_step(shape, float(started))

    if arguments.record:
        return record_from_gpu(arguments.out, cold_start_figures, "python benchmarks/cold_start.py")

    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    settings = {} if arguments.only_autotuned else {"shipped": 300}
    settings |= {"autotuned": arguments.autotuning_limit} if arguments.autotuning_limit else {}
    for name, limit in settings.items():
        for shape in arguments.shapes:
            results.setdefault(shape, {})[name] = cold_start(shape, name, limit)
            print(shape, name, results[shape][name], flush=True)
            results["machine"] = gpu_machine()
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
