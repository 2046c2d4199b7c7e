"""A right function stays right whatever a reply has around it: what it needs stays, and all else is not run.

Problems are of every kind there is in such sets: a helper in the prefix, recursion, names as short as those of
variables, evaluation of text, a table at the outermost level.
"""

import time

import pytest

from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.item import Item
from gendistill.evaluate.kinds.shared.programs import program_of

FENCE = "```"
# name -> prefix, function, tests
PROBLEMS = {
    "double": (
        'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef double(x):\n    """Twice x."""\n',
        "def double(x):\n    return math.floor(half(x) * 4)",
        "def check(candidate):\n    assert candidate(3) == 6\n",
    ),
    "f": ('def f(n):\n    """n!"""\n', "def f(n):\n    return 1 if n < 2 else n * f(n - 1)", "assert f(4) == 24"),
    "value": (
        'def value(text):\n    """What a sum gives."""\n',
        'def value(text):\n    """What a sum gives."""\n    return eval(text)',
        "def check(candidate):\n    assert candidate('1 + 2') == 3\n",
    ),
    "fib": ("", "MEMO = {0: 0, 1: 1}\n\ndef fib(n):\n    if n not in MEMO:\n        MEMO[n] = fib(n - 1) + fib(n - 2)\n"
                "    return MEMO[n]", "assert fib(30) == 832040"),
}  # fmt: skip
# What replies add to a right function.
ENDINGS = {
    "usage": "print(NAME(1))",
    "a placeholder": "result = NAME(your_input)\nprint(result)",
    "input": "value = input('value: ')\nprint(NAME(value))",
    "unittest": "import unittest\n\nclass Tests(unittest.TestCase):\n    def test(self):\n        assert NAME\n\n"
    "unittest.main()",
    "main": "def main():\n    n = int(input())\n    print(NAME(n))\n\nmain()",
    "wrong examples": "assert NAME is None\nfor case in [1, 2]:\n    assert NAME(case) == 'x', case",
    "doctest": "import doctest\ndoctest.testmod(verbose=True)\nimport sys; sys.exit(1)",
    "a loop for ever": "while True:\n    line = input()\n    if not line:\n        break\n    NAME(line)",
    "guard": "if '__main__' == __name__:\n    exit()",
    "a module that is not there": "import nowhere\nfrom solution import NAME\nnowhere.run(NAME)",
    "a file": "with open('nowhere.txt') as f:\n    data = f.read()\n"
    "try:\n    NAME(data)\nfinally:\n    raise ValueError",
    "a plot": "import nowhere.pyplot as plt\nplt.plot([NAME(x) for x in range(3)])\nplt.show()",
    "a fence in a string": f"MARK = '{FENCE}'\nTEXT = '''\n{FENCE}\nx\n{FENCE}\n'''",
    "a class that runs": "class Case:\n    got = NAME('wrong')['wrong']",
    "a signature": "def NAME(*args):\n    ...",
}
FORMS = {
    "in the same block": "FENCEpython\nCODE\n\nEND\nFENCE",
    "in a block below": "Here:\n\nFENCEpython\nCODE\nFENCE\n\nUsage:\n\nFENCEpython\nEND\nFENCE\nThat's it.",
    "in a block without a name": "FENCE\nCODE\n\nEND\nFENCE",
    "without a fence": "CODE\n\nEND",
    "prose around it": "Here's the function:\n\nCODE\n\nEND\n\nIt's right: isn't it (I think?",
    "windows line ends": "FENCEpython\r\nCODE\r\n\r\nEND\r\nFENCE",
}
WHOLE = {
    "a fence in a docstring": 'FENCEpython\ndef extra():\n    """\n    FENCE\n    NAME(1)\n    FENCE\n    """\n'
    "\nCODE\nFENCE",
    "a python fence in a docstring": 'FENCEpython\nCODE\n\ndef extra():\n    """\n    FENCEpython\n    NAME(1)\n'
    '    FENCE\n    """\nFENCE\nSo it is.\n\nFENCE\n3\nFENCE',
    "json before bare code": 'FENCEjson\n{"plan": "easy"}\nFENCE\n\nCODE\n',
    "a thought in a fence before prose and code": "FENCEtext\nFirst we think.\nFENCE\nNow the code.\n\nCODE\n\nDone.",
    "bare code, its use in a fence": "CODE\n\nUse it so:\nFENCEpython\nprint(NAME(1))\nFENCE",
    "a fence that calls itself text": "FENCEtext\nCODE\nFENCE",
    "a fence behind the last line": "Sure: FENCEpython\nCODEFENCE",
    "a second block that is cut off": "FENCEpython\nCODE\nFENCE\nTests:\nFENCEpython\nassert NAME(",
    "shell, output and a session": "FENCEbash\npip install x\nFENCE\nFENCEpython\nCODE\nFENCE\n"
    "FENCEpython\n>>> NAME(1)\n1\nFENCE",
}


def filled(form, name, ending=""):
    code = PROBLEMS[name][1]
    for word, text in (("CODE", code), ("END", ending), ("NAME", name), ("FENCE", FENCE)):
        form = form.replace(word, text)
    return form


def reasons(replies):
    """How programs ended, by (problem, whatever); `replies` likewise."""
    found = {}
    for name, (prefix, _, tests) in PROBLEMS.items():
        call = f"\n\ncheck({name})" if "check" in tests else ""
        item = Item(0, "code", "?", checks={"prefix": prefix, "entry_point": name, "tests": tests + call})
        own = [key for key in replies if key[0] == name]
        grades = grade([item] * len(own), [replies[key] for key in own])
        found |= {key: each.notes["tests"] for key, each in zip(own, grades, strict=True)}
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_script_part_does_not_fail_a_right_function(form):
    # Every form with every ending: the first with every problem, the others with one of them in turn.
    turn = list(FORMS).index(form)
    replies = {
        (name, end): filled(FORMS[form], name, ENDINGS[end])
        for number, name in enumerate(PROBLEMS)
        for place, end in enumerate(ENDINGS)
        if turn == 0 or (number + place + turn) % len(PROBLEMS) == 0
    }
    assert {key: reason for key, reason in reasons(replies).items() if reason != "passed"} == {}


def test_a_right_function_is_found_wherever_fences_stand():
    replies = {(name, form): filled(WHOLE[form], name) for name in PROBLEMS for form in WHOLE}
    assert {key: reason for key, reason in reasons(replies).items() if reason != "passed"} == {}


# Code of which all is needed by `get`; what else stands there is marked.
NEEDED = {
    "a table": "TABLE = []\nfor n in range(3):\n    TABLE.append(n)\n\ndef get():\n    return TABLE",
    "a table that is filled": "TABLE = {}\nTABLE[0] = 1\nTABLE.update(a=2)\n\ndef get():\n    return TABLE",
    "a table that a function fills": "T = [0] * 3\n\ndef fill():\n    for n in range(3):\n        T[n] = n\n\nfill()\n"
    "\ndef get():\n    return T",
    "a global": "count = 0\n\ndef step():\n    global count\n    count += 1\n\nstep()\n\ndef get():\n    return count",
    "a fallback": "try:\n    import numpy as np\nexcept ImportError:\n    np = None\n\ndef get():\n    return np",
    "by version": "import sys\nif sys.version_info > (3,):\n    unit = str\nelse:\n    unit = bytes\n"
    "\ndef get():\n    return unit",
    "a decorator": "import functools\n\n@functools.cache\ndef get():\n    return 1",
    "a wrapped function": "import functools\n\ndef get():\n    return 1\n\nget = functools.cache(get)",
    "a register": "KNOWN = {}\n\ndef known(f):\n    KNOWN[f.__name__] = f\n    return f\n\n@known\ndef one():\n"
    "    return 1\n\ndef get():\n    return KNOWN['one']()",
    "an attribute": "def get():\n    get.calls += 1\n    return get.calls\n\nget.calls = 0",
    "a class": "class Base:\n    size = 3\n\nclass Sized(Base):\n    pass\n"
    "\ndef get(kind=Sized):\n    return kind.size",
    "the depth of recursion": "import sys\nsys.setrecursionlimit(10_000)\n\ndef get():\n    return 1",
    "annotations": "from typing import List\n\nRow = List[int]\n\ndef get() -> Row:\n    return [1]",
    "a star": "from math import *\n\ndef get():\n    return pi",
    "evaluated": "def one():\n    return 1\n\ndef get():\n    return eval('one()')",
    "two versions": "def get():\n    return 1\n\ndef get():\n    return 2",
    "the future": "from __future__ import annotations\n\ndef get() -> Nothing:\n    return 1",
}


@pytest.mark.parametrize("code", NEEDED.values(), ids=NEEDED)
def test_what_a_function_needs_is_kept(code):
    checks = {"entry_point": "get", "tests": "assert get()"}
    script = "\n\nresult = get()\nprint(result)\nunused = 1\nassert result is unused"
    assert program_of(f"{FENCE}python\n{code}{script}\n{FENCE}", checks).strip() == code
    assert program_of(code, checks) == code


def test_what_the_tests_need_is_kept_and_what_nobody_needs_is_not():
    code = "LIMIT = 3\nOTHER = 4\n\nclass Pair:\n    pass\n\ndef get():\n    return Pair()"
    found = program_of(code, {"tests": "assert isinstance(get(), Pair) and LIMIT == 3"})
    assert "LIMIT" in found and "OTHER" not in found and "class Pair" in found


def test_a_name_that_the_tests_define_is_not_the_replys():
    body = "check = value * 2\nreturn check"
    checks = {"prefix": 'def double(value):\n    """?"""\n', "entry_point": "double"}
    checks["tests"] = "def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"
    (graded,) = grade([Item(0, "code", "?", checks=checks)], [body])
    assert graded.strict.correct


def test_statements_that_share_a_line():
    code = "x = 1; print(x); y = 'ä'; exit()  # ends\ndef get(): return x, y"
    assert program_of(code, {"entry_point": "get"}) == ("x = 1; pass; y = 'ä'; pass  # ends\ndef get(): return x, y")


DEEP = {
    "sum": f"def get():\n    return 1\n\nx = {'1 + ' * 20_000}1",
    "minus": f"def get():\n    return 1\n\nx = {'-' * 20_000}1",
    "brackets": f"def get():\n    return {'(' * 20_000}1{')' * 20_000}",
    "list": f"x = {'[' * 90}{']' * 90}\ndef get(): return x",
    "attributes": f"if x{'.a' * 20_000} == '__main__':\n    pass\ndef get(): return 1",
    "calls": f"def get(): return 1\nget{'()' * 20_000}",
}


@pytest.mark.parametrize("code", DEEP.values(), ids=DEEP)
def test_deep_code_spoils_its_own_reply_at_most(code):
    item = Item(0, "code", "?", checks={"prefix": "", "entry_point": "get", "tests": "assert get()"})
    good = "def get():\n    return 1"
    for reply in (code, f"{FENCE}python\n{code}\n{FENCE}"):
        first, middle, last = grade([item] * 3, [good, reply, good])
        assert first.strict.correct and last.strict.correct
        assert middle.notes["tests"] in ("unparsed", "passed")


SIZE = 100_000
SLOW = {
    "blanks": " " * SIZE + "x",
    "empty lines": "\n" * SIZE,
    "fences": "```\n" * (SIZE // 4),
    "python fences": "```python\n" * (SIZE // 10),
    "one line of fences": "`" * SIZE,
    "fences that end far away": "```python\nx (\n```\n" * (SIZE // 18) + "y```\n" * 20,
    "brackets": "(" * SIZE,
    "lists": "[\n" * (SIZE // 2),
    "quotes": '"""\n' * (SIZE // 4),
    "prose": "That's it, isn't it? (No: \"hm.\n" * (SIZE // 30),
    "prose like code": "def f is what's needed:\n" * (SIZE // 24),
    "openings": "def f(x):\n" * (SIZE // 10),
    "names": "f" + " " * SIZE,
    "statements": "def f(x):\n    return x\n" + "a=1;" * (SIZE // 8),
    "a chain": "def f(x):\n    return x0\n" + "".join(f"x{n} = x{n + 1}\n" for n in range(SIZE // 16)),
    "wide characters": "\u3000" * SIZE,
}


@pytest.mark.parametrize("reply", SLOW.values(), ids=SLOW)
def test_time_grows_with_the_reply_and_not_with_its_square(reply):
    checks = {"prefix": 'def f(x):\n    """?"""\n', "entry_point": "f", "tests": "assert f(1)"}
    began = time.process_time()
    program_of(reply, checks)
    program_of(f"```python\n{reply}\n```", checks)
    assert time.process_time() - began < 4  # two replies of 100 KB on a busy machine; squares take minutes
