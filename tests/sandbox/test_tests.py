# ruff: noqa: E501 (programs are easier to read in fewer lines)
"""Tests in a process of their own see of a program what they would see in one module with it."""

import pytest

from gendistill.sandbox.run import run_many, run_python

PROGRAM = """
import collections, dataclasses, decimal, fractions, math

class Refused(ValueError):
    pass

@dataclasses.dataclass
class Pair:
    left: int
    right: int = 0
    def swapped(self): return Pair(self.right, self.left)
    def __iter__(self): return iter([self.left, self.right])
    def __len__(self): return 2
    def __getitem__(self, place): return (self.left, self.right)[place]

LIMIT = 7
table = {"a": [1, 2]}

def same(value): return value
def append(values): values.append(len(values)); return values
def fill(mapping, names=()): mapping.update(dict.fromkeys(names, 0)); names.clear()
def refuse(value): raise Refused("no", value)
def twice(function, value): return function(function(value))
def count(): yield from range(10**12)
def leave(): raise SystemExit(3)
def stop(): raise StopIteration
def skip(): import unittest; raise unittest.SkipTest
def named(): return collections.namedtuple("N", "x y")(1, 2)
def counted(text): return collections.Counter(text)
def exact(): return decimal.Decimal("0.1"), fractions.Fraction(1, 3), 2**20000, math.inf, 1j, range(3)
def outer(x): return lambda y: x + y
def both(first, second): return first is second
"""

# Statements that hold, and one of each kind that does not.
HOLD = [
    "assert same(1) == 1 and same(True) is True and same(None) is None and same(1.5) == 1.5",
    "assert same(-0.0) == 0 and str(same(-0.0)) == '-0.0' and same(float('nan')) != same(float('nan'))",
    "value = [(1, {2: {3, 4}}), frozenset([5]), b'x', bytearray(b'y'), 'é\\ud800', [[]], 2**100]\nassert same(value) == value",
    "value = (1, [2])\nassert type(same(value)) is tuple and same(value) == value",
    "import decimal, fractions, math\nassert exact() == (decimal.Decimal('0.1'), fractions.Fraction(1, 3), 2**20000, "
    "math.inf, 1j, range(3))",
    "assert named() == (1, 2) and counted('aab') == {'a': 2, 'b': 1}",
    "values = [5]\nassert append(values) is values and values == [5, 1]",
    "values, names = {}, ['a']\nfill(values, names=names)\nassert values == {'a': 0}",
    "value = [1]\nassert same(value) is value",
    "try: refuse(1)\nexcept Refused as error: assert error.args == ('no', 1) and isinstance(error, ValueError)\nelse: assert 0",
    "try: same()\nexcept TypeError as error: assert 'missing 1 required' in str(error)\nelse: assert 0",
    "try: leave()\nexcept SystemExit: pass\nelse: assert 0",
    "assert twice(lambda x: x * 3, 2) == 18 and twice(abs, -1) == 1 and twice(str, 1) == '1'",
    "def broken(x): raise KeyError(x)\ntry: twice(broken, 2)\nexcept KeyError as error: assert error.args == (2,)\nelse: assert 0",
    "import itertools\nassert list(itertools.islice(count(), 3)) == [0, 1, 2] and next(count()) == 0",
    "pair = Pair(1, right=2)\nassert pair.left == 1 and pair.swapped() == Pair(2, 1) and pair != Pair(3, 3)",
    "pair = Pair(1)\npair.right = 5\nassert list(pair) == [1, 5] and len(pair) == 2 and pair[1] == 5 and 5 in pair and pair",
    "pair = Pair(1)\nassert isinstance(pair, Pair) and not isinstance(3, Pair) and str(pair) == 'Pair(left=1, right=0)'",
    "pair = Pair(1)\nassert same(pair) is pair and same([pair])[0] is pair and both(pair, pair)",
    "pair = Pair(1)\npair.number, pair.ask = 3, 4\nassert (pair.number, pair.ask) == (3, 4)",
    "assert outer(1)(2) == 3 and LIMIT == 7 and table['a'] == [1, 2]",
    "assert math.isclose(same(1.0), 1.0)",
    "def check(candidate):\n for n in range(50): assert candidate(n) == n\n\ncheck(same)",
    "import unittest\nclass T(unittest.TestCase):\n def test(self): self.assertRaises(Refused, refuse, 1)\n"
    "assert unittest.main(exit=False, argv=['x']).result.wasSuccessful()",
]  # fmt: skip
DO_NOT_HOLD = [
    "assert same(1) == 2",
    "assert Pair(1) == 1",
    "assert append([1]) == [1]",
    "missing(1)",
    "refuse(1)",
    "leave()",
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "assert Pair(1) == Pair(2)",
    "assert all(map(lambda n: stop() == n, [1]))",
    "import unittest\nclass T(unittest.TestCase):\n def test(self): skip()\n"
    "assert unittest.main(exit=False, argv=['x']).result.wasSuccessful()",
]


def test_tests_see_the_program_as_in_one_module():
    outcomes = run_many([PROGRAM] * len(HOLD), HOLD, seconds=20)
    assert {tests: outcome.error for tests, outcome in zip(HOLD, outcomes, strict=True) if not outcome.ok} == {}


def test_tests_that_do_not_hold_fail():
    outcomes = run_many([PROGRAM] * len(DO_NOT_HOLD), DO_NOT_HOLD, seconds=20)
    assert [outcome.reason for outcome in outcomes] == ["failed"] * len(DO_NOT_HOLD)


def test_arrays_are_copied():
    pytest.importorskip("numpy")
    program = (
        "import numpy\ndef double(values): return numpy.asarray(values) * 2\ndef total(values): return values.sum()"
    )
    tests = "import numpy\nassert (double([1, 2]) == numpy.array([2, 4])).all() and total(numpy.ones(3)) == 3.0"
    outcome = run_python(program, tests, seconds=20)
    assert outcome.ok, outcome.error


def test_the_error_shows_where_program_and_tests_stood():
    error = run_python(PROGRAM, "x = 1\nrefuse(x)").error
    assert "gendistill" not in error
    lines = error.splitlines()
    places = [line for line in lines if line.startswith("  File")]
    assert places == ['  File "program.py", line 22, in refuse', '  File "tests.py", line 2, in <module>']
    assert "    refuse(x)" in lines


def test_a_function_named_like_a_builtin_is_tested_and_no_other_replaces_one():
    assert run_python("def sum(a, b): return a * b", "assert sum(2, 3) == 6").ok
    assert not run_python("def abs(x): return 0\ndef f(x): return 9", "assert abs(f(1) - 1) < 0.1").ok


def test_what_the_program_prints_and_reads_is_kept():
    outcome = run_python("print('loaded')\ndef f(): print('called', input())", "f()\nprint('tested')", stdin="x\n")
    assert outcome == (True, "passed", "loaded\ncalled x\ntested\n", "")
