"""Scores, and the comparison of a student with its teacher under both protocols.

Accuracies are shares (0 to 1); differences and gaps are percentage points.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gendistill.errors import UserError

MEAN = "mean"
MEAN_OF_ALL = "mean of all"
ACCURACIES = ("ranking", "generation", "flexible")  # of every task and model; generation is by strict extraction


@dataclass(frozen=True)
class TaskScore:
    """Counts over the items of one task. A truncated reply ran out of its token budget; it may still be right.

    `ranking_correct` is None if the task is not ranked. `generation_correct` counts replies graded by strict
    extraction, `flexible_correct` by flexible extraction.
    """

    items: int
    ranking_correct: int | None
    generation_correct: int
    flexible_correct: int
    unparsed: int  # by strict extraction
    truncated: int

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> "TaskScore":
        """Counts the per-item records that `evaluate_model` writes."""
        records = list(records)
        ranked = [record["ranking_correct"] for record in records]
        return cls(
            items=len(records),
            # A task is ranked as a whole or not at all: one None stands for the task.
            ranking_correct=None if None in ranked else sum(ranked),
            generation_correct=sum(record["generation_correct"] for record in records),
            flexible_correct=sum(record["flexible_correct"] for record in records),
            # What flexible extraction finds beyond this is not counted here, so that it cannot hide a lost format.
            unparsed=sum(record["parsed"] is None for record in records),
            truncated=sum(record["truncated"] for record in records),
        )

    @property
    def ranking(self) -> float | None:
        return None if self.ranking_correct is None else self.ranking_correct / self.items

    @property
    def generation(self) -> float:
        return self.generation_correct / self.items

    @property
    def flexible(self) -> float:
        return self.flexible_correct / self.items

    @property
    def unparsed_rate(self) -> float:
        return self.unparsed / self.items

    @property
    def truncated_rate(self) -> float:
        return self.truncated / self.items


@dataclass(frozen=True)
class Scores:
    """All tasks of one model. Means are over tasks, each with the same weight."""

    label: str  # "teacher", or a student's stage: "0-conversion"
    tasks: dict[str, TaskScore]

    def mean(self, value: Callable[[TaskScore], float]) -> float:
        return sum(map(value, self.tasks.values())) / len(self.tasks)

    def of(self, tasks: Iterable[str]) -> "Scores":
        """The same model on some of its tasks."""
        # In the given order: teacher and student then show theirs in the same one.
        return Scores(self.label, {task: self.tasks[task] for task in tasks})

    @property
    def paired(self) -> "Scores":
        """On the tasks behind the mean that compares ranking with generation, see `means`."""
        return self.of(means(self.ranked)[MEAN])

    @property
    def ranked(self) -> dict[str, bool]:
        """Whether each task is ranked, beside being generated."""
        return {task: score.ranking is not None for task, score in self.tasks.items()}

    @property
    def ranking(self) -> float | None:
        """Over the ranked tasks; None if there are none."""
        # Not `mean`: a task that is not ranked has no accuracy that could be averaged, and 0 would be wrong.
        ranked = [score.ranking for score in self.tasks.values() if score.ranking is not None]
        return sum(ranked) / len(ranked) if ranked else None

    @property
    def generation(self) -> float:
        return self.mean(lambda task: task.generation)

    @property
    def flexible(self) -> float:
        return self.mean(lambda task: task.flexible)

    @property
    def unparsed_rate(self) -> float:
        return self.mean(lambda task: task.unparsed_rate)

    @property
    def truncated_rate(self) -> float:
        return self.mean(lambda task: task.truncated_rate)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Scores":
        return cls(data["label"], {name: TaskScore(**counts) for name, counts in data["tasks"].items()})


def means(ranked: Mapping[str, bool]) -> dict[str, list[str]]:
    """The means that a comparison shows, each with its tasks.

    Ranking and generation are compared on the tasks that have both: that is MEAN. If some tasks are not ranked,
    MEAN_OF_ALL is by generation alone; if none is ranked, MEAN is.
    """
    both = [task for task, is_ranked in ranked.items() if is_ranked]
    if len(both) in (0, len(ranked)):
        return {MEAN: list(ranked)}
    # A ranking mean over some tasks beside a generation mean over all would show a gap between the tasks.
    return {MEAN: both, MEAN_OF_ALL: list(ranked)}


def wilson(correct: int, items: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of an accuracy, 95 % by default (Wilson 1927): it holds at 0 and 1, and for few items."""
    share = correct / items
    spread = z * math.sqrt(share * (1 - share) / items + (z / (2 * items)) ** 2)
    middle = share + z * z / (2 * items)  # drawn towards a half, the more so the fewer items there are
    scale = 1 + z * z / items
    # Rounding would carry the bounds of none and of all just beyond what a share can be.
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def retention(teacher: float | None, student: float | None) -> float | None:
    """The student's accuracy over the teacher's; None where the teacher has none."""
    return student / teacher if teacher else None  # 0 as well as None: nothing over nothing is no figure


def paired_table(teacher: Scores, students: Mapping[str, Scores]) -> dict[str, list[dict[str, Any]]]:
    """Compares the students of several stages of a run with their teacher.

    Returns:
        For each student a row per task, then those of `means`, whose retention is the ratio of the mean accuracies.
        A row holds, ready for JSON: "task"; "ranking", "generation" (strict extraction) and "flexible", each with
        "teacher", "student", "retention", "difference" (student - teacher, points) and for single tasks the 95 %
        intervals "teacher_interval" and "student_interval", all None where there is no ranking; "gap" = ranking
        retention - generation retention, in points; "unparsed" and "truncated", the student's shares, with
        "teacher_unparsed" and "teacher_truncated"; "items".

    Raises:
        UserError: a student was scored on other tasks or another number of items than the teacher.
    """
    # Only counts are known here; that the items are the same ones, `significance.compare` checks.
    expected = {task: score.items for task, score in teacher.tasks.items()}
    for name, student in students.items():
        scored = {task: score.items for task, score in student.tasks.items()}
        if scored != expected:
            raise UserError(
                f"'{name}' was scored on items {scored}, the teacher on {expected}; evaluate both on the same tasks"
            )
    return {name: _rows(teacher, student) for name, student in students.items()}


def _rows(teacher: Scores, student: Scores) -> list[dict[str, Any]]:
    """The rows of one student: its tasks, then the means."""
    rows = []
    for task in teacher.tasks:
        row = _row(task, teacher.tasks[task], student.tasks[task])
        # Intervals of single tasks only: those of means take a bootstrap over items, see `significance`.
        for accuracy in ACCURACIES:
            row[accuracy]["teacher_interval"] = _interval(teacher.tasks[task], accuracy)
            row[accuracy]["student_interval"] = _interval(student.tasks[task], accuracy)
        rows.append(row)
    for name, tasks in means(teacher.ranked).items():
        row = _row(name, teacher.of(tasks), student.of(tasks))
        if name == MEAN_OF_ALL:
            # Its ranking would be over fewer tasks than its generation, and is in the row of MEAN already.
            row |= {"ranking": _compared(None, None), "gap": None}
        rows.append(row)
    return rows


def _row(name: str, teacher: TaskScore | Scores, student: TaskScore | Scores) -> dict[str, Any]:
    """A row of `paired_table` without intervals, of a task or of a mean over some."""
    row: dict[str, Any] = {"task": name}
    for accuracy in ACCURACIES:
        row[accuracy] = _compared(getattr(teacher, accuracy), getattr(student, accuracy))
    # Of a mean these are ratios of mean accuracies: a mean of ratios would hang on the task the teacher is worst at.
    by_ranking = row["ranking"]["retention"]
    by_generation = row["generation"]["retention"]
    comparable = by_ranking is not None and by_generation is not None
    counts = teacher.tasks.values() if isinstance(teacher, Scores) else [teacher]
    return row | {
        "gap": 100 * (by_ranking - by_generation) if comparable else None,  # points
        "unparsed": student.unparsed_rate,
        "truncated": student.truncated_rate,
        "teacher_unparsed": teacher.unparsed_rate,
        "teacher_truncated": teacher.truncated_rate,
        "items": sum(score.items for score in counts),
    }


def _compared(teacher: float | None, student: float | None) -> dict[str, float | None]:
    """One accuracy of both; all None where it was not measured."""
    return {
        "teacher": teacher,
        "student": student,
        "retention": retention(teacher, student),
        "difference": None if teacher is None else 100 * (student - teacher),  # points
    }


def _interval(score: TaskScore, accuracy: str) -> list[float] | None:
    correct = getattr(score, f"{accuracy}_correct")
    return None if correct is None else list(wilson(correct, score.items))
