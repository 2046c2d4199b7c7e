"""Run folders as a run leaves them, made by hand: records, metrics and reports, without a model."""

import json
from copy import deepcopy
from pathlib import Path

import yaml

from cli_tools import RECIPE
from gendistill.files import file_sha256, seal, write_jsonl
from gendistill.recipe.loading import parse_recipe
from gendistill.recipe.reading import signed
from record_maker import choice_record, free_record

MIXERS = ["kda", None, "kda", None]  # attention in every second layer
MACHINE = {
    "device": "NVIDIA H200",
    "processes": 8,
    "versions": {"gendistill": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
}


def choices(right, ranked, items=24, **changes):
    """So many items of which the first `right` are answered, and the first `ranked` ranked, as they should be."""
    made = []
    for number in range(items):
        gold = number % 4
        letter = "ABCD"[gold if number < right else (gold + 1) % 4]
        place = gold if number < ranked else (gold + 1) % 4
        made.append(choice_record(number, gold, reply=letter, parsed=letter, ranked=place, **changes))
    return made


def programs(right, items=10):
    return [free_record(number, number < right) for number in range(items)]


def metrics(tokens=1024, steps=6, first=1.0, seconds=0.5):
    """Lines of metrics.jsonl whose loss falls from `first`, with records held out before and after."""
    lines = [
        dict(step=step, tokens=tokens * step // steps, loss=first / step, seconds=seconds, held_out_loss=None)
        for step in range(1, steps + 1)
    ]
    lines[0]["held_out_loss_before"] = 1.25 * first
    lines[-1]["held_out_loss"] = 0.25 * first
    return lines


def make_run(root: Path, models, *, machine=MACHINE, teacher="embedded", seed=0, **settings) -> Path:
    """Writes a run of the tiny recipe's last stage.

    Args:
        models: records by label and task; "teacher", "0-conversion", "1-logit_distillation".
        machine: of the stage's report; None as before one was recorded.
        settings: sections of the recipe to change.
    """
    stages = {"logit_distillation": RECIPE["stages"]["logit_distillation"]}
    kinds = {"choice": "multiple_choice", "programs": "code"}
    tasks = {task: dict(kind=kinds[task], path=f"{task}.jsonl", max_new_tokens=8) for task in models["teacher"]}
    changed = dict(name="made", teacher=teacher, seed=seed, stages=stages, evaluation=dict(tasks=tasks)) | settings
    recipe = parse_recipe(RECIPE | changed, "test")
    root.mkdir(parents=True)
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    (root / "recipe.yaml").write_text(signed(resolved))
    for label, by_task in models.items():
        for task, records in by_task.items():
            write_records(root / "evaluation" / label, task, records)
    for label in ("0-conversion", "1-logit_distillation"):
        student = root / label / "student"
        student.mkdir(parents=True)
        (student / "config.json").write_text(json.dumps({"mixers": MIXERS}))
    report = {"stage": "logit_distillation"} | ({} if machine is None else {"machine": machine})
    (student / "stage_report.json").write_text(json.dumps(report))
    write_jsonl(root / "1-logit_distillation/metrics.jsonl", metrics())
    seal(root / "1-logit_distillation")
    return root


def write_records(folder: Path, task, records):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}.jsonl"
    write_jsonl(path, records)
    (folder / f"{task}.meta.json").write_text(json.dumps({"records": file_sha256(path)}))


def three_models(student):
    """A teacher that is right on nearly all, an untrained student that is not, and a student."""
    return {
        "teacher": {"choice": choices(22, 23), "programs": programs(9)},
        "0-conversion": {"choice": choices(5, 12), "programs": programs(0)},
        "1-logit_distillation": deepcopy(student),
    }
