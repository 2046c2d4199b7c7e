"""Patterns of many words that are searched only where one of the words may be."""

import re
from collections.abc import Callable, Iterator


class Hinted:
    """A pattern with parts of which every match holds at least one.

    The search for a pattern tries all its words at each character. That a text holds none of the parts is known many
    times sooner, and most replies hold none.
    """

    def __init__(self, pattern: str | re.Pattern, hints: str):
        """
        Args:
            pattern: must not match the empty text.
            hints: the parts, small letters, with blanks between them.
        """
        self.pattern = pattern if isinstance(pattern, re.Pattern) else re.compile(pattern, re.IGNORECASE)
        self.hints = tuple(hints.split())

    def may_be_in(self, text: str) -> bool:
        """False if the pattern matches nowhere in the text."""
        return any(map(_folded(text).__contains__, self.hints))

    def search(self, text: str) -> re.Match | None:
        return self.pattern.search(text) if self.may_be_in(text) else None

    def finditer(self, text: str) -> Iterator[re.Match]:
        return self.pattern.finditer(text) if self.may_be_in(text) else iter(())

    def sub(self, replacement: str | Callable[[re.Match], str], text: str) -> str:
        return self.pattern.sub(replacement, text) if self.may_be_in(text) else text


def _folded(text: str) -> str:
    """The text in small letters, spelled as a pattern without regard to case takes them."""
    small = text.lower()
    # For such a pattern these are an i and an s, too.
    return small if small.isascii() else small.replace("\u0307", "").replace("ı", "i").replace("ſ", "s")
