"""Finds evaluation items in training text by the words they share, so that no student trains on its examination."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gendistill.errors import UserError

SHORTEST = 6  # words an item has at least to be looked for inside longer texts

# Written without spaces between words, so a character stands for a word: kana, Han and what is compatible with it.
_HAN = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
# Vowel signs and accents, which \w leaves out: combining marks, Hebrew, Arabic, and the scripts of South-East Asia.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e00-\u109f\u1780-\u17d3"
_WORD = re.compile(rf"[{_HAN}]|(?:[^\W_{_HAN}]|[{_MARKS}])+")

_PRIME = 0x9E3779B97F4A7C15  # odd; hashes of word sequences are polynomials in it, modulo 2**64


class Overlap(NamedTuple):
    """An evaluation item of which a text holds `words`, in normalised form."""

    evaluation: str
    item: int  # number within its evaluation
    words: str


class OverlapIndex:
    """The n-grams of evaluation items, as 64-bit hashes of 12 bytes each with their owner.

    Words are compared without regard to case, punctuation and white space; each Chinese or Japanese character is a
    word. A text overlaps with an item if it holds

    - n words in sequence that the item holds too;
    - all the words of an item of fewer than n, in sequence, if they are 6 or more;
    - nothing but the words of an item of fewer than 6.

    Two different sequences have one hash with a chance of 5e-14 for each word of a text and million n-grams. Hashes
    are those of this Python process: an index cannot be saved.

    Attributes:
        items: how many items each evaluation has.
        found: how many texts given to `find` overlapped with each evaluation.
    """

    def __init__(self, n: int = 13) -> None:
        """Raises UserError if `n` is below 6."""
        if n < SHORTEST:
            raise UserError(f"Overlap of {n} words in sequence says nothing. Ask for {SHORTEST} or more; 13 is usual.")
        self.n = n
        self.items: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self._owners: list[tuple[str, int]] = []  # (evaluation, item) by the number that stands beside a hash
        self._by_length: dict[int, _Hashes] = {}  # length of sequences: n, and less for items shorter than that
        self._whole: dict[tuple[str, ...], list[int]] = {}  # words of items too short to look for inside a text

    def add(self, evaluation: str, text: str) -> int:
        """Adds an item (question, choices and answer in one text) and returns its number within its evaluation.

        Raises:
            UserError: the text holds no word.
        """
        words = _words(text)
        if not words:
            raise UserError(f"An item of {evaluation} holds no word: {text!r}. Give its question, choices and answer.")
        number = self.items[evaluation]
        self.items[evaluation] += 1
        owner = len(self._owners)
        self._owners.append((evaluation, number))
        length = min(len(words), self.n)
        if length < SHORTEST:
            self._whole.setdefault(tuple(words), []).append(owner)
        else:
            *_, (_, hashes) = _sequence_hashes(words, length)  # of all lengths up to this one the last
            self._by_length.setdefault(length, _Hashes()).add(hashes, owner)
        return number

    def find(self, text: str) -> Overlap | None:
        """The first overlap of a text with any item, or None; counts every evaluation the text overlaps with."""
        words = _words(text)
        matches = list(self._matches(words))
        if not matches:
            return None
        self.found.update({self._owners[owner][0] for _, _, owner in matches})
        start, length, owner = min(matches)  # the first in the text, whatever the order of evaluations
        return Overlap(*self._owners[owner], " ".join(words[start : start + length]))

    def _matches(self, words: list[str]) -> Iterator[tuple[int, int, int]]:
        """First word, number of words and owner of whatever a text shares."""
        # Inside a longer text, five words in sequence would be met by chance.
        for owner in self._whole.get(tuple(words), ()) if len(words) < SHORTEST else ():
            yield 0, len(words), owner
        for length, hashes in _sequence_hashes(words, max(self._by_length, default=0)):
            if length in self._by_length:
                for start, owner in self._by_length[length].look_up(hashes):
                    yield start, length, owner


class _Hashes:
    """A map from hashes to owners, as two sorted arrays; what is added waits for the next look-up."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, np.uint64)
        self._owners = np.empty(0, np.uint32)
        self._waiting: list[tuple[np.ndarray, int]] = []

    def add(self, hashes: np.ndarray, owner: int) -> None:
        self._waiting.append((np.unique(hashes), owner))

    def look_up(self, hashes: np.ndarray) -> Iterator[tuple[int, int]]:
        """Position and owner of every one of hashes [words] that is known."""
        self._merge()
        first = np.searchsorted(self._hashes, hashes)  # [words]; len(self._hashes) for one above all, hence the minimum
        known = np.flatnonzero(self._hashes[np.minimum(first, len(self._hashes) - 1)] == hashes)
        for position in known.tolist():  # few: nearly all hashes of a text are unknown
            last = np.searchsorted(self._hashes, hashes[position], side="right")
            for owner in self._owners[first[position] : last].tolist():
                yield position, owner

    def _merge(self) -> None:
        if not self._waiting:
            return
        arrays, owners = zip(*self._waiting, strict=True)
        self._waiting = []
        hashes = np.concatenate([self._hashes, *arrays])  # [known + waiting]
        repeated = np.repeat(np.array(owners, np.uint32), [len(array) for array in arrays])  # [waiting]
        owners = np.concatenate([self._owners, repeated])
        # Stable, so that of several owners of one hash the one added first comes first.
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]


def _words(text: str) -> list[str]:
    """Without case and punctuation; full-width and other variants of a character count as the ordinary one."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _sequence_hashes(words: list[str], longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """For each length up to `longest`, hashes [len(words) - length + 1] of the word sequences of that length."""
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)  # [words]
    sequences = np.zeros(len(words) + 1, np.uint64)  # of length 0, one before each word and one behind the last
    # Each sequence one word longer than before, all at once: hash * prime + hash of the new last word, modulo 2**64.
    for length in range(1, min(longest, len(words)) + 1):
        sequences = sequences[:-1] * np.uint64(_PRIME) + hashes[length - 1 :]
        yield length, sequences
