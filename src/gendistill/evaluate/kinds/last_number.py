"""A number at the end of a calculation (GSM8K)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field

from gendistill.errors import UserError
from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.distractors import DISTRACTORS, among, other_answers
from gendistill.evaluate.kinds.shared.fields import Fields, quoted
from gendistill.evaluate.kinds.shared.hedges import committed
from gendistill.evaluate.kinds.shared.numbers import gold_number, last_number, stated_number
from gendistill.recipe.fields import Names


class LastNumber(FewShotTask):
    """The number that `answer` states ("#### 18"), else its last one is right; fractions are numbers. Ranked is "The
    answer is N." against other items' numbers."""

    kind: Literal["last_number"] = "last_number"
    answer: Names = Field(("answer",), min_length=1, description="field")

    def read(self, fields: Fields, draws: Draws) -> Item:
        answer = str(fields.get(self.answer))
        number = gold_number(answer)
        if number is None:
            raise UserError(f"{fields.where}: no number in field {quoted(self.answer)}: {answer!r}")
        return Item(
            id=fields.index,
            kind=self.kind,
            question=self.user_text(fields),
            answers=(number,),  # in the spelling that replies are compared in
            solution=solution_of(answer),
            subject=self.subject_of(fields),
        )

    def with_candidates(self, item: Item, others: Mapping[str, str], draws: Draws) -> Item:
        numbers = other_answers(item, others, draws)
        draws.of(item.id, "distractors").shuffle(numbers)
        # As many digits, so that length does not give the right one away. The sort is stable: ties stay as drawn.
        numbers.sort(key=lambda number: abs(len(number) - len(item.answers[0])))
        # Sentences, as the few-shot examples end: bare numbers are not what the model is about to write.
        item = among(item, numbers[:DISTRACTORS], draws)
        return replace(item, candidates=tuple(f"The answer is {number}." for number in item.candidates))

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        number = last_number(committed(reply, item.question), truncated, item.question)
        return Answer(number, number in item.answers)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        number = stated_number(reply, truncated, item.question)
        return Answer(number, number in item.answers)


def solution_of(answer: str) -> str:
    """GSM8K's solution as an assistant would put it: no <<calculator notes>>, "The answer is 18." for "#### 18"."""
    without_notes = re.sub(r"<<[^<>]*>>", "", answer)
    return re.sub(r"####\s*(.+?)\s*$", r"The answer is \1.", without_notes).strip()
