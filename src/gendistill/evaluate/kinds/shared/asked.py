"""What a short answer is held against."""

import re
from collections.abc import Sequence

from gendistill.evaluate.kinds.shared.words import ARTICLES, normalise, with_articles

# But for articles in front.
_FIRST_WORD = re.compile(r"\W*+(?:(?:an?|the)\b\W*+)*(\w+)", re.ASCII | re.IGNORECASE)


class Asked:
    """What a reply is held against: accepted answers and other candidates, normalised, and the question.

    Attributes:
        known: both.
    """

    def __init__(self, accepted: Sequence[str], candidates: Sequence[str], question: str):
        self.right = {*filter(None, map(normalise, accepted))}
        self.others = {*filter(None, map(normalise, candidates))} - self.right
        self.known = self.right | self.others
        # Of each phrase a word that every text with it has, as far as that can be told.
        self._words = [phrase if phrase.isalpha() else _longest_word(phrase) for phrase in self.known]
        self._first_words = {phrase.partition(" ")[0] for phrase in self.known}
        self._question = question
        self._named: dict[str, set[str]] = {}  # by text, since the rules ask it of the same sentences

    @property
    def question(self) -> str:
        return normalise(self._question)

    def named_in(self, text: str) -> set[str]:
        """The known phrases that a text holds."""
        if text not in self._named:
            # Most sentences hold none, and thus need not be normalised.
            self._named[text] = self._found_in(text) if self.may_be_in(text) else set()
        return self._named[text]

    def _found_in(self, text: str) -> set[str]:
        forms = f" {normalise(text)} \n {with_articles(text)} "
        return {phrase for phrase in self.known if f" {phrase} " in forms}

    def may_be_in(self, text: str) -> bool:
        """False if a text holds none of the known phrases."""
        return any(map(text.casefold().__contains__, self._words))

    def may_open(self, text: str) -> bool:
        """False if a text does not begin as any of the known phrases does, but for articles."""
        first = _FIRST_WORD.match(text) if text.isascii() else None
        # Numbers may be spelled in more than one way, and an article may be no article.
        if first is None or not first[1].isalpha() or not self._first_words.isdisjoint(ARTICLES):
            return True
        return first[1].lower() in self._first_words


def _longest_word(phrase: str) -> str:
    # Numbers may be spelled in more than one way.
    return max(filter(str.isalpha, phrase.split()), key=len, default="")
