"""The last word of a passage (LAMBADA)."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.distractors import among, other_answers, sampled
from gendistill.evaluate.kinds.shared.fields import Fields
from gendistill.evaluate.kinds.shared.statements import denied, plain, sentences, statements
from gendistill.evaluate.kinds.shared.words import CJK, normalise

_ARTICLE = re.compile(
    r"^(?:the|an?|la|le|les|l['’]|el|los|las|der|die|das|den|dem|un|une|una|ein|eine)\b\s*(?=\w)", re.IGNORECASE
)
_IN_CJK = re.compile(f"[{CJK}]")


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
        return _strict(reply, item.question, item.answers, truncated)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        strict = cls.strict(item, reply, truncated)
        text = plain(reply).strip()
        ends = text.endswith((".", "!", "?", "。", "！", "？"))
        if strict.parsed is not None or not text or (truncated and not ends):
            return strict
        # A model that writes the passage once more ends it with the word.
        last = sentences(text)[-1]
        word = next((w for w in map(normalise, item.answers) if normalise(last).endswith(w)), None)
        start = max(0, last.casefold().rfind(word.replace(" ", ""))) if word else 0
        # It may be the end of a longer one.
        word = None if denied(last[:start], start, start) else word or normalise(last.split()[-1])
        return _graded(word, item.answers)


@lru_cache(maxsize=16)  # the flexible reading begins with the strict one
def _strict(reply: str, passage: str, answers: tuple[str, ...], truncated: bool) -> Answer:
    text = plain(reply).strip()
    stated = [normalise(statement.content) for statement in statements(text) if statement.ended or not truncated]
    if stated:
        return _graded(stated[-1], answers)
    words = _ARTICLE.sub("", text).split()
    # Only the first word was asked for, whatever stands behind it. One that was cut off may be half a word.
    first = None if truncated and len(words) == 1 else normalise("".join(words[:1])) or None
    graded = _graded(first, answers)
    # A sentence of its own, or the passage once more, does not go on with a word.
    anew = not graded.correct and text[:1].isupper() and len(sentences(text)[0].split()) > 2
    return Answer(None, False) if anew or _is_again(text, passage) else graded


def _is_again(text: str, passage: str) -> bool:
    """Whether a reply begins as the passage does, or a sentence of it."""
    start = normalise(text).split()[:3]
    if len(start) < 3:
        return False
    start = " ".join(start)
    if _IN_CJK.match(text):
        return start in normalise(passage)  # its words are characters
    return any(normalise(sentence).startswith(start) for sentence in sentences(passage))


def _graded(word: str | None, answers: tuple[str, ...]) -> Answer:
    return Answer(word, word in map(normalise, answers))
