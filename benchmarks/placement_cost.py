"""The two placements that need an aligned student, gates and kl, and what they cost beside its alignment.

    python benchmarks/placement_cost.py --teacher MODEL --text FILE --out DIR     # on a GPU
    python benchmarks/placement_cost.py --teacher embedded --text FILE --out DIR --rehearse
    python benchmarks/placement_cost.py --record                                   # into results/figures.json

A student without attention, Kimi Delta Attention in every layer, is aligned in two stages as recipes do. `gates` and
`kl` then choose 7 layers by it, kl after a short training of each of the students in which one layer is restored.
DIR gets gates7.json and kl7.json, which window_table.py takes, and alignment.json with the stages' tokens and seconds:
those of the steps, compilation in them, without the start of a process and the preparation of data.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from figures import placement_cost_figures
from ledger import ROOT, gpu_machine, record_from_gpu

RAW = ROOT / "results/window/placements"
ALIGNED = ("qk_alignment", "block_alignment")
METHODS = {
    "gates": {"steps": 30},
    "kl": {"stage": "logit_distillation", "tokens": 65_536},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder of a Hugging Face model")
    parser.add_argument("--text", type=Path, help="JSON lines with the field text")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, default=1_500_000, help="of each stage of the alignment")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rehearse", action="store_true", help="few tokens, short sequences, on a CPU")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.record:
        record_from_gpu(RAW / "alignment.json", placement_cost_figures, "python benchmarks/placement_cost.py")
        return
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(arguments), sort_keys=False))
    run = out / "aligned"
    gendistill("convert", path, "--output", run)
    for stage in ALIGNED:
        gendistill("distill", path, "--output", run, "--stage", stage)
    stages = {stage: cost_of(run / f"{1 + place}-{stage}") for place, stage in enumerate(ALIGNED)}
    machine = {"gpu": None} if arguments.rehearse else gpu_machine()
    (out / "alignment.json").write_text(json.dumps({"machine": machine, "stages": stages}, indent=1) + "\n")
    student = run / f"{len(ALIGNED)}-{ALIGNED[-1]}" / "student"
    for method in arguments.only:
        size = {"layers": 2, "length": 256, "prompts": 4} if arguments.rehearse else {"layers": 7}
        keep = {"method": method, "student": str(student)} | size | METHODS[method]
        if arguments.rehearse and "tokens" in keep:
            keep["tokens"] = 4096
        # Each of the students that kl trains would be compiled anew, for two steps.
        overrides = (f"student.keep_attention={json.dumps(keep)}", "compile=false")
        gendistill("place", path, "--output", out / method, *overrides)
        shutil.copy(out / method / "placement.json", out / f"{method}7.json")


def recipe(arguments: argparse.Namespace) -> dict:
    """A student without attention, aligned and then distilled as recipes/qwen2.5-1.5b.yaml does."""
    length, rows = (128, 4) if arguments.rehearse else (1024, 16)
    tokens = 4096 if arguments.rehearse else arguments.tokens
    common = {"data": "text", "tokens": tokens, "sequence_length": length, "sequences_per_step": rows}
    aligned = common | {
        "micro_batch": rows // 2,
        "learning_rate": 1e-3,
        "schedule": {"shape": "cosine", "warmup": 0.1, "final": 0.01},
        "weight_decay": 0.0,
    }
    return {
        "name": "placement-cost",
        "teacher": arguments.teacher,
        "device": "cpu" if arguments.rehearse else "cuda",
        "student": {"keep_attention": [], "mixer": "kda", "log_decay_bound": -5.0},
        # Without attention a converted student is far from its teacher, which is not what is judged here.
        "conversion": {"max_loss": 30, "tokens": 16 * length, "sequence_length": length},
        "data": {"text": [{"path": str(arguments.text)}]},
        "stages": {
            "qk_alignment": aligned | {"objective": "mixer_l2", "train": ["mixer_qk", "mixer_conv", "mixer_gate"]},
            "block_alignment": aligned | {"objective": "block_l2", "train": ["mixer"]},
            "logit_distillation": common
            | {"objective": "forward_kl", "train": ["mixer", "mlp", "norm"], "micro_batch": 4, "learning_rate": 5e-5},
        },
        "evaluation": {"tasks": {"sums": {"kind": "last_number", "path": "embedded:arithmetic", "items": 1}}},
    }


def cost_of(stage: Path) -> dict[str, float]:
    """Tokens and seconds of a stage, by its metrics."""
    steps = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {"tokens": steps[-1]["tokens"], "seconds": round(sum(step["seconds"] for step in steps), 1)}


def gendistill(*arguments: object) -> None:
    call = [sys.executable, "-c", "from gendistill.cli import main; main()", *map(str, arguments)]
    subprocess.run(call, check=True)


if __name__ == "__main__":
    main()
