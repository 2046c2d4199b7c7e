"""Items of which teacher and student are not equally right, word for word."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from gendistill.names import LETTERS
from gendistill.report.evaluations import TEACHER
from gendistill.report.page.evidence import Compared, Judged, by_items
from gendistill.report.page.parts import Example, Note, Part, Reply

EXAMPLES = 10
REPLY_SHOWN = 600  # characters of a reply
QUESTION_SHOWN = 1200
STUDENTS_SHOWN = 6  # beside the teacher

Record = Mapping[str, Any]


def example_parts(judged: Sequence[Judged]) -> list[Part]:
    """Up to EXAMPLES items, from all tasks in turn: first those that the teacher has right and a student wrong."""
    # Seeds draw items of their own, and one item is shown with the replies of all.
    same = next(iter(by_items(judged).values()))
    models = [each.model for each in same[:STUDENTS_SHOWN]]
    by_task = [_differing(task, models) for task in models[0].teacher]
    # One of each task in turn, so that a task with many does not fill the list.
    in_turn = [found for round_ in zip_longest(*by_task) for found in round_ if found is not None]
    if not in_turn:
        return [Note("Teacher and student are right on the same items.")]
    total = sum(len(task) for task in by_task)  # so that ten of fifty and ten of ten are not taken for the same
    shown = in_turn[:EXAMPLES]
    lead = f"{len(shown)} of the {total:,} items on which teacher and student differ by generation."
    return [Note(lead), *(_example(task, number, models) for task, number in shown)]


def _differing(task: str, models: Sequence[Compared]) -> list[tuple[str, int]]:
    """Task and place of the items on which a student's verdict is not the teacher's; lost ones before won ones."""
    lost, won = [], []
    for number, theirs in enumerate(models[0].teacher[task]):
        right = [model.student[task][number]["generation_correct"] for model in models]
        if theirs["generation_correct"] and not all(right):
            lost.append((task, number))
        elif not theirs["generation_correct"] and any(right):
            won.append((task, number))
    # Three lost to one won, as long as there are both: what was lost is what a reader looks for.
    return [found for four in zip_longest(*[iter(lost)] * 3, won) for found in four if found] if won else lost


def _example(task: str, number: int, models: Sequence[Compared]) -> Example:
    record = models[0].teacher[task][number]
    # The letters that the prompt had, so that a reply of one can be read.
    options = [
        (f"{letter}. {option}", index in record["gold"])
        for index, (letter, option) in enumerate(zip(LETTERS, record["choices"], strict=False))
    ]
    replies = {TEACHER: record} | {model.name: model.student[task][number] for model in models}
    return Example(
        task=f"{task}, item {record['id']}",
        question=_first(record["question"], QUESTION_SHOWN),
        options=options,
        accepted="" if options else " | ".join(record["answers"]),
        replies=[_reply(name, each) for name, each in replies.items()],
    )


def _reply(name: str, record: Record) -> Reply:
    return Reply(
        model=name,
        text=_first(record["reply"].strip(), REPLY_SHOWN),
        parsed=None if record["parsed"] is None else _first(record["parsed"], 80),
        correct=record["generation_correct"],
        ranks_correct=record["ranking_correct"],
    )


def _first(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… {len(text) - limit:,} characters more"
