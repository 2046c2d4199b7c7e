import tempfile
import textwrap
from pathlib import Path

import pytest

from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.item import Answer, Grades, Item
from gendistill.evaluate.kinds.shared.programs import code_of, program_of

# A problem whose function needs an import and a helper that only the prefix has.
PREFIX = '''import math


def double(x: float) -> float:
    """Twice x."""
    return 2 * x


def around(radius: float) -> float:
    """Circumference of a circle; 0 if there is none.

    >>> around(0)
    0
    """
'''
BODY = """    if radius <= 0:
        return 0
    half = math.pi * radius
    return double(half)
"""
FUNCTION = f"def around(radius: float) -> float:\n{BODY}"
TESTS = """
def check(candidate):
    assert candidate(-1) == 0
    assert candidate(1) == 2 * math.pi

check(around)
"""
CHECKS = {"prefix": PREFIX, "entry_point": "around", "tests": TESTS}
ASSERTS = {"tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"}  # no prefix, no name
ADD = "def add(a, b):\n    return a + b"

SOLVED = {
    "body": BODY,
    "body, stripped": BODY.strip(),
    "body, not indented": textwrap.dedent(BODY),
    "body, fenced": f"The body is:\n```python\n{BODY}```",
    "body, not indented, fenced": f"```\n{textwrap.dedent(BODY)}\n```",
    "body, then prose": f"{BODY.strip()}\n\nThat's it: we use the helper.",
    "body, then a closing fence": f"{BODY}```\n\nThat's it.",
    "body, then a function cut off": f"{BODY}\n\ndef area(radius):\n    return math.pi * (radius",
    "function": FUNCTION,
    "function, prose around it": f"Here's the function:\n\n{FUNCTION}\n\nIt's right because of the helper.",
    "function, fenced": f"Sure!\n\n```python\n{FUNCTION}```\n\nIt's right.",
    "function, fenced without a name": f"```\n{FUNCTION}```",
    "function, fence indented": f"1. Write this:\n\n{textwrap.indent(f'```py{chr(10)}{FUNCTION}```', '   ')}",
    "function, fence not closed": f"```python\n{FUNCTION}",
    "prefix and body": f"```Python\n{PREFIX}{BODY}```",
    "another helper in a block above": f"```python\ndef double(x): return x + x\n```\nand\n```python\n{FUNCTION}```",
    "output and shell in other blocks": f"```bash\npip install x\n```\n```python\n{FUNCTION}```\n```\n6.28...\n```",
    "a session in another block": f"```python\n{FUNCTION}```\n```python\n>>> around(0)\n0\n```",
    "windows line ends": f"```python\r\n{FUNCTION}```".replace("\n", "\r\n"),
    "assigned": "```python\naround = lambda radius: double(math.pi * max(radius, 0))\n```",
    "future import": f"```python\nfrom __future__ import annotations\n\n{FUNCTION}```",
    "run as a script": f"```python\n{FUNCTION}\nif __name__ == '__main__':\n    print(around(float(input())))\n```",
    "script, a function after it": f"```python\nif __name__ == '__main__':\n    exit()\n\n{FUNCTION}```",
}
NOT_SOLVED = {
    "wrong": FUNCTION.replace("return 0", "return 1"),
    "no body": "    pass",
    "the prefix again": f"```python\n{PREFIX}```",
    "another name": f"```python\n{FUNCTION.replace('around', 'circle')}```",
    "raises": "    raise NotImplementedError",
    "leaves": "    exit()",
}
NO_PYTHON = {
    "nothing": "",
    "prose": "I'm sorry, but I can't solve this one.",
    "another language": "```javascript\nfunction around(radius) { return 2 * Math.PI * radius; }\n```",
    "cut off": f"```python\n{FUNCTION}    return (",
    "a null byte": f"```python\n{FUNCTION}\0```",
    "a half character": "```python\nx = '\ud800'\n```",
    "nested too deeply": f"```python\nx = {'(' * 10**5}```",
}


def item(checks):
    return Item(0, "code", "?", checks=checks)


def reasons(checks, replies):
    grades = grade([item(checks)] * len(replies), list(replies.values()))
    return {name: each.notes["tests"] for name, each in zip(replies, grades, strict=True)}


def test_code_is_found_in_replies_of_every_form():
    assert reasons(CHECKS, SOLVED) == dict.fromkeys(SOLVED, "passed")


def test_wrong_code_fails_and_no_code_is_unparsed():
    expected = dict.fromkeys(NOT_SOLVED, "failed") | dict.fromkeys(NO_PYTHON, "unparsed")
    assert reasons(CHECKS, NOT_SOLVED | NO_PYTHON) == expected


def test_a_problem_without_a_prefix():
    solved = {
        "fenced": f"```python\n{ADD}\n```",
        "bare": ADD,
        "prose around it": f"Here's one:\n\n{ADD}\n\nThat's all.",
        "with an import": "Here's one:\nimport operator\n\nadd = operator.add\n\nThat's all.",
    }
    failed = {"wrong": ADD.replace("+", "-"), "another name": ADD.replace("add", "plus")}
    unparsed = {"prose": "Here's none.", "body": "    return a + b"}
    expected = dict.fromkeys(solved, "passed") | dict.fromkeys(failed, "failed") | dict.fromkeys(unparsed, "unparsed")
    assert reasons(ASSERTS, solved | failed | unparsed) == expected


def test_a_prefix_that_is_only_a_signature():
    checks = {"prefix": "def add(a, b):\n", "entry_point": "add", "tests": ASSERTS["tests"]}
    replies = {"body": "return a + b", "function": f"```python\n{ADD}\n```"}
    assert set(reasons(checks, replies).values()) == {"passed"}


def test_what_is_kept_for_the_record():
    good, bad, none = grade([item(CHECKS)] * 3, [BODY, NOT_SOLVED["wrong"], "No."])
    right = Answer(PREFIX + BODY, True)
    assert good == Grades(right, right, {"tests": "passed"})
    assert (bad.strict.correct, bad.flexible.correct, bad.notes) == (False, False, {"tests": "failed"})
    assert "return 1" in bad.strict.parsed and "check" not in bad.strict.parsed
    assert none == Grades(Answer(None, False), Answer(None, False), {"tests": "unparsed"})


def test_a_script_part_is_left_out_and_nothing_else():
    code = "a = 1\nif __name__ == '__main__':\n    a = 2\n    b = 3\nc = 4"
    assert program_of(f"```python\n{code}\n```", {}).strip() == "a = 1\nc = 4"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```\nx = 1\n```\nb\n```\ny = 2\n```", "x = 1\n\n\ny = 2\n"),
        ("```python\nx = 1\n```\n```\ny = 2\n```", "x = 1\n"),
        ("```sh\nls\n```\n```\ny = 2\n```", "y = 2\n"),
        ("```sh\nls\n```", "```sh\nls\n```"),
        ("```python\nx = 1\n```\n```python\n>>> x\n1\n```", "x = 1\n"),
        ("```python\nx = (\n```", "x = (\n"),
    ],
)
def test_blocks_of_a_reply(reply, code):
    assert code_of(reply) == code


@pytest.fixture
def victim():
    """A file that every user of this machine may write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        file = Path(folder) / "victim.txt"
        file.write_text("untrained")
        file.chmod(0o666)
        yield file
        assert [file.read_text(), [*Path(folder).iterdir()]] == ["untrained", [file]]


def test_hostile_replies_fail_beside_good_ones(victim):
    hostile = {
        "fork bomb": "import os\nwhile True: os.fork()",
        "10 GB": "x = bytearray(10**10)",
        "file outside": f"open({str(victim)!r}, 'w').write('changed')",
        "network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
        "endless loop": "while True: pass",
        "kill parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "forged end": "import os\nos._exit = print\nraise SystemExit(0)",
        "equal to everything": "return type('Always', (), {'__eq__': lambda *pair: True})()",
    }
    replies = {"good": f"```python\n{ADD}\n```"}
    # Within the function: what a script does besides is not run.
    opening, end = ADD.split("\n")
    bodies = {name: textwrap.indent(code, " " * 4) for name, code in hostile.items()}
    replies |= {name: f"```python\n{opening}\n{body}\n{end}\n```" for name, body in bodies.items()}
    replies |= {"good again": replies["good"]}
    ends = dict.fromkeys(hostile, "failed") | {"10 GB": "memory", "endless loop": "timeout"}
    assert reasons(ASSERTS, replies) == {"good": "passed", **ends, "good again": "passed"}
