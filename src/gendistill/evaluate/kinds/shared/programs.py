"""The Python program that a reply gives, whatever stands around it."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

# The language of a fence is captured: a block of shell or of output ends where it ends, and is no code.
_FENCED = re.compile(r"```[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = {"python", "py", "python3"}
_OPENS_CODE = re.compile(r"^(?:def |async def |class |import |from \S+ import |@)", re.MULTILINE)
_INDENTATION = 4


def program_of(reply: str, checks: Mapping[str, Any]) -> str | None:
    """The code a reply gives, with the code that it was to complete before it; None if there is no Python.

    Found are fenced blocks, code without fences even with prose around it, a whole function, or only the body of the
    prefix's function (indented, not indented, or with its first line stripped). A whole function overrides the one that
    the prefix declares, and has the prefix's imports and helpers. What the reply does when run as a script is left out.

    Args:
        checks: `prefix`, code that a reply may complete, ending in a function without its body; `entry_point`, the
            name that the tests call. Either may be missing or None.
    """
    prefix, name = checks.get("prefix") or "", checks.get("entry_point")
    outside = reply.split("```", 1)[0]  # the fence may also end a body that began without one
    # The first reading that compiles: fenced code before bare code, more lines before fewer.
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
    # Unnamed blocks may be output or shell, so they count only where no block says that it is Python.
    codes = named or [code for language, code in blocks if not language]
    return "\n\n".join([code for code in codes if _tree(textwrap.dedent(code))] or codes) or reply


def _bare_codes(text: str, name: str | None) -> Iterator[str]:
    """Code that may have prose around it: fewer and fewer lines, from the first that opens code if it is whole."""
    opening = _OPENS_CODE.search(text)
    # Code that defines something else may be quoted in prose about the body that follows.
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
    # A whole function; then the body of the prefix's function, its first line's indentation stripped or not; then code
    # that merely stands behind the prefix.
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
    # In front of the prefix, or the program would not compile.
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
    """The code without what it does when run as a script, which may wait for input or leave before the tests."""
    lines = code.split("\n")
    for node in reversed(tree.body):  # from the end, so that line numbers before it stay valid
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)
