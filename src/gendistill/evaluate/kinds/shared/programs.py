"""The Python program that a reply gives, whatever stands around it."""

import ast
import functools
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gendistill.evaluate.kinds.shared.fences import read_fences
from gendistill.evaluate.kinds.shared.script_part import names_used, without_script

_PYTHON = {"python", "py", "python3", "py3", "ipython"}
_OPENS_CODE = re.compile(r"^(?:def |async def |class |import |from \S+ import |@)", re.MULTILINE)
# What may stand before that and be needed; prose may look like it.
_OPENS_STATEMENT = re.compile(r"^(?:\w+(?:: [^=\n]*)? = |try:|if |for |with )", re.MULTILINE)
_INDENTATION = 4
CUTS_TRIED = 8  # of code with prose behind it; a compiler's error says where to cut, so two or three do


class _Reading(NamedTuple):
    """A program that code may stand for: `head`, which is not the code's, and the code's lines as they stand in it."""

    head: str
    lines: list[str]

    def program(self, end: int | None = None) -> str:
        return "\n".join([self.head, *self.lines[:end]] if self.head else self.lines[:end])


def program_of(reply: str, checks: Mapping[str, Any]) -> str | None:
    """The code a reply gives, with the code that it was to complete before it; None if there is no Python.

    Found are fenced blocks, code without fences even with prose around it, a whole function, or only the body of the
    prefix's function (indented, not indented, or with its first line stripped). A whole function overrides the one that
    the prefix declares, and has the prefix's imports and helpers. What the tests do not need is left out: examples of
    use, `input()`, a test suite, all that a reply does when it is run as a script.

    Args:
        checks: `prefix`, code that a reply may complete, ending in a function without its body; `entry_point`, the
            name that the tests call; `tests`, the program that is run behind it. Each may be missing or None.
    """
    prefix, name = checks.get("prefix") or "", checks.get("entry_point")
    wanted = set(_names_in_tests(checks.get("tests") or ""))
    wanted |= {name} if name else set()
    reply = reply.replace("\r\n", "\n").replace("\r", "\n")  # as Python counts lines
    try:
        program = _first_program(reply, prefix, wanted)
        return None if program is None else without_script(program, ast.parse(program), wanted)
    # Code nested so deeply that Python gives up on it is no program for it either.
    except (RecursionError, MemoryError):
        return None


@functools.lru_cache(maxsize=4096)
def _names_in_tests(tests: str) -> frozenset[str]:
    tree = _tree(tests)
    return frozenset() if tree is None else frozenset(names_used(tree))


def _first_program(reply: str, prefix: str, wanted: set[str]) -> str | None:
    """The first reading that compiles: code that defines a wanted name before other code, fenced before bare."""
    read = read_fences(reply, _is_whole)
    fenced = [code for code in _fenced_codes(read.blocks) if code.strip()]
    bare = [text for text in read.outside if text.strip()]
    # A function in a block that calls itself text, say. Of such blocks nothing less counts.
    misnamed = [code for language, code in read.blocks if language and language not in _PYTHON]
    sources = [(code, _fenced_program, True) for code in fenced]
    sources += [(text, _bare_program, True) for text in bare]
    sources += [(code, _fenced_program, True) for code in misnamed]
    sources += [(code, _fenced_program, False) for code in fenced]
    sources += [(text, _bare_program, False) for text in bare]
    for code, program_in, defines in sources:
        if _defines(textwrap.dedent(code), wanted) is defines and (program := program_in(code, prefix, wanted)):
            return program
    return None


def _fenced_program(code: str, prefix: str, wanted: set[str]) -> str | None:
    programs = (reading.program() for reading in _readings(code, prefix, wanted))
    whole = next((program for program in programs if _compiles(program)), None)
    return whole or _cut_behind_function(code, prefix, wanted)


def _cut_behind_function(code: str, prefix: str, wanted: set[str]) -> str | None:
    """The function of code that breaks off, or is no Python, somewhere behind it; None if the function itself does."""
    reading = _joined(prefix, textwrap.dedent(code))
    end = _lines_that_compile(reading)
    left_out = next((line for line in reading.lines[end:] if line.strip()), "")
    program = reading.program(end)
    # An indented line that is left out is one of the function's own.
    is_outside = not left_out.startswith((" ", "\t", ")", "]", "}"))
    if "\0" in code:  # Python refuses such a file whole, so no end is any better
        return None
    return program if end and is_outside and _defines(program.removeprefix(reading.head), wanted) else None


def defines(program: str, name: str) -> bool:
    """Whether a program has a function, class or variable of that name at its top level."""
    return _defines(program, {name})


def code_of(reply: str) -> str:
    """The reply's code: its Python blocks one below the other, else its unnamed blocks, else all of it.

    A block that is not Python whatever it calls itself (a session with prompts, a call of pip) is left out.
    """
    return next(_fenced_codes(read_fences(reply, _is_whole).blocks), "") or reply


def _fenced_codes(blocks: list[tuple[str, str]]) -> Iterator[str]:
    """What blocks give together: those named Python, then those without a name."""
    named = [code for language, code in blocks if language in _PYTHON]
    # Unnamed blocks may be output or shell, so they count only where no block says that it is Python.
    unnamed = [code for language, code in blocks if not language]
    for codes in filter(None, (named, unnamed)):
        yield "\n\n".join([code for code in codes if _compiles(textwrap.dedent(code))] or codes)


def _is_whole(language: str, code: str) -> bool:
    # Other languages quote no fences, or nothing is lost.
    return bool(language) and language not in _PYTHON or _compiles(textwrap.dedent(code))


def _bare_program(text: str, prefix: str, wanted: set[str]) -> str | None:
    """Code that may have prose around it: from a line that opens code if it is whole, up to where it ends."""
    if _defines(text, wanted):
        # Prose may stand before it, or a statement that the definition needs; not every such line opens code.
        openings = [opening.start() for each in (_OPENS_STATEMENT, _OPENS_CODE) if (opening := each.search(text))]
        for start in sorted({0, *openings}):
            reading = _joined(prefix, textwrap.dedent(text[start:]))
            program = reading.program(_lines_that_compile(reading))
            if _defines(program.removeprefix(reading.head), wanted):
                return program
    # Code that defines something else may be quoted in prose about the body that follows.
    found = [(reading, _lines_that_compile(reading)) for reading in _readings(text, prefix, wanted)]
    # Of the readings that keep most of it the first.
    reading, end = max(found, key=lambda each: each[1], default=(None, 0))
    return reading.program(end) if end else None


def _lines_that_compile(reading: _Reading) -> int:
    """How many of a reading's lines are Python, counted from the first; 0 if no line that is not blank is."""
    end, before = len(reading.lines), reading.head.count("\n") + 1 if reading.head else 0
    for _ in range(CUTS_TRIED):
        error = _error(reading.program(end))
        if error is None:
            return end if any(map(str.strip, reading.lines[:end])) else 0
        # With the line that the compiler stumbles over no end is any better. An error in the head is of its last line,
        # which lacks a body.
        at = error - before
        end = min(end, at if at > 0 else end) - 1
        if end < 1:
            break
    return 0


def _defines(code: str, names: set[str]) -> bool:
    """Whether code defines one of the names at its outermost level; any name, where none is given."""
    any_of = "|".join(map(re.escape, sorted(names))) or r"\w+"
    return re.search(rf"^(?:(?:async )?def|class) (?:{any_of})\b|^(?:{any_of})[ \t]*=", code, re.MULTILINE) is not None


def _readings(code: str, prefix: str, wanted: set[str]) -> Iterator[_Reading]:
    """Programs that the code may stand for, the likelier first."""
    if not code.strip():
        return
    whole = textwrap.dedent(code)
    # A whole function; then the body of the prefix's function, its first line's indentation stripped or not; then code
    # that merely stands behind the prefix.
    if _defines(whole, wanted):
        yield _joined(prefix, whole)
    if prefix:
        indentation = " " * _body_column(prefix)
        yield _Reading(prefix.rstrip(), f"{indentation}{code.lstrip()}".split("\n"))
        yield _Reading(prefix.rstrip(), textwrap.indent(whole, indentation).split("\n"))
    yield _joined(prefix, whole)


def _joined(prefix: str, code: str) -> _Reading:
    """Prefix and code as one program; imports from __future__ must be its first statements."""
    if prefix and not _compiles(prefix):  # a function without even a docstring
        prefix = f"{prefix.rstrip()}\n{' ' * _INDENTATION}pass\n"
    lines = code.split("\n")
    # In front of the prefix, or the program would not compile.
    first = [line for line in lines if line.startswith("from __future__ ")]
    rest = [line for line in lines if not line.startswith("from __future__ ")]
    return _Reading("\n".join([*first, *([f"{prefix.rstrip()}\n\n"] if prefix else [])]), rest)


@functools.lru_cache(maxsize=4096)
def _body_column(prefix: str) -> int:
    """Where the body of the prefix's last function starts: at the column of its docstring, if it has one."""
    last = tree.body[-1] if (tree := _tree(prefix)) and tree.body else None
    return last.body[0].col_offset if isinstance(last, ast.FunctionDef | ast.AsyncFunctionDef) else _INDENTATION


def _tree(code: str) -> ast.Module | None:
    """The syntax tree of code that compiles, else None."""
    return ast.parse(code) if _compiles(code) else None


def _compiles(code: str) -> bool:
    return _error(code) is None


@functools.lru_cache(maxsize=64)  # a block is looked at alone, with the others, and behind the prefix
def _error(code: str) -> int | None:
    """The line at which code does not compile, 0 if it is not known; None if it compiles."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like in what a model wrote
            compile(code, "program.py", "exec", dont_inherit=True)  # more than the syntax: `return` outside functions
    except SyntaxError as error:
        return error.lineno or 0
    except (ValueError, MemoryError, RecursionError, OverflowError):
        return 0
    return None
