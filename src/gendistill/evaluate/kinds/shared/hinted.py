"""Patterns of many words that are tried only where one of the words begins."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

from gendistill.evaluate.kinds.shared.words import ascii_words


class Hinted:
    """A pattern with the texts that its matches begin with, and with words of which each holds one.

    The search for a pattern tries all its words at each character. Where one of a few plain texts stands is known many
    times sooner, and in most replies none does. Sooner still it is known which words a text has.
    """

    def __init__(self, pattern: str | re.Pattern, hints: str, words: str):
        """
        Args:
            pattern: must not match the empty text.
            hints: beginnings, of one of which every match has the form, with blanks between them: short patterns in
                small letters that begin with a plain sign.
            words: of which every match has one, in small letters, with blanks between them; in the match it is whole,
                but for one in Chinese.
        """
        self.pattern = pattern if isinstance(pattern, re.Pattern) else re.compile(pattern, re.IGNORECASE)
        self.hints, self.words = hints, words
        self._hint = re.compile(_any_of(hints.split()))
        self._words = frozenset(max(ascii_words(word), key=len, default="") for word in words.split()) - {""}
        self._signs = [word for word in words.split() if not ascii_words(word)]
        self._ascii_signs = [*filter(str.isascii, self._signs)]

    def may_be_in(self, text: str) -> bool:
        """False if the pattern matches nowhere in the text."""
        if not self._words.isdisjoint(_words_of(text.strip())):
            return True
        signs = self._ascii_signs if text.isascii() else self._signs
        return bool(signs) and any(map(text.__contains__, signs))

    def matches(self, text: str) -> list[re.Match]:
        """The matches that the pattern's own `finditer` gives."""
        return [*self._found(text)] if self.may_be_in(text) else []

    def search(self, text: str) -> re.Match | None:
        """The first match, as the pattern's own `search` gives it."""
        return next(self._found(text), None) if self.may_be_in(text) else None

    def sub(self, replacement: str, text: str) -> str:
        """The text with `replacement`, as it is, for each match."""
        if not self.may_be_in(text):
            return text
        parts, done = [], 0
        for match in self._found(text):
            parts += [text[done : match.start()], replacement]
            done = match.end()
        return "".join([*parts, text[done:]])

    def _found(self, text: str) -> Iterator[re.Match]:
        done = 0
        for hint in self._hint.finditer(folded(text)):
            place = hint.start()
            if place >= done and (match := self.pattern.match(text, place)):
                yield match
                done = match.end()


@lru_cache(maxsize=64)  # a reply and its sentences are asked for the words of several patterns
def _words_of(text: str) -> frozenset[str]:
    return frozenset(ascii_words(text if text.isascii() else folded(text)))


def _any_of(hints: list[str]) -> str:
    """A pattern of the places where a hint stands, quick to search.

    Its alternatives begin with plain signs: Python's search then looks at those signs only. A match is one sign long,
    so that hints within each other are all found.
    """
    behind = defaultdict(list)
    for hint in hints:
        behind[hint[0]].append(hint[1:])
    return "|".join(f"{re.escape(first)}(?={'|'.join(rests)})" for first, rests in behind.items())


def folded(text: str) -> str:
    """The text in small letters, as a pattern without regard to case takes them; each stays in its place."""
    if text.isascii():
        return text.lower()
    # For such a pattern the first two are an i and the last is an s. The first is two signs in small letters.
    return text.replace("İ", "i").lower().replace("ı", "i").replace("ſ", "s")
