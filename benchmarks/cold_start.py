"""How long the first optimisation step takes on a machine that has never compiled a kernel; needs a CUDA device.

    python benchmarks/cold_start.py --out results/gpu/cold_start.json [--autotuning-limit 300]
    python benchmarks/cold_start.py --out results/gpu/cold_start.json --record    # into results/figures.json, anywhere

Every start is a process of its own with an empty Triton cache. Its time runs from the process's start to the end of one
step of logit distillation (bfloat16, 2 packed rows of 2,048 tokens) of a student with random weights: imports, models,
compilation and all. With a limit the same is tried without the shipped launch settings, and cut off there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import QWEN3_0_6B, ROOT, cold_start_figures, commit, record

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
DOCUMENTS = [700, 37, 1, 900, 410]  # 2048 tokens a row


def first_step(shape: str, started: float) -> None:
    """Takes one step and prints the seconds since `started` and the step's loss."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gendistill.distill.objectives import ForwardKL
    from gendistill.distill.optimizer import MasterOptimizer
    from gendistill.distill.roles import set_trainable
    from gendistill.models.conversion import convert
    from gendistill.models.families import student_config
    from gendistill.recipe import load_recipe

    stage = load_recipe(ROOT / "recipes/qwen3-0.6b.yaml").stages["logit_distillation"]
    config = AutoConfig.for_model(**SHAPES[shape])
    torch.manual_seed(0)
    with torch.device("cuda"):
        teacher = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    student, _ = convert(teacher, student_config(config, KEEP[shape]), seed=0)
    student = student.to("cuda", torch.float32).train()
    set_trainable(student, stage.train)
    optimizer = MasterOptimizer(student, stage, torch.bfloat16)
    positions = torch.cat([torch.arange(n) for n in DOCUMENTS]).repeat(2, 1)
    ids = torch.randint(0, config.vocab_size, positions.shape)
    batch = {"input_ids": ids, "position_ids": positions, "loss_mask": (positions > 0).long()}
    batch = {name: x.cuda() for name, x in batch.items()}
    objective = ForwardKL(teacher, student)
    tokens = objective.loss_tokens(batch)
    loss = objective.backward(batch, tokens)
    optimizer.collect_gradients()
    norm = optimizer.step(1.0)
    torch.cuda.synchronize()
    print(json.dumps({"seconds": round(time.time() - started, 1), "loss": loss.item() / tokens, "gradient_norm": norm}))


def cold_start(shape: str, settings: str, limit: float) -> dict:
    """One start in a fresh process; `settings` is "shipped" or "autotuned"."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "TRITON_CACHE_DIR": cache,
            "PYTHONPATH": f"{ROOT / 'src'}:{os.getenv('PYTHONPATH', '')}",
        }
        if settings == "autotuned":
            environment["FLA_CACHE_MODE"] = "disabled"
        command = [sys.executable, __file__, "--child", shape, str(time.time())]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
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
        return record_figures(arguments.out)

    import torch

    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    settings = {} if arguments.only_autotuned else {"shipped": 300}
    settings |= {"autotuned": arguments.autotuning_limit} if arguments.autotuning_limit else {}
    for name, limit in settings.items():
        for shape in arguments.shapes:
            results.setdefault(shape, {})[name] = cold_start(shape, name, limit)
            print(shape, name, results[shape][name], flush=True)
            results["machine"] = machine(torch)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def record_figures(path: Path) -> None:
    machine = json.loads(path.read_text())["machine"]
    record(
        cold_start_figures(path.parent),
        "python benchmarks/cold_start.py",
        hardware=f"1x {machine['gpu']}",
        versions={"gendistill": commit()} | machine["versions"],
        measured=machine["measured"],
    )


def machine(torch) -> dict:
    from importlib.metadata import version

    return {
        "gpu": torch.cuda.get_device_name(),
        "measured": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("torch", "triton", "fla-core", "transformers")},
    }


if __name__ == "__main__":
    main()
