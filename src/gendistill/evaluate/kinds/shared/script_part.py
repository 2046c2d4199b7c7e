"""Of a Python program what its tests need, without what it does when run as a script.

Kept are the statements of the module that bind a needed name, and those that change the value of a needed variable
(`table.append(1)`, `fill_table()`). Needed are the names that the tests use, and those that kept statements use. All
else is not run: examples of use, prints, `input()`, `main()`, a test suite of the reply's own.
"""

import ast
import builtins
import dis
import sys
from bisect import bisect_right
from collections import defaultdict
from types import CodeType
from typing import NamedTuple

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_PASSING = (ast.Import, ast.ImportFrom, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith)
_LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS"}
_BINDS = {"STORE_NAME", "STORE_GLOBAL", "DELETE_NAME", "DELETE_GLOBAL"}
# Code with these may use a name that it does not spell.
_BY_NAME = {"eval", "exec", "globals", "locals", "vars", "getattr"}
# What a program says to its user: a call of a function that does this is the script's.
_TALKS = {"input", "print", "exit", "quit", "open"}
# Settings of the interpreter and of libraries, which functions may rely on.
_SETS_UP = {"setrecursionlimit", "set_int_max_str_digits", "stack_size", "seed"}


class _Statement(NamedTuple):
    """A statement of the module, and names.

    Attributes:
        binds: those that it gives a value.
        fills: those in whose value it stores something (`table[0] = 1`, `add.calls = 0`).
        calls: those of which it calls a method and uses no result (`table.append(1)`).
        needs: those that it or the code in it uses.
        always: kept whatever is needed.
    """

    node: ast.stmt
    binds: set[str]
    fills: set[str]
    calls: set[str]
    needs: set[str]
    always: bool


def names_used(tree: ast.Module) -> set[str]:
    """The names that a module's code uses and neither defines itself nor has as builtins."""
    own = set().union(*(binds for binds, _ in _operations(tree.body)))
    return _names_used(compile(tree, "tests.py", "exec", dont_inherit=True)) - own - set(dir(builtins))


def without_script(code: str, tree: ast.Module, wanted: set[str]) -> str:
    """The code without the statements that none of the wanted names needs.

    Where it binds none of them, only what stands under a test of `__name__` is left out.

    Args:
        tree: of the code.
        wanted: names that the tests use.
    """
    body = [node for node in tree.body if not _asks_for_main(node)]
    statements = _statements(body, wanted)
    if wanted & set().union(*(statement.binds for statement in statements)):
        body = _needed(statements, wanted)
    return _without(code, tree, set(map(id, body)))


def _asks_for_main(node: ast.stmt) -> bool:
    if not isinstance(node, ast.If):
        return False
    return any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test))


def _statements(body: list[ast.stmt], wanted: set[str]) -> list[_Statement]:
    definitions = {node.name: node for node in body if isinstance(node, _DEFINITIONS)}
    # What calling a function of the program changes; found out once for each. A call of what is tested is its use.
    changed_by_calls = {name: _changed_by_call(node) for name, node in definitions.items() if name not in wanted}
    operations = _operations(body)
    real = {node.name for node in body if isinstance(node, _DEFINITIONS) and not _is_stub(node)}
    statements = []
    defined: set[str] = set()  # by a definition with a body, so far
    for node, (binds, needs) in zip(body, operations, strict=True):
        fills, calls = _changes(node, changed_by_calls)
        # "from solution import add" in an example of use: the reply itself is the solution. "with open(name) as f": a
        # variable of the script, though the function is called f. But "add = cache(add)" is the function.
        if isinstance(node, _PASSING):
            binds -= real
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            binds -= {name for name in binds & real if name not in needs or _is_call_of(node.value, name)}
        if isinstance(node, _DEFINITIONS):
            if not _is_stub(node):
                defined.add(node.name)
            elif node.name in defined:
                binds = set()  # a signature that is shown again
        statements.append(_Statement(node, binds, fills, calls, needs, _is_always_kept(node)))
    return statements


def _is_call_of(node: ast.expr | None, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _is_stub(node: ast.stmt) -> bool:
    """A definition without a body: a docstring, `pass` or `...` at most."""
    return all(
        isinstance(each, ast.Pass) or isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
        for each in node.body
    )


def _is_always_kept(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__" or node.names[0].name == "*"
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _SETS_UP


def _operations(body: list[ast.stmt]) -> list[tuple[set[str], set[str]]]:
    """For each statement the names that it binds, and those that it or the code in it uses."""
    # As the compiler has it, which knows what is a local variable and what is not; once for all, as that takes time.
    code = compile(ast.Module(body, []), "program.py", "exec", dont_inherit=True)
    starts = [(_lines_of(node)[0], node.col_offset) for node in body]
    found = [(set(), set()) for _ in body]
    for each in dis.get_instructions(code):
        is_code = isinstance(each.argval, CodeType)
        if not (is_code or each.opname in _BINDS or each.opname in _LOADS):
            continue
        place = each.positions
        binds, needs = found[max(0, bisect_right(starts, (place.lineno, place.col_offset)) - 1)]
        if each.opname in _BINDS:
            binds.add(each.argval)
        elif each.opname in _LOADS:
            needs.add(each.argval)
        elif is_code:
            needs |= _names_used(each.argval)
    return found


def _names_used(code: CodeType) -> set[str]:
    """Names of a module that code uses, and the functions and classes in it."""
    names, waiting = set(), [code]
    while waiting:
        code = waiting.pop()
        names.update(each.argval for each in dis.get_instructions(code) if each.opname in _LOADS)
        waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
    return names


def _changes(node: ast.stmt, changed_by_calls: dict[str, set[str]]) -> tuple[set[str], set[str]]:
    """The names that a statement fills, and those of which it calls methods, when it is run."""
    if isinstance(node, _DEFINITIONS):
        # A decorator of the program's own may enter what it decorates into a table.
        roots = {_root(each) for each in node.decorator_list} - {None}
        return (roots & changed_by_calls.keys()).union(*(changed_by_calls.get(root, ()) for root in roots)), roots
    fills, calls = _changed_by(node)
    for each in ast.walk(node):
        if isinstance(each, ast.Expr) and isinstance(each.value, ast.Call) and isinstance(each.value.func, ast.Name):
            fills |= changed_by_calls.get(each.value.func.id, set())  # `fill_table()`
    return fills, calls


def _changed_by(node: ast.AST) -> tuple[set[str], set[str]]:
    fills, calls = set(), set()
    for each in ast.walk(node):
        if isinstance(each, ast.Subscript | ast.Attribute) and not isinstance(each.ctx, ast.Load):
            fills.add(_root(each.value))
        if isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
            called = each.value.func
            if isinstance(called, ast.Attribute):
                calls.add(_root(called.value))
    return fills - {None}, calls - {None}


def _changed_by_call(function: ast.stmt) -> set[str]:
    """What a function of the program changes when it is called; nothing if it talks to a user."""
    if any(isinstance(each, ast.Name) and each.id in _TALKS for each in ast.walk(function)):
        return set()
    fills, calls = _changed_by(function)
    return fills | calls | {name for each in ast.walk(function) if isinstance(each, ast.Global) for name in each.names}


def _root(node: ast.expr) -> str | None:
    """The name that an expression like `a.b[0].c()` starts from."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _needed(statements: list[_Statement], wanted: set[str]) -> list[ast.stmt]:
    """The statements that the wanted names need."""
    by_name: dict[str, list[_Statement]] = defaultdict(list)
    # Methods of a module are the script's (`unittest.main()`); of a variable they change what functions see.
    variables = {name for each in statements if not _is_definition(each.node) for name in each.binds}
    for statement in statements:
        for name in statement.binds | statement.fills | (statement.calls & variables):
            by_name[name].append(statement)
    for name in _BY_NAME:
        by_name[name] += [each for each in statements if each.binds and _may_be_named(each.node)]
    kept: dict[int, ast.stmt] = {}
    seen: set[str] = set()
    waiting = [each for each in statements if each.always]
    names = set(wanted)
    while names or waiting:
        while names:
            name = names.pop()
            seen.add(name)
            waiting += by_name[name]
        statement = waiting.pop() if waiting else None
        if statement is not None and id(statement.node) not in kept:
            kept[id(statement.node)] = statement.node
            names |= statement.needs - seen
    return list(kept.values())


def _may_be_named(node: ast.stmt) -> bool:
    """Whether code that is put together at run time may use what a statement binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        # Others need not be there, and then no more than an example of use needs them.
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
        return all(module.split(".")[0] in sys.stdlib_module_names for module in modules)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _is_definition(node: ast.stmt) -> bool:
    return isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom))


def _without(code: str, tree: ast.Module, kept: set[int]) -> str:
    """The code of the kept statements (ids of their nodes), and all comments between them.

    A statement is left out with its lines; one that shares a line with others gives way to `pass`.
    """
    source = code.encode()  # the columns of a tree count bytes
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    pieces, done = [], 0
    for place, node in enumerate(tree.body):
        if id(node) in kept:
            continue
        first, last = _lines_of(node)
        neighbours = tree.body[max(0, place - 1) : place + 2]
        shares = any(other is not node and {first, last} & set(_lines_of(other)) for other in neighbours)
        start, end, instead = starts[first - 1], starts[last], b""
        if shares:
            start, end, instead = start + node.col_offset, starts[last - 1] + node.end_col_offset, b"pass"
        pieces += [source[done:start], instead]
        done = end
    return b"".join([*pieces, source[done:]]).decode()


def _lines_of(node: ast.stmt) -> tuple[int, int]:
    decorators = getattr(node, "decorator_list", ())
    return min([node.lineno, *(each.lineno for each in decorators)]), node.end_lineno
