"""Patterns of many words that are tried only where one of the words begins."""

import re
from collections import defaultdict


class Hinted:
    """A pattern with the texts that its matches begin with.

    The search for a pattern tries all its words at each character. Where one of a few plain texts stands is known many
    times sooner, and in most replies none does.
    """

    def __init__(self, pattern: str | re.Pattern, hints: str):
        """
        Args:
            pattern: must not match the empty text.
            hints: beginnings, of one of which every match has the form, with blanks between them: short patterns in
                small letters that begin with a plain sign.
        """
        self.pattern = pattern if isinstance(pattern, re.Pattern) else re.compile(pattern, re.IGNORECASE)
        self.hints = hints
        self._hint = re.compile(_any_of(hints.split()))

    def may_be_in(self, text: str) -> bool:
        """False if the pattern matches nowhere in the text."""
        return self._hint.search(_folded(text)) is not None

    def matches(self, text: str) -> list[re.Match]:
        """The matches that the pattern's own `finditer` gives."""
        found, done = [], 0
        for hint in self._hint.finditer(_folded(text)):
            place = hint.start()
            if place >= done and (match := self.pattern.match(text, place)):
                found.append(match)
                done = match.end()
        return found

    def search(self, text: str) -> re.Match | None:
        """The first match, as the pattern's own `search` gives it."""
        return next(iter(self.matches(text)), None)

    def sub(self, replacement: str, text: str) -> str:
        """The text with `replacement`, as it is, for each match."""
        parts, done = [], 0
        for match in self.matches(text):
            parts += [text[done : match.start()], replacement]
            done = match.end()
        return "".join([*parts, text[done:]])


def _any_of(hints: list[str]) -> str:
    """A pattern of the places where a hint stands, quick to search.

    Its alternatives begin with plain signs: Python's search then looks at those signs only. A match is one sign long,
    so that hints within each other are all found.
    """
    behind = defaultdict(list)
    for hint in hints:
        behind[hint[0]].append(hint[1:])
    return "|".join(f"{re.escape(first)}(?={'|'.join(rests)})" for first, rests in behind.items())


def _folded(text: str) -> str:
    """The text in small letters, as a pattern without regard to case takes them; each stays in its place."""
    if text.isascii():
        return text.lower()
    # For such a pattern the first two are an i and the last is an s. The first is two signs in small letters.
    return text.replace("İ", "i").lower().replace("ı", "i").replace("ſ", "s")
