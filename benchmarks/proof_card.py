"""The model card of a student of the proof, as `gendistill export` writes it, from what is committed of it alone.

    python benchmarks/proof_card.py                  # of K7-token-replies: results/proof/model-card.md

Results come from the records of window_table.py, stages from the run's recipe. Behind the card stands what else is
known of the student: answers under a longer window, and with its windows off. Weights are not kept; benchmarks/
proof_runs.py NAME trains the student again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from ledger import ROOT
from window_report import Lines, outcomes, read_models, retention_cell, scores

from gendistill.analysis.scores import Scores, TaskScore, paired_table
from gendistill.analysis.significance import compare
from gendistill.analysis.tables import to_markdown
from gendistill.bench.models import SHAPES
from gendistill.export.card import model_card
from gendistill.export.origin import Licence, Origin
from gendistill.files import write_atomically
from gendistill.models.configuration import GendistillConfig
from gendistill.models.families import student_config
from gendistill.models.modeling import GendistillForCausalLM

PROOF = ROOT / "results/proof"
TEACHER, SHAPE = "Qwen/Qwen2.5-Coder-1.5B-Instruct", "qwen2.5-1.5b"
LICENCE = {"license": "apache-2.0"}  # as its publisher states
# How a student was asked besides, by the end of its record's name.
ASKED_OTHERWISE = {"-window-1024": "a window of 1,024", "-without_window": "windows off"}
# Options of an item; of ARC's a few have three or five.
OPTIONS = {"arc_easy": 4, "arc_challenge": 4, "openbookqa": 4, "mmlu_redux": 4, "commonsense_qa": 5, "boolq": 2}
LEVEL = 0.05  # of McNemar's test
NOTE = (
    "No weights lie beside this card: `python benchmarks/proof_runs.py {name}` trains the student again. The teacher's "
    "own weights were made of a file of 4 bits a weight, so that its scores are not its publisher's."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "student", nargs="?", default="K7-token-replies", help="a name of results/proof/records and runs"
    )
    parser.add_argument("--out", type=Path, default=PROOF / "model-card.md")
    asked = parser.parse_args()
    write_atomically(asked.out, card_of(asked.student, PROOF))


def card_of(name: str, proof: Path) -> str:
    """The card of a student with a record and a run in the folder `proof`."""
    models = read_models(proof / "records")
    recipe = yaml.safe_load((proof / "runs" / name / "recipe.yaml").read_text())
    config = student_config(SHAPES[SHAPE], **recipe["student"])
    last = list(recipe["stages"])[-1]
    found = results(models["teacher"], models[name], last)
    origin = Origin(last, TEACHER, True, Licence(LICENCE, None), {}, recipe, found)
    card = model_card(origin, config, parameters(config))
    return f"{card}\n## Asked otherwise\n\n{otherwise(models, name)}\n\n{NOTE.format(name=name)}\n"


def results(teacher: Lines, student: Lines, stage: str) -> dict[str, Any]:
    """What scores.json of a run holds of its last student, on the tasks that both were asked."""
    asked = {line["task"] for line in student[1:]}
    tasks = [task for task in dict.fromkeys(line["task"] for line in teacher[1:]) if task in asked]
    theirs, ours = (Scores(stage, {task: counts(lines, task) for task in tasks}) for lines in (teacher, student))
    compared = compare(*(with_options(outcomes(lines, tasks, "strict")) for lines in (teacher, student)))
    label = f"last-{stage}"  # in the place of its number, which the run knows
    return {"paired": paired_table(theirs, {label: ours}), "significance": {label: compared}, "diagnostics": {}}


def with_options(records: dict[str, Lines]) -> dict[str, Lines]:
    """The same with as many options as an item of each task has, so that guessing is known."""
    for task, number in OPTIONS.items():
        options = list(range(number))
        for record in records.get(task, []):
            record |= {"candidates": options, "choices": options, "gold": [0]}
    return records


def counts(lines: Lines, task: str) -> TaskScore:
    items = [line for line in lines[1:] if line["task"] == task]
    records = [
        {
            "ranking_correct": line.get("ranked"),
            "generation_correct": line["strict"],
            "flexible_correct": line["flexible"],
            "parsed": line["parsed"] or None,  # whether there was something; what, is not kept
            "truncated": line["truncated"],
        }
        for line in items
    ]
    return TaskScore.from_records(records)


def parameters(config: GendistillConfig) -> int:
    with torch.device("meta"):
        model = GendistillForCausalLM._from_config(config)
    model.tie_weights()
    return sum(weight.numel() for weight in model.parameters())


def otherwise(models: dict[str, Lines], name: str) -> str:
    """A table of retention in percent, by task, of each way in which the student was asked, and where it loses."""
    rows = {"as above": scores(models["teacher"], models[name])}
    for end, how in ASKED_OTHERWISE.items():
        if name + end in models:
            rows[how] = scores(models["teacher"], models[name + end])
    tasks = list(rows["as above"])
    cells = [[task, *(retention_cell(found.get(task)) for found in rows.values())] for task in tasks]
    table = to_markdown(["retention by generation, percent", *rows], cells)
    lost = [
        f"- {how}: {', '.join(task for task in found if loses(found[task])) or 'nowhere'}"
        for how, found in rows.items()
    ]
    return "\n".join([table, "", f"Behind its teacher beyond chance (p < {LEVEL:g}):", "", *lost])


def loses(row: dict[str, Any]) -> bool:
    """Whether fewer replies are right than the teacher's, beyond chance; False where the teacher has none right."""
    retention, p = row["strict"]["retention"], row["strict"]["p"]
    return retention is not None and retention < 1 and p < LEVEL


if __name__ == "__main__":
    main()
