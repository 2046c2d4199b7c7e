"""Marking replies that are programs: the code is taken out of a reply, joined with its tests and run in the sandbox."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gendistill.evaluate.items import Item
from gendistill.evaluate.parsing import Answer
from gendistill.sandbox.run import Outcome, run_many

# The language of a fence is kept: a block of shell or of output ends where it ends, and is no code.
_FENCED = re.compile(r"```[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = {"python", "py", "python3"}
_OPENS_CODE = re.compile(r"^(?:def |async def |class |import |from \S+ import |@)", re.MULTILINE)
_INDENTATION = 4


class Graded(NamedTuple):
    """The verdict on a reply that should be a program.

    Attributes:
        answer: parsed is the program without its tests, None if the reply holds no Python; correct if all tests passed.
        reason: how the program ended (`sandbox.Outcome.reason`), or "unparsed".
    """

    answer: Answer
    reason: str


def grade_code(items: Sequence[Item], replies: Sequence[str]) -> list[Graded]:
    """Runs each reply against its item's tests (`Item.checks`), as many at a time as there are cores.

    Raises:
        UserError: this machine offers no isolation, so no program was run.
    """
    codes = [solution(reply, item.checks) for item, reply in zip(items, replies, strict=True)]
    tested = [(code, item.checks["tests"]) for item, code in zip(items, codes, strict=True) if code is not None]
    outcomes = iter(run_many(f"{code}\n\n{tests}\n" for code, tests in tested))
    return [_marked(code, None if code is None else next(outcomes)) for code in codes]


def _marked(code: str | None, outcome: Outcome | None) -> Graded:
    if outcome is None:
        return Graded(Answer(None, False), "unparsed")
    return Graded(Answer(code, outcome.ok), outcome.reason)


def solution(reply: str, checks: Mapping[str, Any]) -> str | None:
    """The code a reply gives, with the code it was asked to go on from before it; None if there is no Python.

    Read are fenced blocks, code without fences even with prose around it, a whole function, or only the body of the
    prefix's function (indented, not indented, or with its first line stripped). A whole function overrides the one that
    the prefix declares, and has the prefix's imports and helpers. What the reply does when run as a script is left out.

    Args:
        checks: `prefix`, code that a reply may go on from, ending in a function without its body; `entry_point`, the
            name that the tests call. Either may be missing or None.
    """
    prefix, name = checks.get("prefix") or "", checks.get("entry_point")
    outside = reply.split("```", 1)[0]  # the fence may also end a body that began without one
    for code in (code_of(reply), *_bare_codes(outside, name)):
        for reading in _readings(code, prefix, name):
            if (tree := _tree(reading)) is not None:
                return _without_script(reading, tree)
    return None


def code_of(reply: str) -> str:
    """The reply's code: its Python blocks one below the other, else its unnamed blocks, else all of it.

    A block that is not Python whatever it calls itself (a session with prompts, a call of pip) is left out.
    """
    blocks = [(language.lower(), code) for language, code in _FENCED.findall(reply)]
    named = [code for language, code in blocks if language in _PYTHON]
    codes = named or [code for language, code in blocks if not language]
    return "\n\n".join([code for code in codes if _tree(textwrap.dedent(code))] or codes) or reply


def _bare_codes(text: str, name: str | None) -> Iterator[str]:
    """Code that may have prose around it: fewer and fewer lines, from the first that opens code if it is whole."""
    opening = _OPENS_CODE.search(text)
    start = opening.start() if opening and _defines(text, name) else 0
    lines = text[start:].rstrip().split("\n")
    return ("\n".join(lines[:end]) for end in range(len(lines), 0, -1))


def _defines(code: str, name: str | None) -> bool:
    name = re.escape(name) if name else r"\w+"
    return re.search(rf"^(?:(?:async )?def|class) {name}\b|^{name}\s*=", code, re.MULTILINE) is not None


def _readings(code: str, prefix: str, name: str | None) -> Iterator[str]:
    """Programs that the code may stand for, the likelier first."""
    if not code.strip():
        return
    whole = textwrap.dedent(code)
    if _defines(whole, name):
        yield _joined(prefix, whole)
    if prefix:
        indentation = " " * _body_column(prefix)
        yield f"{prefix.rstrip()}\n{indentation}{code.lstrip()}"
        yield f"{prefix.rstrip()}\n{textwrap.indent(whole, indentation)}"
    yield _joined(prefix, whole)


def _joined(prefix: str, code: str) -> str:
    """Prefix and code as one program; imports from __future__ must be its first statements."""
    if prefix and _tree(prefix) is None:  # a function without even a docstring
        prefix = f"{prefix.rstrip()}\n{' ' * _INDENTATION}pass\n"
    lines = code.split("\n")
    first = [line for line in lines if line.startswith("from __future__ ")]
    rest = [line for line in lines if not line.startswith("from __future__ ")]
    return "\n".join([*first, *([f"{prefix.rstrip()}\n\n"] if prefix else []), *rest])


def _body_column(prefix: str) -> int:
    """Where the body of the prefix's last function starts: at the column of its docstring, if it has one."""
    last = tree.body[-1] if (tree := _tree(prefix)) and tree.body else None
    return last.body[0].col_offset if isinstance(last, ast.FunctionDef | ast.AsyncFunctionDef) else _INDENTATION


def _tree(code: str) -> ast.Module | None:
    """The syntax tree of code that compiles, else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like in what a model wrote
            tree = ast.parse(code)
            compile(tree, "program.py", "exec", dont_inherit=True)  # refuses more: a `return` outside of functions
            return tree
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        return None


def _without_script(code: str, tree: ast.Module) -> str:
    lines = code.split("\n")
    for node in reversed(tree.body):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)
