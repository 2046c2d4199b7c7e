"""The last step: what the others left in the run folder, gathered for the summary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gendistill.analysis.scores import Scores
from gendistill.errors import UserError
from gendistill.files import SUMS, damage_of, read_json, read_jsonl
from gendistill.models.loading import load_config
from gendistill.placement.resolve import placed
from gendistill.placement.result import read_result
from gendistill.report.summary import Results, write_summary
from gendistill.run.folder import RunFolder


def summarise(folder: RunFolder, teacher: Scores, students: Mapping[str, Scores]) -> Path:
    """Writes summary.md, scores.json and loss.svg into the run folder; returns the first one's path.

    Args:
        students: scores by label ("0-conversion", ...), in the order of the run; the last one is the result.
    """
    results = Results(
        root=folder.root,
        recipe=placed(folder.recipe, load_config(folder.recipe.teacher), folder.placement),
        # Of the untrained student, whatever stage is the last.
        conversion_report=folder.read_report("conversion"),
        teacher=teacher,
        students=students,
        records={label: _records(folder, label) for label in ("teacher", *students)},
        metrics=_metrics(folder),
        evaluation=folder.evaluation,
        placement=read_result(folder.placement) if folder.placement.is_file() else None,
        reply_kl={folder.label(stage): read_json(path)["reply_kl"] for stage, path in _reply_kls(folder)},
    )
    return write_summary(results)


def _reply_kls(folder: RunFolder) -> list[tuple[str, Path]]:
    paths = [(stage, folder.reply_kl(stage)) for stage in folder.stages]
    return [(stage, path) for stage, path in paths if path.exists()]


def _records(folder: RunFolder, label: str) -> dict[str, list[dict[str, Any]]]:
    """Records of each item, by task; in the order of the items, which is the same for every model."""
    tasks = folder.recipe.evaluation.tasks
    return {task: read_jsonl(folder.evaluation / label / f"{task}.jsonl") for task in tasks}


def _metrics(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """Console of metrics.jsonl, by stage, of the stages that have run."""
    found = {}
    # A run that evaluates its conversion only has trained nothing, and a stage killed at once has an empty file.
    for name in folder.recipe.stages:
        path = folder.metrics(name)
        if not path.exists():
            continue
        # Stages of earlier versions are not sealed.
        if (path.parent / SUMS).exists() and folder.has_student(name):
            damage = damage_of(path.parent, only=path.name)
            if damage is not None:
                raise UserError(
                    f"{path.parent}: {damage}. Delete {path.name} there and run again for a summary without its curve: "
                    "students and scores do not depend on it."
                )
        if lines := read_jsonl(path):
            found[name] = lines
    return found
