"""The page of one run, or of several of one teacher: which sections it has, and of what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gendistill.console import Console
from gendistill.errors import UserError
from gendistill.report.evaluations import TEACHER
from gendistill.report.page.comparison import recipe_parts
from gendistill.report.page.design import layer_parts, speed_parts
from gendistill.report.page.evidence import (
    Compared,
    Judged,
    accuracy_figure,
    accuracy_table,
    judge,
    retention_table,
)
from gendistill.report.page.examples import example_parts
from gendistill.report.page.parts import Page, Part, Section
from gendistill.report.page.reading import RunRecords, check_comparable, read_run
from gendistill.report.page.replies import reply_parts
from gendistill.report.page.rows import Row, Rows, difference_parts, headline, order_parts, retention_figure, row_of
from gendistill.report.page.training import cost_parts, reply_kl_parts, training_parts
from gendistill.visible import visible

CONTROLS = {"0-conversion": "untrained student"}  # among the students of a run


@dataclass(frozen=True)
class Material:
    """What the sections are made of.

    Attributes:
        headed: rows of the headline's plot.
        judged: every model with every seed, results before controls and earlier stages.
        results: names of those that are results.
        groups: runs whose losses share a panel, by what the panels are called.
        first: sections of the page's own, before the others.
    """

    runs: Sequence[RunRecords]
    rows: Rows
    headed: Sequence[Row]
    judged: Sequence[Judged]
    results: Sequence[str]
    groups: Mapping[str, Sequence[RunRecords]]
    first: Mapping[str, Sequence[Part]] = field(default_factory=dict)


def page_of_run(folder: Path) -> Page:
    """The page of a run: its student after every stage, the untrained one as the control."""
    run = read_run(folder, visible(folder.resolve().name))
    seed = run.recipe.seed  # of the bootstrap, as in the run's own summary
    judged = [
        judge(Compared(label, run.teacher, run.records[label], seed, CONTROLS.get(label))) for label in run.students
    ]
    rows = Rows({label: {seed: run.records[label]} for label in (TEACHER, *run.students)}, TEACHER, seed)
    # The last stage's student is the run's result; those before it are no rivals of it.
    result, *before = reversed(judged)
    lead, numbers = headline([row_of(each) for each in (result, *before) if each is result or each.model.control])
    kind = "hybrid" if None in run.layers else "pure student"  # None: a layer that keeps attention
    material = Material([run], rows, list(map(row_of, judged)), [result, *before], [result.name], {"": [run]})
    return Page(f"{run.recipe.name}: {Path(run.recipe.teacher).name} → {kind}", lead, numbers, sections_of(material))


def page_of_runs(folders: Sequence[Path], console: Console) -> Page:
    """The page of several runs of one teacher, which are compared by their last students.

    Raises:
        UserError: see `read_run`, `check_comparable`; or a run is given twice.
    """
    runs = []
    for number, (folder, name) in enumerate(zip(folders, names_of(folders), strict=True), 1):
        runs.append(read_run(folder, name))
        console.print(f"{number} of {len(folders)} read: {folder}")
    check_comparable(runs)
    judged = [judge(Compared(run.name, run.teacher, run.result, run.recipe.seed)) for run in runs]
    # One draw of items for all: runs of several seeds are an ablation's, whose items its seeds draw.
    by_seed = {TEACHER: {0: runs[0].teacher}} | {run.name: {0: run.result} for run in runs}
    rows = Rows(by_seed, runs[0].name)
    headed = [rows.row(run.name) for run in runs]
    lead, numbers = headline(headed)
    # The first is what the others are compared with, and the page says so above each table.
    material = Material(runs, rows, headed, judged, [run.name for run in runs], {"": runs})
    # By the recipe's own word for it: a folder's last part, or a hub id's.
    title = f"{len(runs)} runs of the teacher {Path(runs[0].recipe.teacher).name}"
    return Page(title, lead, numbers, sections_of(material))


def names_of(folders: Sequence[Path]) -> list[str]:
    """What tells folders apart: the last parts of their paths, as few as do.

    Raises:
        UserError: two are the same folder, or one would be called as the teacher is.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, own in zip(folders, parts, strict=True) if parts.count(own) > 1)
        raise UserError(f"{twice} is given twice; give each run once")
    length = 1
    # "teacher" is what the page calls the teacher; a run folder of that name is called by its parent's as well.
    while len({own[-length:] for own in parts}) < len(parts) or (TEACHER,) in {own[-length:] for own in parts}:
        length += 1
    return [visible("/".join(own[-length:])) for own in parts]


def sections_of(material: Material) -> list[Section]:
    """From what is asked for first to what it rests on; those without anything are left out."""
    runs, judged, results = material.runs, material.judged, material.results
    of_results = [each for each in judged if each.name in results]
    # Not of every stage of a run: those would be many tests, some of them significant by chance.
    tested = [each for each in judged if each.name in results or each.model.control is not None]
    single = len(results) == 1
    # A single run's retention is drawn anew over items, as in its summary; rows of seeds over those as well.
    retention = [retention_figure(material.headed, material.rows.over if not single else "items")]
    if single:  # of several runs this would be a plot of dozens of rows, which the table has
        retention.append(accuracy_figure(of_results[0]))
    # Of a single run the stages are no rivals: what differs is told by its losses and by their order.
    differences = [] if single else difference_parts(material.rows)
    sections: dict[str, Sequence[Part]] = {
        **material.first,
        "Retention": [*retention, *differences, retention_table(tested, means=single), accuracy_table(judged)],
        "Rank flips": order_parts(material.rows),
        "Replies": reply_parts(judged, results),
        "Training": training_parts(runs, material.groups),
        "Reply-KL": reply_kl_parts(runs),
        "Layers": layer_parts(runs),
        "Speed": speed_parts(runs),
        "Cost": cost_parts(runs),
        "Examples": example_parts(of_results),
        "Recipes and versions": recipe_parts(runs, results),
    }
    return [Section(title, parts) for title, parts in sections.items() if parts]
