"""Control tokens that people quote, which are text like any other.

Only a chat template writes real ones, or the code that puts a token before and behind a document. A guard, a character
that no text has, breaks up what is quoted until the tokenizer is through; its ids are taken out again.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable

from gendistill.errors import UserError

# A Unicode noncharacter: no text.
GUARD = "\ufdd0"


class Controls:
    """A tokenizer's control tokens, all that it calls special.

    Attributes:
        tokens: as they are written, the longest first, since the longest match counts for the tokenizer.
        pattern: finds one.
    """

    def __init__(self, tokenizer):
        tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.tokens = sorted(tokens, key=len, reverse=True)
        self.pattern = _any_of(re.escape(token) for token in self.tokens)
        # Only the first character is consumed: a control token may begin within another one.
        breakable = [token for token in self.tokens if len(token) > 1]
        self._quoted = _any_of(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in breakable)

    def guard(self, text: str, what: str) -> str:
        """The text with a guard in every control token, so that the tokenizer reads it as ordinary text.

        Raises:
            UserError: the text, which the error calls `what`, holds the guard itself.
        """
        if GUARD in text:
            raise UserError(
                f"{what} holds U+FDD0, which is no character and which stands for something else here; take it out"
            )
        return self._quoted.sub(rf"\g<0>{GUARD}", text)


class GuardedTokens:
    """What the tokenizer made of a text (`tokenizers.Encoding`, with offsets), less the guards."""

    def __init__(self, text: str, encoding):
        self.encoding = encoding
        self.guards = self._find_guards(text) if GUARD in text else []
        self.ids = self._less_guards(self.encoding.ids)

    def at(self, character: int) -> int:
        """Position of the token that holds this character of the text."""
        position = self.encoding.char_to_token(character) or 0  # None where no token holds it
        return position - bisect_left(self.guards, position)  # guards before it are not among the ids

    def within(self, spans: list[tuple[int, int]]) -> list[bool]:
        """Which tokens lie, if only in part, in one of these spans of characters."""
        return self._less_guards(
            [any(start < right and end > left for left, right in spans) for start, end in self.encoding.offsets]
        )

    def _find_guards(self, text: str) -> list[int]:
        held = [text[start:end] for start, end in self.encoding.offsets]
        # A guard must be a token by itself, to be taken out again.
        if any(GUARD in characters and characters != GUARD for characters in held):
            raise UserError(
                "the tokenizer joins U+FDD0 with the characters around it, so that a special token quoted in a message "
                "or text cannot be told from a real one; take it out of there"
            )
        return [position for position, characters in enumerate(held) if characters == GUARD]

    def _less_guards(self, values: list) -> list:
        if not self.guards:
            return values
        guards = set(self.guards)
        return [value for position, value in enumerate(values) if position not in guards]


def without_guards(text: str) -> str:
    return text.replace(GUARD, "")


def _any_of(patterns: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(patterns) or "(?!)")  # of no pattern: what matches nowhere
