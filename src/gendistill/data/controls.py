"""Control tokens that people quote, which are text like any other.

Only a chat template writes real ones, or the code that puts a token before and behind a document. A guard, a character
that no text has, breaks up what is quoted until the tokenizer is through; its ids are taken out again.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

from gendistill.errors import UserError

# A Unicode noncharacter: no text.
GUARD = "\ufdd0"


class Controls:
    """A tokenizer's control tokens.

    Attributes:
        special: all that the tokenizer calls special, as they are written.
        ids: theirs.
        tags: others that its chat template writes, as Qwen3's <think> and <tool_call>. An assistant writes them too.
        pattern: finds a special one.
        divide: whether the tokenizer surely encodes what stands between two special ones for itself.
    """

    def __init__(self, tokenizer):
        decoder = tokenizer.added_tokens_decoder
        added = decoder.values()
        template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        self.special = [token.content for token in added if token.special]
        self.ids = {number for number, token in decoder.items() if token.special}
        # Otherwise they depend on what stands around them, or take some of it in.
        self.divide = not any(
            token.special and (token.lstrip or token.single_word or token.normalized) for token in added
        )
        self.tags = [
            token.content
            for token in added
            if not token.special and _is_tag(token.content) and token.content in template
        ]
        self.pattern = _any_of(re.escape(token) for token in _longest_first(self.special))
        self._special_starts = _starts_of(self.special)
        self._all_starts = _starts_of([*self.special, *self.tags])
        self._any = _any_of(re.escape(token) for token in _longest_first([*self.special, *self.tags]))
        self._first_characters = {token[0] for token in (*self.special, *self.tags) if token}

    def are_in(self, text: str) -> bool:
        """Whether a control token or tag is written in a text."""
        # Most texts hold not even its first character, which is found a hundred times faster than a pattern.
        if not any(character in text for character in self._first_characters):
            return False
        return self._any.search(text) is not None

    def starts(self, text: str) -> list[int]:
        """The characters at which a text's special tokens begin."""
        return [match.start() for match in self.pattern.finditer(text)]

    def pieces(self, text: str) -> list[str]:
        """A text from control token to control token, each with what follows it; whole where they do not divide it."""
        starts = self.starts(text) if self.divide else []
        cuts = [0, *starts, len(text)]
        return [text[start:end] for start, end in pairwise(cuts) if start < end]

    def guard(self, text: str, what: str, tags: bool = True) -> str:
        """The text with a guard in every control token, so that the tokenizer reads it as ordinary text.

        Args:
            what: what the error calls the text.
            tags: in tags as well; not so where an assistant writes, which may have meant them.

        Raises:
            UserError: the text holds the guard itself.
        """
        if GUARD in text:
            raise UserError(
                f"{what} holds U+FDD0, which is no character and which stands for something else here; take it out"
            )
        starts = self._all_starts if tags else self._special_starts
        return starts.sub(rf"\g<0>{GUARD}", text)


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


class CountedTokens:
    """The ids of a text without guards, made without offsets: of control tokens the n-th in the text is the n-th here.

    Attributes:
        is_sound: whether the tokenizer has found as many control tokens as the text was seen to hold.
    """

    def __init__(self, ids: list[int], starts: list[int], controls: Controls):
        self.ids, self.starts = ids, starts  # starts: the characters at which the text's control tokens begin
        self.places = [place for place, token in enumerate(ids) if token in controls.ids]
        self.is_sound = len(self.places) == len(starts)

    def at(self, character: int) -> int:
        """Position of the control token that begins with this character of the text, or of the text's beginning."""
        return self.places[self.starts.index(character)] if character else 0


def without_guards(text: str) -> str:
    return text.replace(GUARD, "")


def _is_tag(token: str) -> bool:
    """Whether it is a name in brackets of some kind, rather than a word or blanks that were added for brevity."""
    return any(map(str.isalpha, token)) and not any(end.isalnum() or end.isspace() for end in (token[0], token[-1]))


def _starts_of(tokens: list[str]) -> re.Pattern:
    """Finds the first character of each token in a text."""
    # Only that one is consumed: a control token may begin within another one.
    breakable = [token for token in _longest_first(tokens) if len(token) > 1]
    return _any_of(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in breakable)


def _longest_first(tokens: list[str]) -> list[str]:
    return sorted(tokens, key=len, reverse=True)  # the longest match counts for the tokenizer


def _any_of(patterns: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(patterns) or "(?!)")  # of no pattern: what matches nowhere
