"""Scores, and the comparison of a student with its teacher under both protocols.

Accuracies are shares (0 to 1); differences and gaps are percentage points.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gendistill.errors import UserError

MEAN = "mean"


@dataclass(frozen=True)
class TaskScore:
    """Counts over the items of one task. A truncated reply ran out of its token budget; it may still be right."""

    items: int
    ranking_correct: int
    generation_correct: int
    unparsed: int
    truncated: int

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> "TaskScore":
        """Counts the per-item records that `evaluate_model` writes."""
        records = list(records)
        return cls(
            items=len(records),
            ranking_correct=sum(record["ranking_correct"] for record in records),
            generation_correct=sum(record["generation_correct"] for record in records),
            unparsed=sum(record["parsed"] is None for record in records),
            truncated=sum(record["truncated"] for record in records),
        )

    @property
    def ranking(self) -> float:
        return self.ranking_correct / self.items

    @property
    def generation(self) -> float:
        return self.generation_correct / self.items

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

    @property
    def ranking(self) -> float:
        return self.mean(lambda task: task.ranking)

    @property
    def generation(self) -> float:
        return self.mean(lambda task: task.generation)

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


def wilson(correct: int, items: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of an accuracy, 95 % by default."""
    share = correct / items
    spread = z * math.sqrt(share * (1 - share) / items + (z / (2 * items)) ** 2)
    middle = share + z * z / (2 * items)
    scale = 1 + z * z / items
    return (middle - spread) / scale, (middle + spread) / scale


def retention(teacher: float, student: float) -> float | None:
    """Share of the teacher's accuracy that the student keeps; None where the teacher has none."""
    return student / teacher if teacher else None


def paired_table(teacher: Scores, points: Mapping[str, Scores]) -> dict[str, list[dict[str, Any]]]:
    """Compares the students of several points of a run with their teacher.

    Returns:
        For each point a row per task and a last one named "mean", whose retention is the ratio of the mean accuracies.
        A row holds, ready for JSON: "task"; "ranking" and "generation", each with "teacher", "student", "retention",
        "difference" (student - teacher, points) and for single tasks the 95 % intervals "teacher_interval" and
        "student_interval"; "gap" = ranking retention - generation retention, in points; "unparsed" and "truncated",
        the student's shares, with "teacher_unparsed" and "teacher_truncated"; "items".

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
    return {
        name: [_row(task, teacher.tasks[task], student.tasks[task]) for task in teacher.tasks]
        + [_row(MEAN, teacher, student)]
        for name, student in points.items()
    }


def _row(task: str, teacher: TaskScore | Scores, student: TaskScore | Scores) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task}
    for protocol in ("ranking", "generation"):
        theirs, ours = getattr(teacher, protocol), getattr(student, protocol)
        row[protocol] = {
            "teacher": theirs,
            "student": ours,
            "retention": retention(theirs, ours),
            "difference": 100 * (ours - theirs),
        }
        if isinstance(teacher, TaskScore):
            for side, score in (("teacher", teacher), ("student", student)):
                row[protocol][f"{side}_interval"] = list(wilson(getattr(score, f"{protocol}_correct"), score.items))
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
