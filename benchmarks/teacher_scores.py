"""Scores of a teacher on twelve tasks, by ranking and by generation, with intervals.

    python benchmarks/teacher_scores.py MODEL DATA --out results/gpu/scores/NAME.json [--items 500]

DATA holds a folder for each task with SPLIT.jsonl.gz. Tasks that have training questions there are asked with five
few-shot examples, the others with none. Items are drawn by a fixed seed, so models are asked the same. What is written
holds no question: counts, 95 % intervals (Wilson), figures of the diagnoses, and a digit for each item: 1 if it is
right.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from ledger import gpu_machine

SPLITS = {"commonsense_qa": "dev", "boolq": "dev", "hellaswag": "val", "ifeval": "input_data"}  # the others' is "test"
SHOTS = {
    "arc_easy": "arc_easy/train",
    "arc_challenge": "arc_challenge/train",
    "openbookqa": "openbookqa/train",
    "mmlu_redux": "mmlu/dev",
    "gsm8k": "gsm8k/train",
}
TASKS = [*SHOTS, "commonsense_qa", "hellaswag", "winogrande", "piqa", "boolq", "humaneval", "ifeval"]
PROTOCOLS = ("ranking_correct", "generation_correct", "flexible_correct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a Hugging Face model")
    parser.add_argument("data", type=Path, help="folder of question sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=500, help="of each task, or all if there are fewer")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()

    import torch

    from gendistill.evaluate.items import load_items
    from gendistill.evaluate.run import evaluate_model
    from gendistill.models.loading import load_model, load_tokenizer
    from gendistill.recipe.evaluation import Evaluation, make_task

    model = load_model(arguments.model, torch.bfloat16, arguments.device)
    tokenizer = load_tokenizer(arguments.model, model.config.vocab_size)
    on = gpu_machine() if arguments.device == "cuda" else {}
    results = {"machine": on, "model": Path(arguments.model).name, "tasks": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            settings = task_settings(name, arguments.data)
            count = min(arguments.items, len(load_items(name, make_task(**settings), 0, tokenizer)))
            evaluation = Evaluation.model_validate({"tasks": {name: settings | {"items": count}}})
            began = time.perf_counter()
            evaluate_model(model, tokenizer, evaluation, seed=0, folder=Path(folder), label="model", progress=False)
            seconds = time.perf_counter() - began
            lines = (Path(folder) / "model" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
            scores = summary([json.loads(line) for line in lines if line])
            shots = getattr(evaluation.tasks[name], "shots", 0)  # instructions have none
            results["tasks"][name] = {"shots": shots, "seconds": round(seconds, 2)} | scores
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            print(name, {key: value for key, value in scores.items() if key != "outcomes"}, flush=True)


def task_settings(name: str, data: Path) -> dict:
    settings = {"task": name, "path": str(data / name / f"{SPLITS.get(name, 'test')}.jsonl.gz")}
    return settings | ({"shots_path": str(data / f"{SHOTS[name]}.jsonl.gz")} if name in SHOTS else {})


def summary(records: list[dict]) -> dict:
    from gendistill.analysis.diagnostics import diagnose
    from gendistill.analysis.scores import wilson

    found: dict = {"items": len(records), "outcomes": {"ids": [record["id"] for record in records]}}
    for protocol in PROTOCOLS:
        right = [record[protocol] for record in records]
        if None in right:
            continue
        interval = [round(bound, 4) for bound in wilson(sum(right), len(right))]
        found[protocol.removesuffix("_correct")] = {"share": round(sum(right) / len(right), 4), "interval": interval}
        found["outcomes"][protocol] = "".join("01"[each] for each in right)
    return found | {"diagnostics": diagnose(records).to_dict()}


if __name__ == "__main__":
    main()
