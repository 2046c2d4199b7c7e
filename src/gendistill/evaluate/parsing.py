"""Reading an answer off a generated reply, strictly: what cannot be read is wrong, and counted as unparsed besides."""

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

LETTERS = "ABCDEFGHIJ"
_ARTICLES = {"a", "an", "the"}
_WORD = re.compile(r"(?<!\w)-?\d+(?:\.\d+)*\w*|\w+")
# A minus sign belongs to the number unless something to subtract from stands before it ("10-5", "(2)-5").
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?(?<!\w)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?(?<![\w.])\.\d+"
)


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


def _holds(text: str, phrase: str) -> bool:
    return bool(phrase) and f" {phrase} " in f" {text} "


def last_number(text: str) -> str | None:
    """The last number of a text in one spelling ("$1,234.50" -> "1234.5", "18.0" -> "18"), or None."""
    numbers = _NUMBER.findall(text.replace("−", "-").replace("$", ""))
    if not numbers:
        return None
    return format((Decimal(numbers[-1].replace(",", "")) + 0).normalize(), "f")
