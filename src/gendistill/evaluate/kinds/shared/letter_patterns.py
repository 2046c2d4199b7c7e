"""Patterns that find letters of options in replies."""

import re
from functools import lru_cache
from typing import NamedTuple

from gendistill.evaluate.kinds.shared.hinted import Hinted
from gendistill.evaluate.kinds.shared.statements import DENIAL, DENIAL_HINTS, DENIAL_WORDS
from gendistill.names import LETTERS

_B = r"\s{0,3}"  # blanks; bounded, or a run of them would be tried in every way
_JOINT = (
    rf"(?:{_B}(?:,|/|&|、|\+){_B}(?:and\b|or\b)?{_B}|{_B}\b(?:and|or|y|o|und|oder|et|ou|nor)\b{_B}|{_B}[和或与]{_B})"
)
# "A hexagon is", and not "A because".
ARTICLE = re.compile(
    r"A (?!(?:because|since|as|for|and|or|is|which|due|in|according|given|but|with|if|based)\b)[a-z]+\b"
)
# Only at the start of a clause: "If I choose B" and "Should I choose B" choose nothing.
_CHOOSE = (
    r"(?:^|(?<=[.,;:!\n])|(?<=[.,;:!\n]\s)|(?<=\b[Ss]o\s))"
    r"(?i:I(?:\swould|\swill|['’]d|['’]ll)?\s(?:choose|chose|pick|select|go\swith)|ich\swähle|je\schoisis|elijo|escojo)"
)
_RIGHT = (
    rf"(?:\bis|:|-|–|是|es|ist|est){_B}(?:the\s|la\s|die\s|definitely\s)?"
    r"(?:correct|right|best|true|answer|正确|richtig|correct[ae]|bonne)"
)


class Patterns(NamedTuple):
    """Patterns for so many options.

    Attributes:
        lone: a capital letter that ends its word: without one, none is named within the text.
        opening: a letter that opens a line.
        listed: a text that opens with several letters.
        joined: another letter behind one: "and B", "/B".
        stated: what stands at the start of a statement.
        picked: a letter that is said to be right, or to be chosen, without the word "answer".
        loosely: a letter in brackets, or behind "option" and the like.
        alone: a capital letter by itself, but for the article.
        several: letters that are named in one breath.
        denials: "not B", "nicht (B)".
    """

    lone: re.Pattern
    opening: re.Pattern
    listed: re.Pattern
    joined: re.Pattern
    stated: re.Pattern
    picked: Hinted
    loosely: Hinted
    alone: re.Pattern
    several: re.Pattern
    denials: Hinted


@lru_cache
def patterns_for(count: int) -> Patterns:
    capitals = LETTERS[:count]
    capital, letter = f"[{capitals}]", f"[{capitals}{capitals.lower()}]"
    # Latin only: Chinese and Japanese write on without a blank.
    after = r"(?![A-Za-z0-9_À-ɏ'’])"
    before = r"(?<![A-Za-z0-9_À-ɏ'’.].)"
    # A small letter is one only where nothing but a mark follows, or the article of "a dog" would be an option.
    either = rf"(?:{capital}{after}|{letter}(?={_B}(?:[.):,;!?\]}}\"'”’」】]|\n|$)))"
    open_, close = r"[(\[{\"'“‘「『【<]{0,3}" + _B, _B + r"[)\]}\"'”’」』】>]{0,3}"
    small = "the|la|die|l['’]|el|le|der|letter|option|choice|answer|opción|opcion|opção|lettre|buchstabe|letra|选项"
    word = rf"(?:(?:{small}){_B}){{0,3}}"
    bracketed = rf"(?:\({_B}{letter}{_B}\)|\[{_B}{letter}{_B}\])"
    return Patterns(
        lone=re.compile(capital + after),
        # Punctuation or the end of the line must follow, or "A dog" would be option A.
        opening=re.compile(
            rf"^[ \t]*(?:(?:option|choice|选项)\s+)?(?:({bracketed})"
            rf"|[\"'“‘「【]?({letter})[\"'”’」】]?"
            rf"(?=[.):,;!。、，：]|[ \t]+[-–—]|[ \t]*$|{_B}{_RIGHT}|{_B}(?:选项)?(?:正确|对)))",
            re.MULTILINE | re.IGNORECASE,
        ),
        listed=re.compile(rf"{_B}\(?{letter}[.):]*(?:{_JOINT}|{_B})\(?{letter}(?:[.):]|{_B}$|{_JOINT})"),
        joined=re.compile(rf"{close}{_JOINT}(?i:option\s)?{open_}{either}"),
        stated=re.compile(rf"(?i:{word}){open_}({either})"),
        picked=Hinted(
            re.compile(
                rf"(?:应选|故选|选择|(?<!不)选)(?:项)?{_B}[:为是]?{_B}{open_}({capital}){after}"
                rf"|(?:\b(?i:option|choice|opción|réponse|antwort)\s+){open_}({capital}){after}{close}{_B}{_RIGHT}"
                rf"|\b(?i:is|es|est|ist|are|serait|sería|wäre|would\sbe)\s(?:(?i:{word})\(({capital})\)|(?i:la\s|the\s|die\s)?(?i:option|opción)\s({capital}){after})"
                rf"|{_CHOOSE}\s(?i:{word}){open_}(?!{ARTICLE.pattern})({capital}){after}(?!{close}\s?\?)"
            ),
            hints=r"i\s i['’] ich\swähle je\schoisis elijo\s escojo\s 应选 故选 选 "
            r"option\s choice\s opción\s réponse\s antwort\s is\s es\s est\s ist\s are\s "
            r"serait\s sería\s wäre\s would\s",
            words="( option choice opción réponse antwort choose chose pick select go wähle choisis elijo escojo 选",
        ),
        loosely=Hinted(
            re.compile(
                rf"(?<=[^\n])\(({capital})\)|\b(?:is|es|est|ist)\s({capital})(?=[.]?\s*$)"
                rf"|\b(?i:option|choice|opción|antwort|réponse|letter)\s+{open_}({capital}){after}(?! [a-z]+ed\b)"
            ),
            hints=r"( is\s es\s est\s ist\s option\s choice\s opción\s antwort\s réponse\s letter\s",
            words="( is es est ist option choice opción antwort réponse letter",
        ),
        # The letter comes first and then what must not stand before it, so that only such letters are looked at.
        alone=re.compile(rf"{capital}{before}{after}(?! [a-z])"),
        several=re.compile(rf"{capital}{before}{close}{_JOINT}(?i:option\s)?{open_}{capital}{after}"),
        denials=Hinted(
            rf"{DENIAL}{_B}(?:be\s|to be\s)?(?i:{word}){open_}{capital}{after}{close}"
            rf"(?:(?:{_JOINT}){open_}{capital}{after}{close}){{0,9}}"
            rf"(?:{_B},?{_B}(?:but|sondern|sino|mais|而是){_B}(?:rather\s)?)?",
            DENIAL_HINTS,
            DENIAL_WORDS,
        ),
    )
