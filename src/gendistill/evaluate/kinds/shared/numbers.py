"""Which number a reply gives, in one spelling."""

import re
from decimal import Decimal
from fractions import Fraction

# A minus sign belongs to the number unless something to subtract from stands before it ("10-5", "(2)-5").
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?(?<!\w)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?(?<![\w.])\.\d+"
)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
# What stands before a number that is said to be the answer, the surest first.
_BEFORE_STATED = [re.compile(p) for p in (r"\\boxed\{", r"####", r"[Aa]nswer(?: is|:)(?! not\b)[^.\d\n-]*")]


def last_number(text: str) -> str | None:
    """The last number of a text in one spelling ("$1,234.50" -> "1234.5", "18.0" -> "18"), or None."""
    numbers = _NUMBER.findall(text.replace("−", "-").replace("$", ""))
    if not numbers:
        return None
    # Decimal, not float: long numbers keep all digits. Adding 0 turns -0 into 0.
    return format((Decimal(numbers[-1].replace(",", "")) + 0).normalize(), "f")


def stated_number(text: str) -> str | None:
    """The last number that is boxed, behind "####" or stated to be the answer; else the last of the text.

    A fraction in LaTeX is one number, "2/3" if it has no end as a decimal.
    """
    for pattern in _BEFORE_STATED:
        ends = [match.end() for match in pattern.finditer(text)]
        for end in reversed(ends):
            stated = text[end : end + 60]  # units and marks may stand between, other sentences should not
            if fraction := _FRACTION.match(stated):
                return _quotient(*map(int, fraction.groups()))
            if number := _NUMBER.search(stated.replace("−", "-").replace("$", "")):
                return last_number(number[0])
    return last_number(text)


def _quotient(above: int, below: int) -> str:
    """A fraction as a decimal if it has an end, which it has if 2 and 5 are its denominator's only prime factors."""
    fraction = Fraction(above, below or 1)
    rest = fraction.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return last_number(str(float(fraction))) if rest == 1 else str(fraction)
