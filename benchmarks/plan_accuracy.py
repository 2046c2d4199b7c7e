"""How far `gendistill plan` is from what a stage then takes, memory and time, on one GPU and two shapes.

    python benchmarks/plan_accuracy.py --out results/gpu/plan_accuracy.json
    python benchmarks/plan_accuracy.py --out results/gpu/plan_accuracy.json --record    # into results/figures.json

For each shape: logit distillation of a pair with random weights, 4 rows of 2,048 tokens a step. Memory is the formula
in `gendistill.plan`, time its probe of 20 steps; both are compared with the stage run by `Run.distil`. Another probe
compiles everything before, so that neither side pays for that.
"""

import argparse
import gc
import json
import tempfile
from itertools import islice
from pathlib import Path

from cold_start import KEEP, SHAPES
from figures import commit, gpu_machine, plan_accuracy_figures, record

LENGTH, ROWS, BOUND = 2048, 4, -5.0


def make_recipe(folder: Path, shape: str, steps: int):
    """A recipe whose teacher is saved in folder/teacher with random weights and the embedded teacher's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gendistill.models.loading import load_tokenizer
    from gendistill.recipe import parse_recipe

    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES[shape])
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "teacher")
    load_tokenizer("embedded", config.vocab_size).save_pretrained(folder / "teacher")
    write_documents(folder / "text.jsonl")
    stage = dict(
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
    task = {"kind": "short_answer", "path": "embedded:facts"}
    settings = dict(
        name=shape,
        teacher=str(folder / "teacher"),
        student={"keep_attention": KEEP[shape], "log_decay_bound": BOUND},
        data={"text": [{"path": str(folder / "text.jsonl")}]},
        stages={"logit_distillation": stage},
        evaluation={"tasks": {"facts": task}},
    )
    return parse_recipe(settings, origin="benchmark")


def write_documents(path: Path) -> None:
    """Embedded texts, 40 to a document: about as long as those of a usual corpus."""
    from gendistill.data.sources import read_documents
    from gendistill.recipe import Source

    texts = [document.content for document in islice(read_documents(Source(path="embedded:text"), 0), 8000)]
    documents = (" ".join(texts[i : i + 40]) for i in range(0, len(texts), 40))
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def stand_in_for_conversion(run) -> None:
    """The untouched student, without the measuring that a real conversion takes time for."""
    from gendistill.models.conversion import convert, weights_sha256
    from gendistill.pipeline import CERTIFICATE

    folder = run.folder.student("conversion")
    student, _ = convert(run.teacher, run.config, seed=0)
    student.save_pretrained(folder)
    powers = {"attention_power": 1.0, "update_power": 1.0, "hidden_power": 1.0}
    layers = [{"layer": i} | powers for i in run.config.layers_of_type("linear_attention")]
    certificate = {"layers": layers, "weights_sha256": weights_sha256(folder)}
    (folder / CERTIFICATE).write_text(json.dumps(certificate))


def measure(shape: str, steps: int) -> dict:
    import torch
    from rich.console import Console

    from gendistill.pipeline import Run

    name = "logit_distillation"
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        recipe = make_recipe(folder, shape, steps)
        stage = recipe.stages[name]
        quiet = Console(quiet=True)
        Run(recipe, folder / "compiling", quiet).probe(name)
        gc.collect()
        probe = Run(recipe, folder / "probe", quiet).probe(name)
        gc.collect()
        run = Run(recipe, folder / "run", quiet)
        stand_in_for_conversion(run)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run.distil(name)
        log = (run.folder.point(name) / "metrics.jsonl").read_text().splitlines()
        return {
            "steps": steps,
            "planned_bytes": run.planner.price(stage).total,
            "probed_bytes": probe.peak_bytes,
            "measured_bytes": torch.cuda.max_memory_allocated(),
            "planned_seconds": 3600 * probe.hours(stage),
            "measured_seconds": sum(json.loads(line)["seconds"] for line in log),
            "measured_step_seconds": [json.loads(line)["seconds"] for line in log],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for the results; other shapes in it are kept")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=150, help="of the stage that is measured")
    parser.add_argument("--record", action="store_true", help="put the results in --out into results/figures.json")
    arguments = parser.parse_args()
    if arguments.record:
        machine = json.loads(arguments.out.read_text())["machine"]
        return record(
            plan_accuracy_figures(arguments.out.parent),
            "python benchmarks/plan_accuracy.py",
            hardware=f"1x {machine['gpu']}",
            versions={"gendistill": commit()} | machine["versions"],
            measured=machine["measured"],
        )
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for shape in arguments.shapes:
        results[shape] = measure(shape, arguments.steps)
        results["machine"] = gpu_machine()
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(shape, {key: value for key, value in results[shape].items() if "step_" not in key}, flush=True)


if __name__ == "__main__":
    main()
