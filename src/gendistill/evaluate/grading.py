"""Marks replies: strictly and flexibly, one by one or, where that takes programs, all at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gendistill.evaluate.code import grade_code
from gendistill.evaluate.instructions import grade_instructions
from gendistill.evaluate.items import Item
from gendistill.evaluate.parsing import Answer
from gendistill.inference.generation import Reply


@dataclass(frozen=True)
class Grades:
    """The strict reading of a reply, the flexible one, and what a record should say besides."""

    strict: Answer
    flexible: Answer
    notes: dict[str, Any] = field(default_factory=dict)


def mark(items: Sequence[Item], replies: Sequence[Reply]) -> list[Grades]:
    """Marks the replies to the items of one task, which are all of one kind."""
    texts = [reply.text for reply in replies]
    kind = items[0].kind
    if kind == "code":
        return [Grades(m.answer, m.answer, {"tests": m.reason}) for m in grade_code(items, texts)]
    if kind == "instructions":
        return [Grades(m.strict, m.flexible, {"followed": list(m.followed)}) for m in grade_instructions(items, texts)]
    return [Grades(item.parse(text), item.parse_flexibly(text)) for item, text in zip(items, texts, strict=True)]
