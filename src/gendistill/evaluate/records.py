"""A record of an item: all that is kept of what a model was asked and has answered."""

import hashlib
from collections.abc import Sequence
from typing import Any

from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.evaluate.kinds.item import Grades, Item
from gendistill.evaluate.ranking import Ranking
from gendistill.inference.generation import Reply

LONGEST_TEXT = 20_000  # characters of a prompt kept in a record; of longer ones the ends


def make_record(
    task: TaskSettings, item: Item, prompt: str, ranking: Ranking | None, forms: Sequence[tuple[Reply, Grades]]
) -> dict[str, Any]:
    """All that is kept of an item; `forms` are reply and grades of the item and of its other forms."""
    record = {
        "id": item.id,
        "question": _text(item.question),
        "choices": list(item.choices),
        "candidates": list(item.candidates),
        "gold": list(item.gold),
        "answers": list(item.answers),
        "prompt": _text(prompt),
    }
    record |= _ranked(task, item, ranking)
    record |= _replied(*forms[0])
    return record | task.notes(item, [(reply.text, grades) for reply, grades in forms])


def _ranked(task: TaskSettings, item: Item, ranking: Ranking | None) -> dict[str, Any]:
    if ranking is None:  # keys stay, so that all records of a task can be read alike
        return {"scores": None, "ranked": None, "ranking_correct": None}
    first = task.ranked_first(ranking.prediction, ranking.by)
    record: dict[str, Any] = {"scores": list(ranking.scores)}  # nats, by letter where there are options
    if ranking.by:
        record["text_scores"] = list(ranking.text_scores)
    record |= {"ranked": item.candidates[first], "ranking_correct": first in item.gold}
    if ranking.by:
        record["ranking_by"] = {form: best in item.gold for form, best in ranking.by.items()}
    return record


def _replied(reply: Reply, grades: Grades) -> dict[str, Any]:
    return {
        "reply": reply.text,
        "reply_tokens": reply.tokens,
        "truncated": reply.truncated,
        "parsed": grades.strict.parsed,
        "generation_correct": grades.strict.correct,
        "flexible_parsed": grades.flexible.parsed,
        "flexible_correct": grades.flexible.correct,
    } | grades.notes


def _text(text: str) -> str:
    """A text for a record: of a very long one the two ends."""
    if len(text) <= LONGEST_TEXT:
        return text
    end = LONGEST_TEXT // 2  # the hash tells two texts apart that differ in the middle
    return f"{text[:end]}\n[{len(text) - 2 * end:,} characters, sha256 {text_sha256(text)}]\n{text[-end:]}"


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
