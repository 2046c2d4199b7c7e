"""The text of a reply while its tokens come in: whole characters, nothing that may turn out to be a stop string."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from gendistill.inference.requests import Likelihood

HALF = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer shows of bytes that are no character, or not yet
MOST_HALF = 3  # tokens that a character which is not complete can have: UTF-8 has 4 bytes at most, a token one at least


class Token(NamedTuple):
    """A token whose text was given out.

    Attributes:
        offset: where its text begins in the reply's.
    """

    id: int
    likelihood: Likelihood
    offset: int


class ReplyText:
    """Text of a reply, in pieces that together are all of it up to the first stop string.

    Of several stop strings the one counts that is complete first. So what is cut off depends on the text alone, not on
    how many tokens came at a time.

    Attributes:
        count: tokens of the reply; of one that was stopped, up to the one that completed the string.
        is_stopped: whether a stop string was met: nothing behind it is given out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.count = 0
        self.is_stopped = False
        self.ids: list[int] = []
        # Tokens whose text is known, and where the part begins that is decoded together with new ones: some
        # tokenizers leave a blank out at the beginning.
        self.known = self.start = 0
        self.known_is_whole = True  # whether it ends behind a character, and not within bytes that are none
        self.held = ""  # known and not given out
        self.given = 0  # characters
        self.tokens: list[tuple[int, Token]] = []  # not given out, each behind where its text ends

    def add(
        self, ids: Sequence[int], likelihoods: Sequence[Likelihood] = (), is_last: bool = False
    ) -> tuple[str, list[Token]]:
        """What can be given out now that these tokens, without an end of sequence, have come."""
        if not (self.stop or likelihoods):
            return self._add(ids, None, is_last)  # at once: one call of the tokenizer for all
        text, tokens = "", []
        # One by one, to know where each ends and which completes a stop string.
        for place, id in enumerate(ids):
            more = self._add([id], likelihoods[place] if likelihoods else None, False)
            text, tokens = text + more[0], tokens + more[1]
            if self.is_stopped:
                return text, tokens
        if is_last:
            more = self._add([], None, True)
            text, tokens = text + more[0], tokens + more[1]
        return text, tokens

    def _add(self, ids: Sequence[int], likelihood: Likelihood | None, is_last: bool) -> tuple[str, list[Token]]:
        self.count += len(ids)
        # A token that only completes a character begins, as its text does, where that character stands.
        offset = self.given + len(self.held)
        self.held += self._decoded(ids, is_last)
        if likelihood is not None:
            self.tokens.append((self.given + len(self.held), Token(*ids, likelihood, offset)))
        end = self._safe_end(is_last)
        text, self.held = self.held[:end], "" if self.is_stopped else self.held[end:]
        self.given += len(text)
        # A token in which a stop string begins is no longer the reply's.
        told = [token for reached, token in self.tokens if reached <= self.given]
        self.tokens = [(reached, token) for reached, token in self.tokens if reached > self.given]
        return text, told

    def _decoded(self, ids: Sequence[int], is_last: bool) -> str:
        """The text that is known with these tokens and was not before."""
        self.ids += ids
        for held in range(1 if is_last else MOST_HALF + 1):
            end = len(self.ids) - held
            if end <= self.known:
                return ""
            text = self._text(self.ids[self.start : end])
            if not text.endswith(HALF):
                break
        # Without a break: bytes that are no character, as none that may yet be completed begins so far back.
        known = self._text(self.ids[self.start : self.known])
        if self.known_is_whole:  # bytes that are no character are shown by one sign or by more, after where they begin
            self.start = self.known
        self.known, self.known_is_whole = end, not text.endswith(HALF)
        return text[len(known) :]

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _safe_end(self, is_last: bool) -> int:
        """How much of what is held can be given out: up to a stop string, or to what may be the beginning of one."""
        found = [(place + len(stop), place) for stop in self.stop if (place := self.held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return min(found)[1]  # by the end first; of two that end in one place the longer
        if is_last:
            return len(self.held)
        # From the earliest place on at which a string that is not complete can begin.
        longest = max(map(len, self.stop), default=1) - 1
        for start in range(max(0, len(self.held) - longest), len(self.held)):
            if any(stop.startswith(self.held[start:]) for stop in self.stop):
                return start
        return len(self.held)
