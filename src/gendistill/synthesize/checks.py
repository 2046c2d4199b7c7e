"""What can be said of a reply from its text alone: whether it is caught in a loop, and whether it is there already."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

_SHINGLE = 16  # characters
_ROUNDS = 4
_ROUNDS_OF_PARAGRAPHS = 3
_PARAGRAPH = 200  # columns
_LOOP = 100
_PATTERN_LOOP = 1000
_TABLE_ROW = re.compile(r"^\s*\|.*$", re.MULTILINE)
_NOT_A_WORD = re.compile(r"[\W_]+")
_OPERATORS = "-*/%!()[]"
_AROUND_OPERATOR = re.compile(r" ?([-*/%()\[\]]) ?")


class _Loop(NamedTuple):
    """Characters `start` to `end` of a text, in which a unit of `period` characters comes again and again."""

    start: int
    end: int
    period: int


def repeats(text: str) -> bool:
    """Whether a text ends in a repetition loop or consists of one for at least half its length.

    A loop is one unit of any length over and over with nothing between; the last round may be cut short. Compared are
    characters, without regard to case and the amount of white space, then words alone, without punctuation. Lengths
    are in columns, of which an East Asian wide character takes two. It counts as a loop from

    - 4 rounds and 100 columns on (3 rounds, if the unit is a paragraph of 200 columns or more);
    - 1,000 columns on, if the unit holds no letter or a table's "|": rulers, matrices, long numbers, tables.

    So laughter, a refrain and a line said three times are no loops; a text that was asked to repeat a line ten times is
    one. It ends the text if less than one round follows it.
    """
    letters = unicodedata.normalize("NFKC", text).casefold()
    return _loops_in(" ".join(letters.split())) or _loops_in(_NOT_A_WORD.sub(" ", _TABLE_ROW.sub("", letters)).strip())


def _loops_in(text: str) -> bool:
    widths = np.array([1 + (unicodedata.east_asian_width(character) in "WF") for character in text], dtype=np.int64)
    columns = np.concatenate([[0], np.cumsum(widths)])
    return any(
        _is_long(loop, text, columns)
        and (len(text) - loop.end < loop.period or 2 * (columns[loop.end] - columns[loop.start]) >= columns[-1])
        for loop in _loops(text)
    )


def _is_long(loop: _Loop, text: str, columns: np.ndarray) -> bool:
    length = columns[loop.end] - columns[loop.start]
    unit = text[loop.start : loop.start + loop.period]
    if "|" in unit or not any(map(str.isalpha, unit)):
        return length >= _PATTERN_LOOP
    rounds = (loop.end - loop.start + 1) // loop.period  # the last round has no space behind it
    paragraph = columns[loop.start + loop.period] - columns[loop.start] >= _PARAGRAPH
    return length >= _LOOP and rounds >= (_ROUNDS_OF_PARAGRAPHS if paragraph else _ROUNDS)


def _loops(text: str) -> Iterator[_Loop]:
    """Longest stretches that equal themselves one period later, of three rounds or more."""
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    for period in _periods(text):
        equal = np.concatenate([[False], characters[period:] == characters[:-period], [False]])
        borders = np.flatnonzero(equal[1:] != equal[:-1])
        for start, end in borders.reshape(-1, 2).tolist():
            if end - start + 1 >= 2 * period:
                yield _Loop(start, end + period, period)


def _periods(text: str) -> list[int]:
    """Distances at which shingles return. Inside a loop of period p most return after p, so others are left out."""
    last, distances = {}, Counter()
    for position in range(len(text) - _SHINGLE + 1):
        shingle = text[position : position + _SHINGLE]
        if shingle in last:
            distances[position - last[shingle]] += 1
        last[shingle] = position
    return [distance for distance, count in distances.items() if count >= _SHINGLE]


class Duplicates:
    """Texts met so far, as hashes of 16 bytes each.

    Near duplicates are equal but for case, white space and punctuation, as `normalise` leaves them out.

    Attributes:
        counts: how many texts were "new", "near" and "exact".
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._exact: set[bytes] = set()
        self._near: set[bytes] = set()

    def add(self, text: str) -> Literal["new", "near", "exact"]:
        """Remembers a text and says whether it was met before."""
        exact, near = _digest(text), _digest(normalise(text))
        kind = "exact" if exact in self._exact else "near" if near in self._near else "new"
        self._exact.add(exact)
        self._near.add(near)
        self.counts[kind] += 1
        return kind


def normalise(text: str) -> str:
    """Lower case, without white space and punctuation, except where they bear meaning.

    Symbols stay, operators and brackets next to a number or a single letter, and what stands between two digits: so
    "3 - 2" is not "3 / 2", "2(x + 1)" not "2x + 1", "1.5" neither "15" nor "1 5".
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    text = _AROUND_OPERATOR.sub(r"\1", text)
    return "".join(character for position, character in enumerate(text) if _bears_meaning(text, position, character))


def _bears_meaning(text: str, position: int, character: str) -> bool:
    kind = unicodedata.category(character)[0]
    if kind in "LMN":
        return True
    if kind == "S":
        return character != "`"
    if character in " .,:":
        return text[position - 1 : position].isdigit() and text[position + 1 : position + 2].isdigit()
    return character in _OPERATORS and (
        _is_operand(text[max(position - 2, 0) : position][::-1]) or _is_operand(text[position + 1 : position + 3])
    )


def _is_operand(neighbours: str) -> bool:
    """Whether the nearest of two characters is a digit or a letter that stands alone."""
    near, far = neighbours[:1], neighbours[1:]
    return near.isdigit() or (near.isalpha() and not far.isalpha())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
