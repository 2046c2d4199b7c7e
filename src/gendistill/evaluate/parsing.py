"""Reading an answer off a generated reply.

Strictly: in the form that was asked for; what cannot be read is wrong, and counted as unparsed besides.
Leniently: what a patient person would take for the answer, wherever it stands.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from gendistill.names import LETTERS

_ARTICLES = {"a", "an", "the"}
_WORD = re.compile(r"(?<!\w)-?\d+(?:\.\d+)*\w*|\w+")
# A minus sign belongs to the number unless something to subtract from stands before it ("10-5", "(2)-5").
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?(?<!\w)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?(?<![\w.])\.\d+"
)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_STATED_NUMBERS = [re.compile(p) for p in (r"\\boxed\{", r"####", r"[Aa]nswer(?: is|:)(?! not\b)[^.\d\n-]*")]


class Answer(NamedTuple):
    """What a reply says: `parsed` is None if no single answer could be read."""

    parsed: str | None
    correct: bool


def parse_letter(reply: str, choices: Sequence[str]) -> str | None:
    """Letter of the option a reply picks, or None.

    Read are a letter at the reply's start ("B", "b)", "(B)", "B. text"), "answer is B" or "Answer: B" anywhere, and the
    bare text of one option. A reply that names several letters picks none.
    """
    text = re.sub(r"[*`]", "", reply).strip()
    options = dict(zip(LETTERS, map(_plain, choices), strict=False))
    for letter, option in options.items():
        if _plain(text) == f"{letter.lower()}. {option}":  # even if the option is a letter itself: "B. A"
            return letter
    marked, named, listed = _letter_patterns(len(choices))
    if listed.match(text):
        return None
    letters = {match[1] for match in named.finditer(text)}
    if marked.match(text):
        letters |= {match[2].upper() for match in marked.finditer(text)}
    if not letters:
        letters = {letter for letter, option in options.items() if option == _plain(text)}
    return letters.pop() if len(letters) == 1 else None


@lru_cache
def _letter_patterns(count: int) -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """Patterns for: a letter that opens a line; "answer is B"; a reply that opens with two letters."""
    capital = f"[{LETTERS[:count]}]"
    letter = f"[{LETTERS[:count]}{LETTERS[:count].lower()}]"
    joint = r"\s*(?:,|/|&|and\b|or\b)?\s*"
    return (
        # A mark or the end of the line must follow, or the article in "A dog" would be read as option A.
        re.compile(rf"^[ \t]*(\()?({letter})(?(1)\)|(?=[.):]|[ \t]*$))", re.MULTILINE),
        # Capitals only, for the same reason: "the answer is a dog".
        re.compile(
            rf"\b[Aa]nswer(?:\s+is|\s*:)[\s:]*(?:[Oo]ption\s+)?\(?({capital})(?![\w'’])(?!\)?{joint}\(?{capital}(?!\w))"
        ),
        re.compile(rf"\(?{letter}[.):]*{joint}\(?{letter}(?:[.):]|\s*$)"),
    )


def parse_letter_flexibly(reply: str, choices: Sequence[str]) -> str | None:
    """Letter of the option a reply picks in whatever words, or None.

    Beyond `parse_letter`: the last letter that is boxed, in brackets or behind "answer", "option" or "choice"; else the
    one option whose text the reply holds; else the one capital letter that stands alone.
    """
    if strict := parse_letter(reply, choices):
        return strict
    text = re.sub(r"[*`]", "", reply)
    stated, alone = _flexible_patterns(len(choices))
    if found := [letter for match in stated.finditer(text) for letter in match.groups() if letter]:
        return found[-1]
    if _letter_patterns(len(choices))[0].search(text):  # goes through the options, and was cut off or names none
        return None
    for candidates in (_named(text, choices), {match[0] for match in alone.finditer(text)}):
        if len(candidates) == 1:
            return candidates.pop()
    return None


@lru_cache
def _flexible_patterns(count: int) -> tuple[re.Pattern, re.Pattern]:
    """Patterns for a letter that is stated to be the answer; for a capital letter alone, but for the article."""
    capital = f"[{LETTERS[:count]}]"
    stated = (
        rf"(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\b(?:(?!\bnot\b)[^.\n]){{0,40}}?(?<![\w'’])({capital})(?![\w'’]| [a-z])"
    )
    return (
        re.compile(rf"\\boxed\{{(?:\\text\{{)?({capital})\W|\(({capital})\)|{stated}"),
        re.compile(rf"(?<![\w'’]){capital}(?![\w'’]| [a-z])"),
    )


def _named(text: str, choices: Sequence[str]) -> set[str]:
    """Letters of the options whose texts a reply holds; one inside a longer one that is there too does not count."""
    said = normalise(text)
    options = dict(zip(LETTERS, map(normalise, choices), strict=False))
    held = {letter: option for letter, option in options.items() if _holds(said, option)}
    return {a for a, one in held.items() if not any(one != other and _holds(other, one) for other in held.values())}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces; signs and decimal points of numbers stay."""
    words = _WORD.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold()))
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def parse_short(reply: str, accepted: Sequence[str], candidates: Sequence[str]) -> Answer:
    """Reads a short free answer: right if it holds an accepted answer, as whole words, and no other candidate.

    A candidate inside a longer one that is there too ("York" in "New York") does not count as named. A reply that names
    several answers is unparsed; so is an empty one. Any other reply that names no candidate is an answer, and wrong.
    """
    text = normalise(reply)
    right = {normalise(answer) for answer in accepted}
    known = right | {normalise(candidate) for candidate in candidates}
    found = {phrase for phrase in known if _holds(text, phrase)}
    found = {phrase for phrase in found if not any(phrase != other and _holds(other, phrase) for other in found)}
    if found and found <= right:
        return Answer(min(found), True)
    if not text or len(found) > 1:
        return Answer(None, False)
    return Answer(found.pop() if found else text, False)


def parse_short_flexibly(reply: str, accepted: Sequence[str], candidates: Sequence[str]) -> Answer:
    """Right if the reply holds an accepted answer, whatever else it holds; else as `parse_short` says."""
    text = normalise(reply)
    for answer in map(normalise, accepted):
        if _holds(text, answer):
            return Answer(answer, True)
    return parse_short(reply, accepted, candidates)


def _holds(text: str, phrase: str) -> bool:
    return bool(phrase) and f" {phrase} " in f" {text} "


def last_number(text: str) -> str | None:
    """The last number of a text in one spelling ("$1,234.50" -> "1234.5", "18.0" -> "18"), or None."""
    numbers = _NUMBER.findall(text.replace("−", "-").replace("$", ""))
    if not numbers:
        return None
    return format((Decimal(numbers[-1].replace(",", "")) + 0).normalize(), "f")


def number_flexibly(text: str) -> str | None:
    """The last number that is boxed, behind "####" or stated to be the answer; else the last of the text.

    A fraction in LaTeX is one number, "2/3" if it has no end as a decimal.
    """
    for pattern in _STATED_NUMBERS:
        for place in reversed([match.end() for match in pattern.finditer(text)]):
            stated = text[place : place + 60]
            if fraction := _FRACTION.match(stated):
                return _quotient(*map(int, fraction.groups()))
            if number := _NUMBER.search(stated.replace("−", "-").replace("$", "")):
                return last_number(number[0])
    return last_number(text)


def _quotient(above: int, below: int) -> str:
    fraction = Fraction(above, below or 1)
    rest = fraction.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return last_number(str(float(fraction))) if rest == 1 else str(fraction)
