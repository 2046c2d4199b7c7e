"""Which number a reply gives, in one spelling."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from gendistill.evaluate.kinds.shared.evened import evened
from gendistill.evaluate.kinds.shared.statements import cut_back, denied, sentences, statements
from gendistill.evaluate.kinds.shared.words import MOST_KEPT

MOST_DIGITS = 400  # of a number that is read; no answer is longer, and Python refuses to spell out far longer ones
MOST_NUMBERS = 20  # in the sentence with the answer; one with more lists them
# Behind a number with a comma and one or two digits, these say that the comma is a decimal one: "12,50 €".
_UNIT = r"(?:€|EUR\b|[Ee]uros?\b|%|kg\b|km\b|cm\b|mm\b|m\b|g\b|l\b|[Mm]eter|[Pp]rozent|pesos?\b)"
# Not behind a Latin letter ("H2O", "x1"), but right behind a Chinese one; a point behind a letter is no decimal point.
_BEFORE = r"(?<![A-Za-z_À-ɏ\d])(?<!\d[.])"
_BODY = rf"""
    \d++(?![.,'’ ]?\d)                           # 18: no sign in it, as most numbers
    | \d{{1,3}}(?:,\d{{3}})+(?![\d])(?:\.\d+)?      # 1,234.50
    | \d{{1,3}}(?:\.\d{{3}})+,\d+                 # 1.234,50: two signs, so that only the last can be the decimal one
    | \d{{1,3}}(?:\.\d{{3}}){{2,9}}(?!\d|[.,]\d)    # 1.234.567
    | \d{{1,3}}(?:['’]\d{{3}})+(?!\d)(?:\.\d+)?   # 1'234
    | \d{{1,2}}(?:[ ]\d{{3}})+(?![ ]?\d)(?:[.]\d+)?   # 1 234
    | \d+,\d{{1,2}}(?=\s?{_UNIT}) | 0,\d+         # 12,50 €
    | (?<![(,])\d+,\d{{1,2}}(?![\d),])             # 3,75, but for what may be a pair
    | \d+(?:\.\d+)?
    | (?<![.])\.\d+
"""
_NUMBER = re.compile(
    rf"""
    (?=[-.\d])  # so that no other character is looked at twice
    (?P<sign>(?<![\w)])[-]\s?(?:[$€£¥]\s?)?)?
    {_BEFORE}(?P<body>{_BODY})
    (?: \s{{1,3}}(?:and\s)?(?P<above>\d{{1,20}})\s?/\s?(?P<below>\d{{1,20}})(?![\d/]|\.\d)   # 2 1/2
      | \s?/\s?(?P<over>\d{{1,20}})(?![\d/]|\.\d) )?                                          # 1/2
    (?: \s?(?:[x×*]|\\times|\\cdot)\s?10\s?\^\s?\{{?(?P<power>-?\d{{1,2}})\}}?
      | [eE](?P<exponent>[-+]?\d{{1,2}})(?![\w]) )?
    """,
    re.VERBOSE,
)
_SIGNS_LENGTH = 5  # the most characters of a number before its first digit: "- $ .5"
_DECIMAL_COMMA = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+|\d+,\d{1,2}|0,\d+")
_BETWEEN_DIGITS = re.compile("[,'’ ]")
# A currency before a bare number ("Rs.", "EUR"), a unit or a noun behind it, and no more.
_CURRENCY = re.compile(r"(?:[A-Z]{2,3}|Rs)?[.]?[€£¥₹(\[]?")
_CURRENCY_LENGTH = 5  # the most characters of one
_UNIT_OR_NOUN = re.compile(r"[^\W\d_]{0,20}[%°€£¥₹.,!。)\]]{0,3}")
_DIGIT = re.compile(r"\d")
_LETTER_OR_EQUALS = re.compile(r"[^\W\d_]|=")
_EQUALS = re.compile(r"=|≈|\\approx")
_IN_BRACKETS = re.compile(r"\([^()]{0,200}\)")
# What stands behind a number that is part of a sum or a power, or in front of a variable.
_GOES_ON = re.compile(
    r"\s{0,3}(?:[-+*/×÷:]\s?[\d(a-zA-Z]|[+*×÷^²³]|\\(?:times|cdot|div|pm|sqrt|pi)|(?:plus|minus|times|to|bis)\s+[-\d]"
    r"|(?:[xyznkπ]|\([a-z]\))(?![A-Za-z0-9_]))"
)
_COMES_BEHIND = re.compile(
    r"(?:[\w)]\s?[+]|[*×÷^/]|\\times|\\cdot|\\div|[\d)]\s?[-–:]|\b(?:plus|minus|times|between))\s*$"
)
_TERM_ENDS = ("+", "*", "×", "÷", "^", "/", "times", "dot", "div", "-", "–", ":", "plus", "minus", "between")
# A sentence's number may be of something that has a number, too: "6 packs of 10", "15 pages more in 3 hours".
_OF = re.compile(
    r"[^,;:\d]{0,80}?\b(?:of|per|in|for|from|after|at|with|within|during|out|by|when|than|each|every|on|if|between|over)\b"
    r"[^,;:\d]{0,60}?$"
)
_REASON_WORD = r"\(?\b(?:because|since|as|which|where|weil|da|car|puisque|porque|given|i\.e\.)\b"
_REASON = re.compile(
    rf"[,，;\s因](?:(?<=\s){_REASON_WORD}|(?<=[,;])\s{_REASON_WORD}|(?<=因)为|(?<=[,，;])\s(?:so|and\s(?:so|not)|not)\b)"
)
_VERB = re.compile(
    r"(?:\b(?:is|are|was|were|have|has|had|makes?|made|gives?|needs?|costs?|earns?|totals?|equals?|leaves?|gets?|pays?|"
    r"spends?|will be|remain)|是|为|有|得)\s*(?:about|only|exactly|approximately|a total of|just|now)?\s*[$€£¥]?\s*$"
)
_SO = re.compile(r"[,，;]\s?(?:so|thus|therefore|hence|donc|also|así que|所以|因此)\b\s?")
_IS = re.compile(r"(?:\b(?:is|are|est|es|ist)|是)\s?$")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_WORD_NUMBER = rf"(minus\s|negative\s)?({'|'.join(_WORDS)})[.!]?\s*$"
_BY_WORD = re.compile(_WORD_NUMBER, re.IGNORECASE)
_IS_BY_WORD = re.compile(rf"\b(?:is|are|equals|makes)\s{_WORD_NUMBER}", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"(?:write the (?:result|answer)|so|thus|therefore|hence|donc|also|por lo tanto|así que|所以|因此)\b"
    r"|[a-z]\s?=\s?-?[\d.,/]+\s*$",
    re.I,
)


class Number(NamedTuple):
    """A number in a text, and where it stands."""

    value: Fraction | int
    start: int
    end: int


@lru_cache(maxsize=16)  # the flexible reading begins with the strict one
def last_number(reply: str, truncated: bool = False, question: str = "") -> str | None:
    """The number that a reply gives for its answer, in one spelling ("$1,234.50" -> "1234.5", "1/2" -> "0.5"), or None.

    It is the one that the reply is, or states to be the answer; without a statement, the only number of the last
    sentence that holds one, or what an equation in it ends with ("9 * 2 = 18"). None are several numbers side by side,
    a term ("5 x"), what is denied, statements that differ, and a statement that was cut off.
    """
    text = evened(reply)
    first = text.lstrip().split("\n", 1)[0]
    if (bare := _bare(first)) is not None and not (truncated and first == text.strip()):
        if not _is_list(text):
            return spelled(bare)
        return None
    if stated := _stated(text, truncated, question):
        values = {value for _, value in stated}
        return spelled(values.pop()) if len(values) == 1 and None not in values else None
    if _is_list(text):
        return None
    if truncated:  # its last sentence is not its end, unless it says that it concludes
        *_, last = ("", *sentences(cut_back(text)))
        return spelled(_conclusion(last, question)) if _CONCLUDES.match(last) else None
    return spelled(_concluded(text, lambda sentence: _conclusion(sentence, question)))


def stated_number(reply: str, truncated: bool = False, question: str = "") -> str | None:
    """The number that a patient person takes for the answer, or None.

    Beyond `last_number`: of several statements the last, a box before "####" before other words; and without any, the
    last number of the last sentence, if it stands behind a verb ("the 3 boys have 12 apples").
    """
    strict = last_number(reply, truncated, question)
    if strict is not None:
        return strict
    text = evened(reply)
    stated = _stated(text, truncated, question)
    for sort in ("box", "mark", "words"):
        if found := [value for kind, value in stated if kind == sort]:
            return spelled(found[-1])
    if _is_list(text):
        return None
    if truncated:
        return spelled(_result(text))
    if not _DIGIT.search(text) and (match := _IS_BY_WORD.search(text)):
        return spelled(_by_word(match))
    return spelled(_concluded(text, _last_behind_verb))


def _by_word(match: re.Match) -> int:
    """The value of a number in words; `match` has its sign and its word."""
    sign, word = match.groups()
    return _WORDS.index(word.lower()) * (-1 if sign else 1)


def gold_number(text: str) -> str | None:
    """The number of a record's answer: the one it states ("#### 18"), else its last, fractions read as such."""
    if (stated := stated_number(text)) is not None:
        return stated
    # From the end: a solution may hold any number of them.
    values = (value for match in reversed([*_NUMBER.finditer(evened(text))]) if (value := _value(match)) is not None)
    return spelled(next(values, None))


def spelled(value: Fraction | int | None) -> str | None:
    """A number as an integer or a decimal, as a fraction ("2/3") if its decimals have no end."""
    if value is None:
        return None
    if value.denominator == 1:
        return str(value.numerator)
    rest, digits = value.denominator, 0
    # A decimal has an end if 2 and 5 are the denominator's only prime factors.
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
            digits += 1  # at least as many as it takes
    if rest != 1:
        return str(value)
    numerator, sign = value.numerator, "-" if value.numerator < 0 else ""
    text = str(abs(numerator) * 10**digits // value.denominator).rjust(digits + 1, "0")
    return sign + f"{text[:-digits]}.{text[-digits:]}".rstrip("0").rstrip(".")


@lru_cache(maxsize=16)  # several rules look at the numbers of the same sentence
def _numbers(text: str) -> tuple[Number, ...]:
    """The first numbers of a text, one more than a sentence with the answer may hold."""
    start = _start(text)
    if start is None:
        return ()
    matches = islice(_NUMBER.finditer(text, start), MOST_NUMBERS + 1)
    found = [(_value(match), match.start(), match.end()) for match in matches]
    return tuple(Number(*each) for each in found if each[0] is not None)


def _start(text: str) -> int | None:
    """Where the first number of a text may begin; None if it has no digit."""
    digit = _DIGIT.search(text)
    return digit and max(0, digit.start() - _SIGNS_LENGTH)


def _value(match: re.Match) -> Fraction | int | None:
    sign, body, above, below, over, power, exponent = match.groups()
    if len(body) > MOST_DIGITS:
        return None
    value = int(body) if body.isdecimal() else _decimal(body)
    if above:
        value += _quotient(int(above), below)
    if over:
        value = _quotient(value, over)
    if power or exponent:
        value *= Fraction(10) ** int(power or exponent)
    return -value if sign else value


@lru_cache(maxsize=MOST_KEPT)  # a reply says the same numbers several times
def _decimal(body: str) -> Fraction | int:
    """The value of a number with signs in it, a point or a comma before its decimals."""
    if _DECIMAL_COMMA.fullmatch(body):
        body = body.replace(".", "").replace(",", ".")
    if body.count(".") > 1:
        body = body.replace(".", "")
    whole, _, decimals = _BETWEEN_DIGITS.sub("", body).partition(".")
    # Several times as fast as a fraction that is read from a text.
    return Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else int(whole)


def _quotient(above: Fraction | int, below: str) -> Fraction:
    return Fraction(above) / (int(below) or 1)  # nothing is divided by zero; what it would be is wrong in any case


def _bare(line: str) -> Fraction | int | None:
    """The number that a line is, with a currency or a unit at most."""
    # Looked at first: what stands in front of a sentence's number is no currency.
    start = _start(line)
    if start is None or len(line[:start].strip()) > _CURRENCY_LENGTH:
        return None
    first = _NUMBER.search(line, start)
    if first is None or not _CURRENCY.fullmatch(line[: first.start()].strip()):
        return None
    numbers = _numbers(line)
    if len(numbers) != 1 or numbers[0].start != first.start():
        return None
    (number,) = numbers
    behind = _UNIT_OR_NOUN.fullmatch(line[number.end :].strip())
    return number.value if behind and not _is_term(line, number) else None


def _is_list(text: str) -> bool:
    """Whether a text is several different numbers and nothing else."""
    return not _LETTER_OR_EQUALS.search(text) and len({number.value for number in _numbers(text)}) > 1


@lru_cache(maxsize=16)  # both readings ask for them
def _asked(question: str) -> frozenset[Fraction | int]:
    """The numbers of the question."""
    matches = islice(_NUMBER.finditer(evened(question)), 1000)
    return frozenset(value for match in matches if (value := _value(match)) is not None)


@lru_cache(maxsize=16)  # both readings begin with it
def _stated(text: str, truncated: bool, question: str = "") -> tuple[tuple[str, Fraction | int | None], ...]:
    """How each statement is made, and its number; None if it is not a single one."""
    found = []
    for statement in statements(text):
        content = statement.content
        reason = _REASON.search(content)
        if not statement.ended and truncated and reason is None:
            continue  # it may have gone on: "1" was about to become "18"
        by_word = _BY_WORD.match(content[: reason.start()] if reason else content)
        if by_word is None and not _DIGIT.search(content):
            continue  # "The answer is as follows"
        before = text[max(0, statement.start - 12) : statement.start]
        sort = "box" if "{" in before[-2:] else "mark" if "####" in before else "words"
        value = _by_word(by_word) if by_word else _single(content)
        if sort == "box" and f"boxed{{{content}}}" in evened(question):
            continue  # the form that was asked for, once more
        found.append((sort, value))
    return tuple(found)


def _conclusion(sentence: str, question: str) -> Fraction | int | None:
    """The number that a sentence without a statement comes to; beside it there may be those that were asked about."""
    parts = _SO.split(sentence)
    sentence = parts[-1] if _DIGIT.search(parts[-1]) else sentence
    value = _single(sentence)
    if "=" in sentence:
        return value
    numbers = _numbers(sentence)
    if len(numbers) < 2:
        return value
    if value is not None:
        # A number of the question that is named twice is what the sentence is about.
        times = sum(number.value == value for number in numbers)
        return None if times > 1 and value in _asked(question) else value
    asked = _asked(question)
    new = [number for number in numbers if number.value not in asked]
    if len(new) != 1 or _is_term(sentence, new[0]) or denied(sentence, new[0].start, new[0].end):
        return None
    return new[0].value


def _single(content: str) -> Fraction | int | None:
    """The number of a statement, None if it holds none or several that may be meant."""
    content = content[: reason.start()] if (reason := _REASON.search(content)) else content
    content = _EQUALS.split(content)[-1]
    without_asides = _IN_BRACKETS.sub(lambda match: " " * len(match[0]), content) if "(" in content else content
    numbers = _numbers(without_asides)
    if numbers:
        content = without_asides
    elif without_asides != content:
        numbers = _numbers(content)
    if len(numbers) > MOST_NUMBERS:
        return None
    numbers = [number for number in numbers if not denied(content, number.start, number.end)]
    if not numbers or _is_term(content, numbers[0]):
        return None
    first = numbers[0]
    other = next((number for number in numbers if number.value != first.value), None)
    return first.value if other is None or _OF.match(content[first.end : other.start]) else None


def _is_term(text: str, number: Number) -> bool:
    """Whether a number is a part of a sum, a product, a range."""
    if _GOES_ON.match(text, number.end):
        return True
    before = text[max(0, number.start - 20) : number.start]
    return before.rstrip().endswith(_TERM_ENDS) and _COMES_BEHIND.search(before) is not None


def _last_behind_verb(sentence: str) -> Fraction | int | None:
    numbers = _numbers(sentence)
    if 0 < len(numbers) <= MOST_NUMBERS and _VERB.search(sentence[max(0, numbers[-1].start - 40) : numbers[-1].start]):
        last = numbers[-1]
        return None if _is_term(sentence, last) or denied(sentence, last.start, last.end) else last.value
    return None


def _result(text: str) -> Fraction | int | None:
    """What working comes to that was cut off as it was about to conclude: its last result."""
    whole = cut_back(text)
    tail = text[len(whole) :].strip(" \t\\[]()")
    results = [sentence for sentence in sentences(whole) if re.search(r"\w", sentence)][-1:]
    # A beginning of a few letters may be any word.
    if not results or not (len(tail) <= 4 or _CONCLUDES.match(tail) or _IS.search(tail)):
        return None
    return _single(results[0]) if re.search("[=≈]", results[0]) else _bare(results[0])


def _concluded(text: str, read: Callable[[str], Fraction | int | None]) -> Fraction | int | None:
    """What is read from the last sentence that holds a number."""
    for line in filter(_DIGIT.search, reversed(text.split("\n"))):
        for sentence in reversed(sentences(line)):
            start = _start(sentence)
            if start is not None and _NUMBER.search(sentence, start):
                return None if sentence.endswith("?") else read(sentence)
    return None
