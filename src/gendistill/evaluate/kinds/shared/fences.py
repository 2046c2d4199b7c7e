"""Fenced blocks of a reply in Markdown, and the text around them. Linear in the reply."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

FENCE = "```"
# Behind the fence stands the language, if anything: "python", "{.python}", "python title=...". No backtick: "```x```"
# is code within a line.
_OPENING = re.compile(r"(`{3,})[ \t]*[{.]*([\w+#-]*)[^`]*\Z")
# A fence in a text that the code quotes is no end of the block. So many of a kind are tried for each block.
ENDS_TRIED = 8
# Characters tried in all, as a multiple of the text: replies of nothing but fences would take for ever.
WORK = 8


class Reply(NamedTuple):
    """Blocks as (language in small letters, code), and the texts before, between and behind them."""

    blocks: list[tuple[str, str]]
    outside: list[str]


def read_fences(text: str, is_whole: Callable[[str, str], bool]) -> Reply:
    """The fenced blocks of a text.

    A block ends at the first fence at which it is whole: fences in a docstring or a string do not end it. Where it is
    whole at none, it ends at the first. The last block may lack its end.

    Args:
        is_whole: whether (language, code) is code of its language, as far as that can be told.
    """
    lines = text.split("\n")
    closings = _Closings(lines, WORK * len(text))
    blocks, outside = [], []
    start = 0  # of the text that no block has
    at = 0
    while at < len(lines):
        opening = _opening(lines[at])
        if opening is None:
            at += 1
            continue
        before, language = opening
        outside.append("\n".join([*lines[start:at], before]))
        end, code = _block(lines, at, closings, lambda code, language=language: is_whole(language, code))
        blocks.append((language, code))
        start = at = end
    outside.append("\n".join(lines[start:]))
    return Reply(blocks, outside)


def _opening(line: str) -> tuple[str, str] | None:
    """What stands before a fence that opens a block, and the block's language."""
    place = line.find(FENCE)
    if place < 0 or not (match := _OPENING.match(line, place)):
        return None
    return line[:place], match[2].lower()


class _Closings:
    """The lines that may close a block, by number: bare fences, and lines of code with a fence at their end.

    Attributes:
        work: characters that may still be tried.
    """

    def __init__(self, lines: list[str], work: int):
        self.work = work
        stripped = [line.strip() for line in lines]
        self.bare = [number for number, line in enumerate(stripped) if line and len(line) >= 3 and not line.strip("`")]
        self.behind_code = [number for number, line in enumerate(stripped) if line.endswith(FENCE) and line.strip("`")]
        self._passed = {"bare": 0, "behind_code": 0}

    def after(self, kind: str, line: int) -> list[int]:
        """The next of one kind. Asked for later and later lines, so that all of it together is linear."""
        numbers = getattr(self, kind)
        first = self._passed[kind]
        while first < len(numbers) and numbers[first] <= line:
            first += 1
        self._passed[kind] = first
        return numbers[first : first + ENDS_TRIED]


def _block(lines: list[str], at: int, closings: _Closings, is_whole: Callable[[str], bool]) -> tuple[int, str]:
    """The number of the line behind a block that opens at line `at`, and its code."""
    ends = _ends(lines, at, closings)
    first = found = next(ends)
    while closings.work > 0:
        if is_whole(found[1]):
            return found
        closings.work -= len(found[1])
        if (found := next(ends, None)) is None:
            break
    return first


def _ends(lines: list[str], at: int, closings: _Closings) -> Iterator[tuple[int, str]]:
    """Where a block may end, the likelier first: at a bare fence, behind a line's code, or with the text."""
    for end in closings.after("bare", at):
        yield end + 1, "".join(f"{line}\n" for line in lines[at + 1 : end])
    for end in closings.after("behind_code", at):
        last = lines[end].rstrip().rstrip("`")
        yield end + 1, "\n".join([*lines[at + 1 : end], last])
    yield len(lines), "\n".join(lines[at + 1 :])
