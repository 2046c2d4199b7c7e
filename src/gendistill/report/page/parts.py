"""What the page is made of: sections of notes, tables, figures, replies and recipes; knows nothing of HTML."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST_WARNINGS = 6  # that are read one by one
LONGEST_NAME = 48  # letters of a file
NOTHING = "–"  # shown where there is no value


class Interval(NamedTuple):
    """A figure with the ends of its interval; `low` and `high` are None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None


Value = str | float | int | Interval | None


def text(value: Any) -> str:
    return str(value)


def count(value: float) -> str:
    return f"{value:,.0f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return f"{value:+.1f}"


def p_value(value: float) -> str:
    """Two digits; below a thousandth only that it is."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def decimals(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        key: its name in CSV and JSON, where values stand as measured: shares, not percent.
        label: as shown, with the unit.
        show: how a value is shown; `text` for names, which are set to the left.
    """

    key: str
    label: str
    show: Callable[[Any], str] = text


def known(value: Any) -> Any:
    """A value, or None for one that is no number: the loss of what diverged, which JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(column: Column, value: Value) -> str:
    """A value as text: "21.7 (14.1 to 30.5)" with an interval."""
    if value is None:
        return NOTHING
    # An interval whose ends are not known is shown as its value alone: means have none of Wilson's.
    if isinstance(value, Interval):
        if value.low is None:
            return column.show(value.value)
        return f"{column.show(value.value)} ({column.show(value.low)} to {column.show(value.high)})"
    return column.show(value)


@dataclass(frozen=True)
class Table:
    """A table; `name` is that of its files, `note` says below it what the columns hold."""

    name: str
    title: str
    columns: Sequence[Column]  # the first holds what a row is of
    rows: Sequence[Sequence[Value]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A plot, as SVG in the colours of a light page.

    Attributes:
        alt: what it shows, for those who do not see it.
    """

    name: str
    title: str
    svg: str
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Note:
    """A paragraph; `warns` sets it apart."""

    text: str
    warns: bool = False


class Reply(NamedTuple):
    """What one model replied to an item."""

    model: str
    text: str
    parsed: str | None  # by strict extraction
    correct: bool
    ranks_correct: bool | None  # None: the task is not ranked


@dataclass(frozen=True)
class Example:
    """An item with the replies of the teacher and of the students."""

    task: str
    question: str
    options: Sequence[tuple[str, bool]]  # text, and whether it is right
    accepted: str  # answers that count as right; empty where there are options
    replies: Sequence[Reply]


@dataclass(frozen=True)
class Listing:
    """A text as it is, folded away until it is asked for."""

    title: str
    text: str


def file_name(*words: str) -> str:
    """A name for a file: of letters that every system has, and of another ending for words that differ elsewhere."""
    whole = "_".join(filter(None, words))
    # Names of tasks and runs may hold what a file's may not, a slash first of all.
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in whole)
    if plain == whole and len(plain) <= LONGEST_NAME:
        return plain
    # Two names that differ only in what was replaced, or far behind, still have two files.
    return f"{plain[:LONGEST_NAME]}_{zlib.crc32(whole.encode()):08x}"


def batches(things: Sequence[Any], size: int) -> Iterator[tuple[str, Sequence[Any]]]:
    """So many at a time, each with what its title ends in: nothing, then ", 2", ", 3"."""
    for start in range(0, len(things), size):
        yield f", {1 + start // size}" if start else "", things[start : start + size]


Part = Table | Figure | Note | Example | Listing


def warnings(of: str, lines: Sequence[str]) -> list[Part]:
    """Paragraphs that warn; of many, as an ablation has them, one, with the others folded away."""
    if len(lines) <= MOST_WARNINGS:
        return [Note(line, warns=True) for line in lines]
    # All at once would push the numbers off the screen.
    listing = Listing(f"The warnings on the {of}", "\n".join(lines))
    return [Note(f"{len(lines)} warnings on the {of}.", warns=True), listing]


class Number(NamedTuple):
    """A number of the headline, with the controls beside it."""

    label: str
    value: str  # with its unit
    interval: str
    beside: Sequence[str]  # the same of each control, in words


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; left out where there is nothing."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        # Titles are our own and differ in their letters.
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """Everything that is shown."""

    title: str
    lead: str  # the result in a sentence
    numbers: Sequence[Number] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def of(self, kind: type) -> list[Any]:
        """All tables, or all figures, in the order of the page."""
        return [part for section in self.sections for part in section.parts if isinstance(part, kind)]
