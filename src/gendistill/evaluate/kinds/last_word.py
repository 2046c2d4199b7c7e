"""The last word of a passage (LAMBADA)."""

from collections.abc import Mapping
from typing import Literal

from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.distractors import among, other_answers, sampled
from gendistill.evaluate.kinds.shared.fields import Fields
from gendistill.evaluate.kinds.shared.statements import denied, plain, sentences, statements
from gendistill.evaluate.kinds.shared.words import normalise


class LastWord(FewShotTask):
    """The last word of the text in `question` is asked for, the text before it is shown."""

    scores_per_token = True  # or a word of one token would win by its length

    kind: Literal["last_word"] = "last_word"

    def read(self, fields: Fields, draws: Draws) -> Item:
        text = fields.text(self.question, "a text")
        # At the last blank: the word keeps its punctuation, which grading ignores.
        context, _, word = text.rpartition(" ")
        if not context or not normalise(word):
            raise fields.error(self.question, "a text that ends with the word to ask for", text)
        return Item(
            id=fields.index,
            kind=self.kind,
            question=self.user_text(fields, context),  # without the word, in a template too
            answers=(word,),
            solution=word,
            subject=self.subject_of(fields),
        )

    def with_candidates(self, item: Item, others: Mapping[str, str], draws: Draws) -> Item:
        return among(item, sampled(item, other_answers(item, others, draws), draws), draws)

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        text = plain(reply).strip()
        stated = [normalise(statement.content) for statement in statements(text) if statement.ended or not truncated]
        words = text.split()
        # Only the first word was asked for: a continuation goes on behind it. One that was cut off may be half a word.
        first = None if truncated and len(words) == 1 else normalise("".join(words[:1])) or None
        return _graded(item, stated[-1] if stated else first)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        strict = cls.strict(item, reply, truncated)
        whole = sentences(plain(reply))[: -1 if truncated else None]
        if strict.correct or not whole:
            return strict
        # A model that writes the passage once more ends it with the word.
        words = whole[0].split()
        last = len(whole[0]) - len(words[-1])
        repeated = _graded(item, None if denied(whole[0], last, len(whole[0])) else normalise(words[-1]))
        return repeated if repeated.correct else strict


def _graded(item: Item, word: str | None) -> Answer:
    return Answer(word, word in map(normalise, item.answers))
