"""What a short answer is held against."""

from collections.abc import Sequence
from functools import cached_property

from gendistill.evaluate.kinds.shared.words import normalise, with_articles


class Asked:
    """What a reply is held against: accepted answers and other candidates, normalised, and the question.

    Attributes:
        known: both, and of each a word that every text with it has, as far as that can be told.
    """

    def __init__(self, accepted: Sequence[str], candidates: Sequence[str], question: str):
        self.right = {normalise(answer) for answer in accepted} - {""}
        self.others = {normalise(candidate) for candidate in candidates} - self.right - {""}
        self.known = {phrase: _longest_word(phrase) for phrase in self.right | self.others}
        self._question = question
        self._named: dict[str, set[str]] = {}  # by text, since the rules ask it of the same sentences

    @cached_property
    def question(self) -> str:
        return normalise(self._question)

    def named_in(self, text: str) -> set[str]:
        """The known phrases that a text holds."""
        if not self.may_be_in(text):
            return set()  # most sentences, which thus need not be normalised
        if text not in self._named:
            forms = f" {normalise(text)} \n {with_articles(text)} "
            self._named[text] = {phrase for phrase in self.known if f" {phrase} " in forms}
        return self._named[text]

    def may_be_in(self, text: str) -> bool:
        """False if a text holds none of the known phrases."""
        return any(map(text.casefold().__contains__, self.known.values()))


def _longest_word(phrase: str) -> str:
    # Numbers may be spelled in more than one way.
    return phrase if phrase.isalpha() else max(filter(str.isalpha, phrase.split()), key=len, default="")
