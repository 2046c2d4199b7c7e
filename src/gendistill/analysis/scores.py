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
READINGS = ("ranking", "generation", "flexible")


@dataclass(frozen=True)
class TaskScore:
    """Counts over the items of one task. A truncated reply ran out of its token budget; it may still be right.

    `ranking_correct` is None if the task is not ranked. `generation_correct` counts replies as read strictly,
    `flexible_correct` as read flexibly.
    """

    items: int
    ranking_correct: int | None
    generation_correct: int
    flexible_correct: int
    unparsed: int
    truncated: int

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> "TaskScore":
        """Counts the per-item records that `evaluate_model` writes."""
        records = list(records)
        ranked = [record["ranking_correct"] for record in records]
        return cls(
            items=len(records),
            ranking_correct=None if None in ranked else sum(ranked),
            generation_correct=sum(record["generation_correct"] for record in records),
            flexible_correct=sum(record["flexible_correct"] for record in records),
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

    label: str
    tasks: dict[str, TaskScore]

    def mean(self, value: Callable[[TaskScore], float]) -> float:
        return sum(map(value, self.tasks.values())) / len(self.tasks)

    def of(self, tasks: Iterable[str]) -> "Scores":
        """The same model on some of its tasks."""
        return Scores(self.label, {task: self.tasks[task] for task in tasks})

    @property
    def paired(self) -> "Scores":
        """On the tasks behind the mean that compares ranking with generation, see `means`."""
        return self.of(means({task: score.ranking is not None for task, score in self.tasks.items()})[MEAN])

    @property
    def ranking(self) -> float | None:
        """Over the ranked tasks; None if there are none."""
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
    return {MEAN: both, MEAN_OF_ALL: list(ranked)}


def wilson(correct: int, items: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of an accuracy, 95 % by default."""
    share = correct / items
    spread = z * math.sqrt(share * (1 - share) / items + (z / (2 * items)) ** 2)
    middle = share + z * z / (2 * items)
    scale = 1 + z * z / items
    return (middle - spread) / scale, (middle + spread) / scale


def retention(teacher: float | None, student: float | None) -> float | None:
    """Share of the teacher's accuracy that the student keeps; None where the teacher has none."""
    return student / teacher if teacher else None


def paired_table(teacher: Scores, points: Mapping[str, Scores]) -> dict[str, list[dict[str, Any]]]:
    """Compares the students of several points of a run with their teacher.

    Returns:
        For each point a row per task, then those of `means`, whose retention is the ratio of the mean accuracies.
        A row holds, ready for JSON: "task"; "ranking", "generation" (read strictly) and "flexible", each with
        "teacher", "student", "retention", "difference" (student - teacher, points) and for single tasks the 95 %
        intervals "teacher_interval" and "student_interval", all None where there is no ranking; "gap" = ranking
        retention - generation retention, in points; "unparsed" and "truncated", the student's shares, with
        "teacher_unparsed" and "teacher_truncated"; "items".

    Raises:
        UserError: a point was scored on other tasks or another number of items than the teacher.
    """
    for name, student in points.items():
        asked = {task: score.items for task, score in student.tasks.items()}
        expected = {task: score.items for task, score in teacher.tasks.items()}
        if asked != expected:
            raise UserError(
                f"'{name}' was scored on items {asked}, the teacher on {expected}; evaluate both on the same tasks"
            )
    return {name: _rows(teacher, student) for name, student in points.items()}


def _rows(teacher: Scores, student: Scores) -> list[dict[str, Any]]:
    rows = [_row(task, teacher.tasks[task], student.tasks[task]) for task in teacher.tasks]
    for name, tasks in means({task: score.ranking is not None for task, score in teacher.tasks.items()}).items():
        readings = READINGS if name == MEAN else READINGS[1:]
        rows.append(_row(name, teacher.of(tasks), student.of(tasks), readings))
    return rows


def _row(
    name: str, teacher: TaskScore | Scores, student: TaskScore | Scores, readings: tuple[str, ...] = READINGS
) -> dict[str, Any]:
    row: dict[str, Any] = {"task": name}
    for reading in READINGS:
        theirs, ours = (getattr(score, reading) if reading in readings else None for score in (teacher, student))
        row[reading] = {
            "teacher": theirs,
            "student": ours,
            "retention": retention(theirs, ours),
            "difference": None if theirs is None else 100 * (ours - theirs),
        }
        if isinstance(teacher, TaskScore):
            for side, score in (("teacher", teacher), ("student", student)):
                correct = getattr(score, f"{reading}_correct")
                row[reading][f"{side}_interval"] = None if correct is None else list(wilson(correct, score.items))
    kept = row["ranking"]["retention"], row["generation"]["retention"]
    counts = teacher.tasks.values() if isinstance(teacher, Scores) else [teacher]
    return row | {
        "gap": None if None in kept else 100 * (kept[0] - kept[1]),
        "unparsed": student.unparsed_rate,
        "truncated": student.truncated_rate,
        "teacher_unparsed": teacher.unparsed_rate,
        "teacher_truncated": teacher.truncated_rate,
        "items": sum(score.items for score in counts),
    }
