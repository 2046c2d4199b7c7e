"""Whether a text is caught in a loop: seen from the text alone."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_SHINGLE = 16  # characters
_ROUNDS = 4
_ROUNDS_OF_PARAGRAPHS = 3
_PARAGRAPH = 200  # columns
_LOOP = 100
_PATTERN_LOOP = 1000
_TABLE_ROW = re.compile(r"^\s*\|.*$", re.MULTILINE)
_NOT_A_WORD = re.compile(r"[\W_]+")


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
