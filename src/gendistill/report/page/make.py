"""The page of one run, or of several of one teacher: which sections it has, and of what."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gendistill.analysis.diagnostics import diagnose
from gendistill.console import Console
from gendistill.errors import UserError
from gendistill.report.page.comparison import recipe_parts
from gendistill.report.page.design import layer_parts, speed_parts
from gendistill.report.page.evidence import (
    Compared,
    Judged,
    accuracy_figure,
    accuracy_table,
    difference_table,
    headline,
    judge,
    order_parts,
    reply_parts,
    retention_figure,
    retention_table,
)
from gendistill.report.page.examples import example_parts
from gendistill.report.page.parts import Page, Part, Section
from gendistill.report.page.reading import RunRecords, check_comparable, read_run
from gendistill.report.page.training import cost_parts, reply_kl_parts, training_parts
from gendistill.visible import visible

CONTROLS = {"0-conversion": "untrained student"}  # among the students of a run


def page_of_run(folder: Path) -> Page:
    """The page of a run: its student after every stage, the untrained one as the control."""
    run = read_run(folder, visible(folder.resolve().name))
    models = [
        Compared(label, run.teacher, run.records[label], run.recipe.seed, control=CONTROLS.get(label))
        for label in run.students
    ]
    judged = list(map(judge, models))
    title = f"{run.recipe.name}: {Path(run.recipe.teacher).name} → {_kind(run)}"
    lead, numbers = headline(judged, judged[-1:])
    return Page(title, lead, numbers, sections_of([run], judged, judged[-1:]))


def _kind(run: RunRecords) -> str:
    return "hybrid" if None in run.layers else "pure student"  # None: a layer that keeps attention


def page_of_runs(folders: Sequence[Path], console: Console) -> Page:
    """The page of several runs of one teacher, which are compared by their last students.

    Raises:
        UserError: see `read_run`, `check_comparable`; or a run is given twice.
    """
    names = names_of(folders)
    runs = []
    for number, (folder, name) in enumerate(zip(folders, names, strict=True), 1):
        runs.append(read_run(folder, name))
        console.print(f"{number} of {len(folders)} read: {folder}")
    check_comparable(runs)
    judged = [judge(Compared(run.name, run.teacher, run.result, run.recipe.seed)) for run in runs]
    lead, numbers = headline(judged, judged)
    teacher = Path(runs[0].recipe.teacher).name
    pairs = [(judged[0], other) for other in judged[1:]]
    sections = sections_of(runs, judged, judged, pairs=pairs)
    return Page(f"{len(runs)} runs of the teacher {teacher}", lead, numbers, sections)


def names_of(folders: Sequence[Path]) -> list[str]:
    """What tells folders apart: the last parts of their paths, as few as do.

    Raises:
        UserError: two are the same folder.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, own in zip(folders, parts, strict=True) if parts.count(own) > 1)
        raise UserError(f"{twice} is given twice; give each run once")
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return [visible("/".join(own[-length:])) for own in parts]


def sections_of(
    runs: Sequence[RunRecords],
    judged: Sequence[Judged],
    results: Sequence[Judged],
    *,
    pairs: Sequence[tuple[Judged, Judged]] = (),
    groups: Mapping[str, Sequence[RunRecords]] | None = None,
) -> list[Section]:
    """From what is asked for first to what it rests on; those without anything are left out.

    Args:
        judged: every model, `results` those that are results: all but controls and earlier stages.
        pairs: results that are compared, a reference first.
        groups: see `training_parts`; all runs together if not given.
    """
    teacher = {task: diagnose(items) for task, items in runs[0].teacher.items()}
    names = [each.name for each in results]
    first = [*results, *(each for each in reversed(judged) if each.name not in names)]
    tested = [each for each in first if each.name in names or each.model.control is not None]
    by_task = [accuracy_figure(results[0])] if len(results) == 1 else []
    sections: dict[str, list[Part]] = {
        # Not of every stage of a run: those would be many tests, some of them significant by chance.
        "Retention": [retention_figure(judged), *by_task, retention_table(tested), accuracy_table(first)],
        "Differences": [difference_table(pairs)] if pairs else [],
        # Of a run its stages, the untrained student too; else of what could be chosen: nobody chooses a control.
        "Rank flips": order_parts(judged if len(results) == 1 else results),
        "Replies": reply_parts(first, names, teacher),
        "Training": training_parts(runs, {"": runs} if groups is None else groups),
        "Reply-KL": reply_kl_parts(runs),
        "Layers": layer_parts(runs),
        "Speed": speed_parts(runs),
        "Cost": cost_parts(runs),
        "Examples": example_parts([each.model for each in results]),
        "Recipes and versions": recipe_parts(runs),
    }
    return [Section(title, parts) for title, parts in sections.items() if parts]
