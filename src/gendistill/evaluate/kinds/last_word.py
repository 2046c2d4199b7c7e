"""The last word of a passage (LAMBADA)."""

from collections.abc import Mapping
from typing import Literal

from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.distractors import among, other_answers, sampled
from gendistill.evaluate.kinds.shared.fields import Fields
from gendistill.evaluate.kinds.shared.phrases import flexible_phrase, normalise, strict_phrase


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
    def strict(cls, item: Item, reply: str) -> Answer:
        # Only the first word was asked for. Other items' words may follow it in a sentence, so none rules it out.
        return strict_phrase(" ".join(reply.split()[:1]), item.answers, ())

    @classmethod
    def flexible(cls, item: Item, reply: str) -> Answer:
        # Anywhere in the reply: a model that writes the whole sentence has the word too.
        return flexible_phrase(reply, item.answers, ())
