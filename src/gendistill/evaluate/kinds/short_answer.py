"""A short free answer: a name, a date, a phrase."""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from gendistill.errors import UserError
from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.distractors import among, other_answers, sampled
from gendistill.evaluate.kinds.shared.fields import Fields, quoted, read_options
from gendistill.evaluate.kinds.shared.hedges import committed
from gendistill.evaluate.kinds.shared.phrases import flexible_phrase, strict_phrase
from gendistill.evaluate.kinds.shared.words import normalise
from gendistill.recipe.fields import Names


class ShortAnswer(FewShotTask):
    """`answer` is a text or a list of accepted texts. Ranked are the record's `choices`, if it has any, or other items'
    answers."""

    scores_per_token = True  # or a short candidate would win by its length

    kind: Literal["short_answer"] = "short_answer"
    choices: Names = Field(("choices",), min_length=1, description="field")
    answer: Names = Field(("answer",), min_length=1, description="field")
    solution: Names = Field((), description="field with a worked solution, for few-shot examples; else the answer")
    last_statement: str | None = Field(
        None,
        min_length=1,
        description="words; of a reply that says them, what stands from the last such place on is read",
    )

    def read(self, fields: Fields, draws: Draws) -> Item:
        texts = fields.texts(self.answer)
        answers = tuple(dict.fromkeys(filter(normalise, texts)))  # the first is the one that is ranked and shown
        if not answers:
            raise fields.error(self.answer, "a text or a list of texts, one of them with a word", list(texts))
        # Replies are compared by their words: nothing could be the answer "---".
        fields.left_out += sum(not normalise(text) for text in texts)
        question = self.user_text(fields)
        candidates, gold = self._choices(fields, answers)
        return Item(
            id=fields.index,
            kind=self.kind,
            question=question,
            candidates=candidates,
            gold=gold,
            answers=answers,
            solution=str(fields.find(self.solution) or answers[0]),
            checks={} if self.last_statement is None else {"last_statement": self.last_statement},
            subject=self.subject_of(fields),
        )

    def _choices(self, fields: Fields, answers: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The record's own candidates and the index of the right one; none if it has no `choices`."""
        if fields.find(self.choices) is None:
            return (), ()
        # Unlike multiple_choice, the prompt does not show them: they are candidates for ranking alone.
        read, _ = read_options(fields, self.choices)
        options = tuple(option for option in read if option is not None)
        accepted = {normalise(answer) for answer in answers}
        right = tuple(index for index, option in enumerate(options) if normalise(option) in accepted)
        if len(right) != 1:
            raise UserError(
                f"{fields.where}: exactly one of {quoted(self.choices)} should be an accepted answer, {len(right)} "
                f"are; choices: {list(options)!r}, accepted: {list(answers)!r}"
            )
        return options, right

    def with_candidates(self, item: Item, others: Mapping[str, str], draws: Draws) -> Item:
        if item.candidates:  # the record's own
            return item
        return among(item, sampled(item, other_answers(item, others, draws), draws), draws)

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        # A reply that names another candidate besides the right one commits to neither.
        part = committed(_read_part(item, reply), item.question, (*item.answers, *item.candidates))
        return strict_phrase(part, item.answers, item.candidates, item.question, truncated)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        # Other sentences may say something else: how much of a low score is form can be seen from the difference.
        return flexible_phrase(_read_part(item, reply), item.answers, item.candidates, item.question, truncated)


def _read_part(item: Item, reply: str) -> str:
    """The reply from its last statement of the answer on, where the task names the words of one and the reply has them.

    Working before it may weigh other answers, and say so.
    """
    if (words := item.checks.get("last_statement")) is None:
        return reply
    starts = [match.start() for match in re.finditer(re.escape(words), reply, re.IGNORECASE)]
    return reply[starts[-1] if starts else 0 :]
