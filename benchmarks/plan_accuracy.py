"""How far `gendistill plan` is from what a stage then takes, memory and time, on one GPU and two shapes.

    python benchmarks/plan_accuracy.py --out results/gpu/plan_accuracy.json
    python benchmarks/plan_accuracy.py --out results/gpu/plan_accuracy.json --record    # into results/figures.json

For each shape: logit distillation of a pair with random weights, 4 rows of 2,048 tokens a step. Memory is the formula
in `gendistill.plan` (`Price.valid_mask`), time that of the steps of its probe; both are compared with the stage run by
`run.distill.distil_stage`, start-up and all, in a process of its own.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from cold_start import KEEP, SHAPES
from figures import plan_accuracy_figures
from ledger import gpu_machine, record_from_gpu

LENGTH, ROWS, BOUND = 2048, 4, -5.0
STAGE = "logit_distillation"


def make_recipe(folder: Path, shape: str, steps: int):
    """A recipe whose teacher is saved in folder/teacher with random weights and the embedded teacher's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gendistill.models.loading import load_tokenizer
    from gendistill.recipe.loading import parse_recipe

    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES[shape])
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False).save_pretrained(
            folder / "teacher"
        )
    load_tokenizer("embedded", config.vocab_size).save_pretrained(folder / "teacher")
    write_documents(folder / "text.jsonl")
    task = {"kind": "short_answer", "path": "embedded:facts"}
    settings = dict(
        name=shape,
        teacher=str(folder / "teacher"),
        student={"keep_attention": KEEP[shape], "log_decay_bound": BOUND},
        data={"text": [{"path": str(folder / "text.jsonl"), "epochs": 1000}]},
        stages={STAGE: stage_settings(steps)},
        evaluation={"tasks": {"facts": task}},
    )
    return parse_recipe(settings, origin="benchmark")


def stage_settings(steps: int) -> dict:
    return dict(
        objective="forward_kl",
        train=["mixer", "mlp", "norm"],
        data="text",
        tokens=steps * ROWS * LENGTH,
        sequence_length=LENGTH,
        sequences_per_step=ROWS,
        micro_batch=ROWS,
        learning_rate=1e-5,
        checkpoint_every=10 * steps,
    )


def write_documents(path: Path) -> None:
    """Embedded texts, 40 to a document: about as long as those of a usual corpus."""
    from gendistill.data.sources import read_documents
    from gendistill.recipe.data import Source

    texts = [document.content for document in islice(read_documents(Source(path="embedded:text"), 0), 8000)]
    documents = (" ".join(texts[i : i + 40]) for i in range(0, len(texts), 40))
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def stand_in_for_conversion(run) -> None:
    """The untrained student, without the measuring that a real conversion takes time for."""
    from gendistill.distill.objectives import unmeasured_conversion_report
    from gendistill.models.conversion import convert, weights_sha256

    folder = run.folder.student("conversion")
    student, _ = convert(run.teacher, run.config, seed=0)
    student.save_pretrained(folder)
    conversion_report = unmeasured_conversion_report(run.config) | {"weights_sha256": weights_sha256(folder)}
    run.folder.report("conversion").write_text(json.dumps(conversion_report))


def plan(recipe, folder: Path) -> dict:
    """What `gendistill plan` says of the stage."""
    from rich.console import Console

    from gendistill.run.probe import probe_stage
    from gendistill.run.run import Run

    run = Run(recipe, folder / "probe", Console(quiet=True))
    probe = probe_stage(run, STAGE)
    return {
        "planned_bytes": run.planner.price(recipe.stages[STAGE]).counted,
        "probed_bytes": probe.peak_bytes,
        "planned_seconds": 3600 * probe.hours(recipe.stages[STAGE]),
        "planned_step_seconds": probe.step_seconds,
    }


def run(recipe, folder: Path) -> dict:
    """What the stage takes, start-up included."""
    import torch
    from rich.console import Console

    from gendistill.run.distill import distil_stage
    from gendistill.run.run import Run

    run = Run(recipe, folder / "run", Console(quiet=True))
    stand_in_for_conversion(run)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    distil_stage(run, STAGE)
    log = run.folder.metrics(STAGE).read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in log]
    return {
        "measured_bytes": torch.cuda.max_memory_allocated(),
        "measured_seconds": sum(seconds),
        "measured_step_seconds": seconds,
    }


def measure(shape: str, steps: int) -> dict:
    """Both, each in a process of its own, as a user has it."""
    result = {"steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("plan", "run"):
            command = [sys.executable, __file__, "--child", part, shape, str(steps), folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            result |= json.loads(done.stdout.splitlines()[-1])
    return result


def replan(raw: dict) -> None:
    """What `plan` says today of stages that were measured before: its formula, and hours from the probe's steps."""
    import torch
    from transformers import AutoConfig

    from gendistill.compute import Compute
    from gendistill.models.families import student_config
    from gendistill.plan.price import Planner
    from gendistill.recipe.stage import Stage

    compute = Compute(device="cuda", dtype=torch.bfloat16, compiled=True, kernels=True)
    for shape in raw.keys() & SHAPES.keys():
        config = AutoConfig.for_model(**SHAPES[shape])
        planner = Planner(config, student_config(config, KEEP[shape], log_decay_bound=BOUND), compute)
        measured = raw[shape]
        measured["planned_bytes"] = planner.price(Stage(**stage_settings(measured["steps"]))).counted
        measured["planned_seconds"] = measured["steps"] * measured["planned_step_seconds"]


def child(part: str, shape: str, steps: str, folder: str) -> None:
    recipe = make_recipe(Path(folder), shape, int(steps))
    print(json.dumps({"plan": plan, "run": run}[part](recipe, Path(folder))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the results; other shapes in it are kept")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=1000, help="of the stage that is measured")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    parser.add_argument(
        "--replan", action="store_true", help="say anew what plan says of the stages in --out, anywhere"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    if arguments.replan:
        results = json.loads(arguments.out.read_text())
        replan(results)
        arguments.out.write_text(json.dumps(results) + "\n")
        return
    if arguments.record:
        return record_from_gpu(arguments.out, plan_accuracy_figures, "python benchmarks/plan_accuracy.py")
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for shape in arguments.shapes:
        results[shape] = measure(shape, arguments.steps)
        results["machine"] = gpu_machine()
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(shape, {key: value for key, value in results[shape].items() if "step_" not in key}, flush=True)


if __name__ == "__main__":
    main()
