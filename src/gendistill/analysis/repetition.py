"""Whether a text is caught in a repetition loop, judged by its characters alone."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_SHINGLE = 16  # characters: shorter ones return in honest prose, longer ones find no short period in a short loop
_REPEATS = 4
_REPEATS_OF_PARAGRAPHS = 3
_PARAGRAPH = 200  # columns
_LOOP = 100  # columns; laughter and cries stay below
_PATTERN_LOOP = 1000  # columns; no honest ruler, matrix or number is longer (the largest double has 309 digits)
_TABLE_ROW = re.compile(r"^\s*\|.*$", re.MULTILINE)
_NOT_A_WORD = re.compile(r"[\W_]+")


class _Loop(NamedTuple):
    """Characters `start` to `end` of a text, in which a unit of `period` characters comes again and again."""

    start: int
    end: int
    period: int


def repeats(text: str) -> bool:
    """Whether a text ends in a repetition loop or consists of one for at least half its length.

    A loop is one unit of any length over and over with nothing between; the last repeat may be cut short. Compared are
    characters, without regard to case and the amount of white space, then words alone, without punctuation. Lengths
    are in columns, of which an East Asian wide character takes two. It counts as a loop from

    - 4 repeats and 100 columns on (3 repeats, if the unit is a paragraph of 200 columns or more);
    - 1,000 columns on, if the unit holds no letter or a table's "|": rulers, matrices, long numbers, tables.

    So laughter, a refrain and a line written three times are no loops; a text that was to repeat a line ten times is
    one. The text ends in a loop if less than one more unit follows it.
    """
    letters = unicodedata.normalize("NFKC", text).casefold()
    spaced = " ".join(letters.split())
    if _has_loop(spaced):
        return True
    # Without punctuation a table is a run of equal words ("yes yes yes"), so its rows go first.
    words = _NOT_A_WORD.sub(" ", _TABLE_ROW.sub("", letters)).strip()
    return _has_loop(words)


def _has_loop(text: str) -> bool:
    """Whether a loop that is long enough ends the text or takes half of it."""
    widths = np.array([1 + (unicodedata.east_asian_width(character) in "WF") for character in text], dtype=np.int64)
    columns = np.concatenate([[0], np.cumsum(widths)])  # [characters + 1]: columns before each character, then all
    for loop in _loops(text):
        if not _is_long(loop, text, columns):
            continue
        ends_the_text = len(text) - loop.end < loop.period
        length = columns[loop.end] - columns[loop.start]
        if ends_the_text or 2 * length >= columns[-1]:
            return True
    return False


def _is_long(loop: _Loop, text: str, columns: np.ndarray) -> bool:
    """Whether a loop is longer than honest repetition of its kind; `columns` as in `_has_loop`."""
    length = columns[loop.end] - columns[loop.start]
    unit = text[loop.start : loop.start + loop.period]
    if "|" in unit or not any(map(str.isalpha, unit)):
        return length >= _PATTERN_LOOP
    repeats_of_unit = (loop.end - loop.start + 1) // loop.period  # the last repeat has no space behind it
    is_paragraph = columns[loop.start + loop.period] - columns[loop.start] >= _PARAGRAPH
    return length >= _LOOP and repeats_of_unit >= (_REPEATS_OF_PARAGRAPHS if is_paragraph else _REPEATS)


def _loops(text: str) -> Iterator[_Loop]:
    """Longest stretches that equal themselves one period later, of three repeats or more."""
    # surrogatepass: JSON may hold half a surrogate pair, which the encoding refuses otherwise.
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)  # [characters]
    for period in _periods(text):
        # [characters - period + 2]: whether a character returns one period later; False outside closes every stretch.
        equal = np.concatenate([[False], characters[period:] == characters[:-period], [False]])
        boundaries = np.flatnonzero(equal[1:] != equal[:-1])  # [2 * stretches]: starts and ends by turns
        for start, end in boundaries.reshape(-1, 2).tolist():
            # A stretch is one period shorter than its loop, and the last space may be missing.
            if end - start + 1 >= 2 * period:
                yield _Loop(start, end + period, period)


def _periods(text: str) -> list[int]:
    """Distances at which shingles return. Inside a loop of period p most return after p, so others are left out."""
    last: dict[str, int] = {}  # where each shingle was seen last
    distances: Counter[int] = Counter()
    for position in range(len(text) - _SHINGLE + 1):
        shingle = text[position : position + _SHINGLE]
        if shingle in last:
            distances[position - last[shingle]] += 1
        last[shingle] = position
    # In a loop of n characters n - 15 - p shingles return after p: 16 or more in every loop that is long enough.
    return [distance for distance, count in distances.items() if count >= _SHINGLE]
