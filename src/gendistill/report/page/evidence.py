"""What was kept of the teacher: accuracies, retention, gap, rank flips and replies, all by `gendistill.analysis`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.analysis.ablation import holm
from gendistill.analysis.diagnostics import Diagnostics, diagnose
from gendistill.analysis.scores import ACCURACIES, MEAN, Scores, TaskScore, paired_table
from gendistill.analysis.significance import LEVEL, PROTOCOLS, compare
from gendistill.report.evaluations import TEACHER
from gendistill.report.page import charts
from gendistill.report.page.parts import (
    Column,
    Figure,
    Interval,
    Table,
    count,
    decimals,
    p_value,
    percent,
    points,
)
from gendistill.report.page.reading import Records, items_of

# Shares as measured; `percent` multiplies by a hundred when they are shown.
INTERVALS = f"Intervals are of {100 * LEVEL:.0f} %"
# Places of styles, see `drawing.style`.
STYLES = {"generation": 0, "ranking": 1}  # of the protocols, the same in every plot

MDE_NOTE = "Min. detectable: the difference that so many items show four times in five."


@dataclass(frozen=True)
class Compared:
    """A model beside its teacher, on the same items.

    Attributes:
        name: what the page calls it.
        control: what it is if it is no result, but something to hold results against: "untrained student".
        seed: of the bootstrap.
    """

    name: str
    teacher: Records
    student: Records
    seed: int = 0
    control: str | None = None


@dataclass(frozen=True)
class Judged:
    """The same with what `gendistill.analysis` finds of it: rows of `paired_table` and `compare` by task or mean."""

    model: Compared
    paired: Mapping[str, Mapping[str, Any]]
    significance: Mapping[str, Mapping[str, Any]]
    diagnostics: Mapping[str, Diagnostics]  # of the student, by task

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def tasks(self) -> list[str]:
        return list(self.model.teacher)

    def retention(self, protocol: str, task: str = MEAN) -> Interval | None:
        """With its bootstrap interval; None where there is no ranking or the teacher got nothing right."""
        return interval(self.significance[task][protocol]["retention"])

    def gap(self, task: str = MEAN) -> Interval | None:
        return interval(self.significance[task]["gap"])


def by_items(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Models that were asked the same, by what tells the groups apart: "" for a single one, else ", seed 1"."""
    # By the items and not by the seed: a task may be asked whole, and then all seeds ask the same.
    groups: dict[Any, list[Judged]] = {}
    for each in judged:
        groups.setdefault(items_of(each.model.teacher), []).append(each)
    if len(groups) == 1:
        return {"": list(judged)}
    return {f", seed {group[0].model.seed}": group for group in groups.values()}


def judge(model: Compared) -> Judged:
    teacher = Scores(TEACHER, {task: TaskScore.from_records(items) for task, items in model.teacher.items()})
    student = Scores(model.name, {task: TaskScore.from_records(items) for task, items in model.student.items()})
    rows = paired_table(teacher, {model.name: student})[model.name]
    # The same calls as for scores.json, with the same seed: the page and the run's summary say one thing.
    return Judged(
        model=model,
        paired={row["task"]: row for row in rows},
        significance=compare(model.teacher, model.student, model.seed),
        diagnostics={task: diagnose(items) for task, items in model.student.items()},
    )


def interval(estimate: Mapping[str, Any]) -> Interval | None:
    """Of an `Estimate` as JSON has it."""
    return None if estimate["value"] is None else Interval(estimate["value"], *estimate["interval"])


def scaled(found: Interval) -> Interval:
    """A share in percent."""
    return Interval(*(None if each is None else 100 * each for each in found))


def accuracy_table(judged: Sequence[Judged]) -> Table:
    """Accuracy of teacher and student on each task, under both protocols."""
    # Shares as measured, for the files; in percent for a reader.
    columns = [Column("model", "model"), Column("task", "task"), Column("items", "items", count)]
    for accuracy in ACCURACIES:
        for who in ("teacher", "student"):
            columns.append(Column(f"{accuracy}_{who}", f"{accuracy}: {who}, %", percent))
    columns.append(Column("unparsed", "unparsed, %", percent))
    rows = []
    for each in judged:
        for task, row in each.paired.items():
            cells = [_accuracy(row[protocol], who) for protocol in PROTOCOLS for who in ("teacher", "student")]
            # The same replies graded once more: a third pair of intervals would say little, and fill the page.
            cells += [row["flexible"][who] for who in ("teacher", "student")]
            rows.append([each.name, task, row["items"], *cells, row["unparsed"]])
    note = (
        "Generation is graded by strict extraction, flexible are the same replies by flexible extraction. "
        f"{INTERVALS} (Wilson), of single tasks; means are over tasks of equal weight. Unparsed: of the "
        "student's replies, by strict extraction."
    )
    return Table("accuracy", "Accuracy under both protocols", columns, rows, note)


def _accuracy(compared: Mapping[str, Any], who: str) -> Interval | None:
    """None if it is not ranked. Means have no interval here: theirs takes a bootstrap, and is that of retention."""
    if compared[who] is None:
        return None
    # A key that means lack, and None where a task is not ranked.
    return Interval(compared[who], *(compared.get(f"{who}_interval") or (None, None)))


def accuracy_figure(judged: Judged) -> Figure:
    """Accuracy by task: teacher and student, under both protocols."""
    series = []
    # Colour says the protocol, hollow or filled who it is: four colours would say neither.
    for protocol in reversed(PROTOCOLS):
        for who in ("teacher", "student"):
            found = [_accuracy(judged.paired[task][protocol], who) for task in judged.tasks]
            if any(one is not None for one in found):
                values = [None if one is None else scaled(one) for one in found]
                series.append(charts.Dots(f"{who}, {protocol}", values, STYLES[protocol], hollow=who == "teacher"))
    # All numbers in words: who does not see the plot reads them.
    said = "; ".join(
        f"{task}: " + ", ".join(f"{own.name} {own.values[number].value:.1f}" for own in series if own.values[number])
        for number, task in enumerate(judged.tasks)
    )
    svg = charts.dots(judged.tasks, series, x_label="accuracy, percent")
    title = f"Accuracy by task: {judged.name}"
    return Figure("accuracy_by_task", title, svg, f"Accuracy in percent. {said}", f"{INTERVALS} (Wilson).")


def retention_table(judged: Sequence[Judged], *, means: bool) -> Table:
    """Retention, gap, tests and the minimum detectable effect.

    Args:
        means: of the tasks as well; a comparison over seeds has means of its own.
    """
    columns = [
        Column("model", "model"),
        Column("task", "task"),
        Column("ranking_retention", "ranking: retention, %", percent),
        Column("generation_retention", "generation: retention, %", percent),
        Column("generation_above_chance", "above chance, %", percent),  # of what guessing does not give
        Column("gap", "gap, points", points),
        Column("p", "p", p_value),
        Column("p_holm", "p, Holm", p_value),  # for all tests of the table together
        Column("minimum_detectable_effect", "min. detectable, points", decimals(1)),
    ]
    found = [
        (each, task, row) for each in judged for task, row in each.significance.items() if means or task in each.tasks
    ]
    # Means are over unlike items, on which there is no test.
    tested = {number: row["generation"]["p"] for number, (_, _, row) in enumerate(found) if "p" in row["generation"]}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    rows = []
    for number, (each, task, row) in enumerate(found):
        generation = row["generation"]
        rows.append(
            [
                each.name,
                task,
                interval(row["ranking"]["retention"]),
                interval(generation["retention"]),
                generation["corrected_retention"],
                interval(row["gap"]),
                generation.get("p"),
                corrected.get(number),
                generation.get("minimum_detectable_effect"),
            ]
        )
    note = (
        f"{INTERVALS}, by a paired bootstrap over items. Above chance: retention, by generation, of the accuracy "
        "beyond guessing. Gap: retention by ranking minus by generation. p: McNemar's exact test of student against "
        f"teacher on the replies; Holm: corrected for the {len(tested)} tests of this table. {MDE_NOTE}"
    )
    return Table("retention", "Retention, gap and significance", columns, rows, note)
