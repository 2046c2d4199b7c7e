"""Which lettered option a reply picks, by strict and by flexible extraction."""

import re
from collections.abc import Sequence
from functools import lru_cache

from gendistill.evaluate.kinds.shared.phrases import holds, normalise, outermost
from gendistill.names import LETTERS


def strict_letter(reply: str, choices: Sequence[str]) -> str | None:
    """Letter of the option a reply picks, or None.

    Extracted are a letter at the reply's start ("B", "b)", "(B)", "B. text"), "answer is B" or "Answer: B" anywhere,
    and the bare text of one option. A reply that names several letters picks none.
    """
    text = re.sub(r"[*`]", "", reply).strip()
    options = dict(zip(LETTERS, map(_plain, choices), strict=False))
    for letter, option in options.items():
        if _plain(text) == f"{letter.lower()}. {option}":  # even if the option is a letter itself: "B. A"
            return letter
    opening, stated, listed = _letter_patterns(len(choices))
    if listed.match(text):  # "A or B" commits to neither
        return None
    letters = {match[1] for match in stated.finditer(text)}
    # Letters that open later lines count only if one opens the first: else they are a list that prose introduces.
    if opening.match(text):
        letters |= {match[2].upper() for match in opening.finditer(text)}
    if not letters:
        letters = {letter for letter, option in options.items() if option == _plain(text)}
    return letters.pop() if len(letters) == 1 else None


@lru_cache
def _letter_patterns(count: int) -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """Patterns for: a letter that opens a line; "answer is B"; a reply that opens with two letters."""
    capital = f"[{LETTERS[:count]}]"
    letter = f"[{LETTERS[:count]}{LETTERS[:count].lower()}]"
    joint = r"\s*(?:,|/|&|and\b|or\b)?\s*"  # between two letters: "A, B", "A/B", "A or B", "AB"
    return (
        # Punctuation or the end of the line must follow, or the article in "A dog" would be read as option A.
        re.compile(rf"^[ \t]*(\()?({letter})(?(1)\)|(?=[.):]|[ \t]*$))", re.MULTILINE),
        # Capitals only, for the same reason: "the answer is a dog".
        re.compile(
            rf"\b[Aa]nswer(?:\s+is|\s*:)[\s:]*(?:[Oo]ption\s+)?\(?({capital})(?![\w'’])(?!\)?{joint}\(?{capital}(?!\w))"
        ),
        re.compile(rf"\(?{letter}[.):]*{joint}\(?{letter}(?:[.):]|\s*$)"),
    )


def flexible_letter(reply: str, choices: Sequence[str]) -> str | None:
    """Letter of the option a reply picks in whatever words, or None.

    Beyond `strict_letter`: the last letter that is boxed, in brackets or behind "answer", "option" or "choice"; else
    the one option whose text the reply holds; else the one capital letter that stands alone.
    """
    if strict := strict_letter(reply, choices):
        return strict
    text = re.sub(r"[*`]", "", reply)
    stated, alone = _flexible_patterns(len(choices))
    # Each match has one group that took part, whichever way the letter was stated.
    if found := [letter for match in stated.finditer(text) for letter in match.groups() if letter]:
        return found[-1]  # the last one: a reply that reasons comes to its answer at the end
    if _letter_patterns(len(choices))[0].search(text):  # goes through the options, and was cut off or names none
        return None
    # By an option's text first: a capital letter alone may be an initial.
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
    # Behind "answer" up to 40 characters of the same sentence, no "not" among them. A letter that a small letter
    # follows after a blank is the article.
    return (
        re.compile(rf"\\boxed\{{(?:\\text\{{)?({capital})\W|\(({capital})\)|{stated}"),
        re.compile(rf"(?<![\w'’]){capital}(?![\w'’]| [a-z])"),
    )


def _named(text: str, choices: Sequence[str]) -> set[str]:
    """Letters of the options whose texts a reply holds; one inside a longer one that is there too does not count."""
    reply = normalise(text)
    options = dict(zip(LETTERS, map(normalise, choices), strict=False))
    held = {letter: option for letter, option in options.items() if holds(reply, option)}
    whole = outermost(set(held.values()))
    return {letter for letter, option in held.items() if option in whole}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
