"""Patterns with hints find what the patterns alone find."""

import json
import re
from itertools import islice
from pathlib import Path
from re import _constants as codes
from re import _parser

import pytest

from gendistill.evaluate.kinds.shared import hedges, letter_patterns, letters, mentions, numbers, phrases, statements
from gendistill.evaluate.kinds.shared.hinted import Hinted, folded

DEFINED = [*letter_patterns.patterns_for(5)._asdict().items()]
for module in (hedges, letter_patterns, letters, mentions, numbers, phrases, statements):
    DEFINED += [(f"{module.__name__.rsplit('.')[-1]}.{name}", value) for name, value in vars(module).items()]
PATTERNS = {name: value for name, value in DEFINED if isinstance(value, Hinted)}

REPLIES = [row["reply"] for row in json.loads((Path(__file__).parent / "real_replies.json").read_text())["replies"]]
CATEGORIES = {
    codes.CATEGORY_SPACE: " ",
    codes.CATEGORY_WORD: "w",
    codes.CATEGORY_NOT_WORD: "§",
    codes.CATEGORY_DIGIT: "1",
}


def texts(parsed) -> list[str]:
    """Texts of a pattern's form: each of its alternatives and optional parts in turn, the others as they come first."""
    parts = [forms(code, argument) for code, argument in parsed]
    first = [part[0] for part in parts]
    return ["".join(first)] + [
        "".join([*first[:place], form, *first[place + 1 :]])
        for place, part in enumerate(parts)
        for form in islice(part, 1, None)
    ]


def forms(code, argument) -> list[str]:
    match code:
        case codes.LITERAL:
            return [chr(argument)]
        case codes.IN if argument[0][0] is codes.NEGATE:
            return ["§"]
        case codes.IN:
            return [form for each in argument for form in forms(*each)]
        case codes.RANGE:
            return [chr(argument[0])]
        case codes.CATEGORY:
            return [CATEGORIES[argument]]
        case codes.NOT_LITERAL | codes.ANY:
            return ["§"]
        case codes.BRANCH:
            return [form for branch in argument[1] for form in texts(branch)]
        case codes.SUBPATTERN:
            return texts(argument[-1])
        case codes.MAX_REPEAT | codes.MIN_REPEAT:
            least, _, repeated = argument
            return [form * least for form in texts(repeated)] + texts(repeated)
        case codes.ASSERT if argument[0] > 0:  # what must stand behind
            return texts(argument[1])
        case codes.AT | codes.ASSERT | codes.ASSERT_NOT:
            return [""]
    raise NotImplementedError(code)


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_every_form_of_a_pattern_begins_with_a_hint(name):
    pattern = PATTERNS[name]
    forms = texts(_parser.parse(pattern.pattern.pattern, pattern.pattern.flags))
    assert len(forms) > 2
    assert [form for form in forms if not pattern._hint.match(folded(form))] == []


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_every_form_of_a_pattern_holds_a_word(name):
    pattern = PATTERNS[name]
    forms = texts(_parser.parse(pattern.pattern.pattern, pattern.pattern.flags))
    # Some forms lack what must stand around them.
    assert [form for form in forms if pattern.pattern.search(form) and not pattern.may_be_in(form)] == []


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_real_replies_hold_the_matches_that_the_pattern_alone_finds(name):
    pattern = PATTERNS[name]
    for reply in REPLIES:
        alone = [match.span() for match in pattern.pattern.finditer(reply)]
        assert [match.span() for match in pattern.matches(reply)] == alone
        assert pattern.may_be_in(reply) or not alone
        assert pattern.sub("x", reply) == pattern.pattern.sub("x", reply)


def test_letters_that_a_pattern_takes_for_others_hint_too():
    pattern = Hinted("is", hints="is", words="is")
    for text in ("is", "IS", "ıs", "İS", "iſ", "it", "i\u0307s", "İİ is"):
        assert [match.span() for match in pattern.matches(text)] == [
            match.span() for match in re.finditer("is", text, re.IGNORECASE)
        ]
        assert pattern.sub("x", text) == re.sub("is", "x", text, flags=re.IGNORECASE)


def test_a_hint_within_another_is_found():
    pattern = Hinted("anna b|nna c", hints="anna nna", words="b c")
    assert [match[0] for match in pattern.matches("anna c, anna b")] == ["nna c", "anna b"]
