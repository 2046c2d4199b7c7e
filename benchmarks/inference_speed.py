"""Speed of prefill and decoding, and the figures of it in results/figures.json; for a CUDA device.

    python benchmarks/inference_speed.py --out DIR        # what `gendistill bench` measures, and generate's share
    python benchmarks/inference_speed.py --record         # results/gpu/bench/qwen3-0.6b-*.json into figures.json

The pair has Qwen3-0.6B's shape and random weights; the student keeps 7 of 28 layers, the others hold Kimi Delta
Attention with bounded gates. With --record nothing is measured: put the files of the first line there first. Let
nothing else run on the machine: short prompts in transformers' default form take as long as the host does.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ledger import ROOT, changed, commit, record
from speed_figures import bench_figures

RAW = ROOT / "results/gpu/bench"
SWEEPS = {"short": ("2048,8192", 1), "long": ("32768,131072", 1), "batch-8": ("32768", 8)}  # contexts and batch
GENERATED = 256  # tokens, by which generate() is held against the bare loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the raw output")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.record:
        return record_what_is_new()
    call = [sys.executable, "-c", "from gendistill.cli import main; main()", "bench", "--shape", "qwen3-0.6b"]
    for name, (contexts, batch) in SWEEPS.items():
        folder = arguments.out / name
        subprocess.run([*call, "--contexts", contexts, "--batches", str(batch), "--output", folder], check=True)
        (folder / "bench.json").rename(arguments.out / f"qwen3-0.6b-{name}.json")
    (arguments.out / "qwen3-0.6b-generate.json").write_text(json.dumps(generate_shares(), indent=1) + "\n")


def record_what_is_new() -> None:
    """Figures whose value has changed, with the machine and the day of their own file; others keep their commit."""
    for name, figure in changed(bench_figures(RAW)).items():
        raw = json.loads((ROOT / figure["source"]).read_text())
        versions = {"gendistill": commit()} | raw["machine"]["versions"]
        where = {"hardware": f"1x {raw['machine']['device']}", "versions": versions, "measured": raw["measured"]}
        record({name: figure}, "python benchmarks/inference_speed.py", **where)


def generate_shares() -> dict:
    """Seconds a token of `gendistill.generate` and of the bare loop, by context, batch 1."""
    import torch

    from gendistill.bench.measure import Cell, measure_cell, seconds_a_token_of_generate
    from gendistill.bench.models import student_of_shape, teacher_of_shape

    teacher = teacher_of_shape("qwen3-0.6b", 131072, "cuda", torch.bfloat16)
    student = student_of_shape(teacher, 7, mixer="kda", log_decay_bound=-5.0)
    found = {}
    for context in (2048, 8192, 131072):
        bare = sorted(measure_cell(student, Cell("student", "best", context, 1), 3).token)[1]
        found[context] = {"bare": bare, "generate": seconds_a_token_of_generate(student, context, GENERATED)}
    return found


if __name__ == "__main__":
    main()
