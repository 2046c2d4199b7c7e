"""Mentions of a phrase in a sentence: whether one gives it for the answer."""

import re
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from gendistill.evaluate.kinds.shared.asked import Asked
from gendistill.evaluate.kinds.shared.evened import LABEL_IN_FRONT, LABEL_LENGTH
from gendistill.evaluate.kinds.shared.hinted import Hinted, folded
from gendistill.evaluate.kinds.shared.statements import DENIALS, denied
from gendistill.evaluate.kinds.shared.words import CJK, MOST_KEPT, holds, normalise

_MOST_MENTIONS = 50
_REACH = 300  # characters before a mention and behind it that are read
_NEAR = 40  # characters before a mention in which a denial is of it, if no comma parts the sentence
# Words that any sentence may hold; they count where they are stated.
_ANYWHERE = frozenset(("yes", "no", "true", "false", "none", "a", "i"))
# Words in front of an answer that add nothing to it. Looked for in small letters, which is sooner done than regardless
# of case.
_LEAD = re.compile(
    r"(?:(?:it|this|that|he|she|they|there|i|we|you)(?:['’]s|[ ](?:is|was|are|were|think|believe|get|would|say|guess"
    r"|(?:could|might|may)[ ]be)|['’]m|['’]d)?"
    r"|is|was|that|in|on|at|by|to|the|an?|probably|likely|definitely|certainly|about|approximately|around|called|named"
    r"|yes,|sure|so|thus|therefore|hence|well|ok|okay|of course|certainly|es|ist|est|son|er|sie|il|elle|él|ella"
    r"|c['’]est|el|la|le|les|los|las|der|die|das|ein|eine|un|une|una|en|im|am|dans|à|是|在|它|他|她|这)"
    r"(?=[\s,:]|$|['’])[\s,:]*"
)
# What stands between answers that are merely listed; in front of another answer, or behind one.
_JOINT = r"(?:/|&|、|;|\b(?:or|and|oder|und|ou|et|o|y)\b|或|和|还是)"
_JOINTS = Hinted(
    _JOINT, hints="/ & 、 ; or and oder und ou et o y 或 和 还是", words="/ & 、 ; or and oder und ou et o y 或 和 还是"
)
_OR_BEHIND = re.compile(rf"[)\"'”’]?\s?(?:,\s?)?{_JOINT}\s?(\S+)", re.IGNORECASE)
_JOINT_AT_END = re.compile(rf"{_JOINT}\s?(?:the\s|an?\s)?[(\"'“‘]?$", re.IGNORECASE)
_OR_BEFORE = re.compile(rf"(\S+)\s?{_JOINT_AT_END.pattern}", re.IGNORECASE)  # slow, and seldom there
_COMMA_BEHIND = re.compile(
    r"[)\"'”’]?\s?[,，]\s?([^\s,，、]+)(\s?[,，、]|\s(?:or|and|oder|und|ou|et|o|y)\b)?", re.IGNORECASE
)
_COMMA_BEFORE = re.compile(r"(?:^|[\s,，])([^\s,，]+)\s?[,，]\s?$")
_PERHAPS = Hinted(
    r"\b(?:maybe|perhaps|possibly|vielleicht|peut[- ]être|quizás?|tal[ ]vez)[ ]|也许|或许",
    hints=r"maybe perhaps possibly vielleicht peut quiz tal 也许 或许",
    words="maybe perhaps possibly vielleicht peut quizá quizás vez 也许 或许",
)
_QUESTIONED = Hinted(
    r"\b(?:if|whether|ob|si|between|among|zwischen|entre)\b[^,.;]{0,200}$",
    hints="if whether ob si between among zwischen entre",
    words="if whether ob si between among zwischen entre",
)
# Names that another word makes into those of other things: "Paris Hilton", "South Korea".
_OTHER_BEFORE = Hinted(
    re.compile(r"\b(?:New|North|South|East|West|Northern|Southern|Eastern|Western|Anti|Non|Un|Saint|San)[ -]$"),
    hints="new north south east west anti non un saint san",
    words="new north south east west northern southern eastern western anti non un saint san",
)
_NAME_BEHIND = re.compile(r"[ -]([A-ZÀ-Þ][^\W\d_]+)")
_KINDS_OF_PLACE = {"River", "City", "Sea", "Ocean", "Island", "Islands", "County", "State", "Mountain",
                   "Mountains", "Lake",
                   "Desert", "Empire", "Republic", "Street", "Company", "Inc", "Corporation"}  # fmt: skip
_COPULA = re.compile(
    r"[\"'”’)]{0,2}\s?(?:,[^,]{0,60},\s?)?(?:is|was|are|were|has|had|ist|war|sind|es|era|fue|est|était|wrote|painted|invented|是)\b|[\"'”’)]{0,2}是",
    re.I,
)
_EXAMPLE = Hinted(
    r"\b(?:including|such as|like|e\.g\.|for example)\s?(?:the\s|an?\s)?[\"'“‘]?$",
    hints=r"including such like e\.g for",
    # Its blank may be lacking.
    words="including includingthe includinga includingan such like likethe likea likean g example examplethe examplea "
    "examplean",
)
_BUT_ALSO = re.compile(r"[^.]{0,40}\bbut\b[^.]{0,20}\balso\b", re.I)
_MONTH = re.compile(
    r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|januar|märz|mai|juin|juillet|août|enero|julio|mayo)\w{0,8}\b|[年月]",
    re.I,
)
_LETTER = re.compile(r"\w")
_GOES_ON = re.compile(r"\w|\.\d", re.ASCII)
_IN_CJK = re.compile(f"[{CJK}]")
_UP_TO_BUT = re.compile(r"^.*\b(?:but|sondern|sino|mais)\b|^.*而是")
_BUT_IN_FRONT = re.compile(r"(?:\bbut|\bsondern|\bsino|\bmais|而是)\s\S{0,20}\s?$")
_PART_SIGNS = ".,;:!?(\n，。；：！？"
_PART_ENDS = re.compile(rf"[{_PART_SIGNS}]|\s[-–—]\s|\b(?:because|since|as|which|who|where|but|and|not|when|for)\b")
_IS = re.compile(r"\b(?:is|was|are|were|ist|est|es)\b|是")
_TERM_BEHIND = re.compile(r"\s?(?:[-+*/×÷^=]\s?[\d(]|[+*×÷^]|[xyzn]\b(?!\w))")
_TERM_BEFORE = re.compile(r"[+*×÷^/]\s?$")
_DIGITS = re.compile(r"(?<![\w.])-?\d[\d,.]*")


class _Mention(NamedTuple):
    """A phrase as it stands in a sentence, and so much of what is around it as is read.

    Attributes:
        around: all of it, which is asked for words once instead of its parts.
    """

    before: str
    text: str
    behind: str
    around: str


def gives(sentence: str, phrase: str, asked: Asked, strictly: bool) -> bool:
    """Whether some mention of a phrase in a sentence gives it for the answer.

    Strictly, one that stands where a sentence says something: in front, or at the end of a clause.
    """
    if phrase in _ANYWHERE:
        return False
    # Spelled so differently that it is not found in the text as it is: nothing is known of what stands around it.
    return any(_gives(sentence, start, end, asked, strictly) for start, end in _places(sentence, phrase))


def without_lead(text: str) -> str:
    """A text without a word in front that adds nothing to an answer."""
    lead = _LEAD.match(folded(text))
    return text[lead.end() :] if lead else text


def _places(sentence: str, phrase: str) -> list[tuple[int, int]]:
    """Where a normalised phrase stands in a text as it was written, the first places of many."""
    if phrase.isalpha() and phrase.isascii() and sentence.isascii():
        return _places_of_word(sentence.lower(), phrase)
    return [match.span() for match in islice(_pattern(phrase).finditer(sentence), _MOST_MENTIONS)]


def _places_of_word(text: str, word: str) -> list[tuple[int, int]]:
    """As the word's `_pattern` finds it, which takes long to compile: most phrases are words of ASCII letters."""
    found, end = [], 0
    while (start := text.find(word, end)) >= 0 and len(found) < _MOST_MENTIONS:
        end = start + len(word)
        before = text[start - 1 : start]
        # No other letter stands at it, nor decimals behind.
        if not before.isalnum() and before != "_" and not _GOES_ON.match(text, end):
            found.append((start, end))
    return found


@lru_cache(maxsize=MOST_KEPT)
def _pattern(phrase: str) -> re.Pattern:
    """Finds a normalised phrase in a text as it was written."""
    gap = rf"(?:[^\w]{{1,4}}(?:(?:a|an|the)\s)?|(?<=[{CJK}])|(?=[{CJK}]))" if " " in phrase else ""
    words = [
        re.sub(r"(?<=\d)(?=(?:\d{3})+(?!\d))", ",?", re.escape(word)) if word.isdecimal() else re.escape(word)
        for word in phrase.split()
    ]
    before, after = (
        rf"(?:(?<![^\W{CJK}])|(?<=[{CJK}]))",
        rf"(?![^\W{CJK}])(?!\.\d)" if not re.match(f"[{CJK}]", phrase[-1]) else "",
    )
    words = [word.replace("ss", "(?:ss|ß)") for word in words]
    if phrase[0] in "0123456789":
        before = rf"(?<![^\W{CJK}])(?<![-.,]\d)(?<!\d[.,])(?<!(?<!\w)-)"
    return re.compile(before + gap.join(words) + after, re.IGNORECASE)


def _gives(sentence: str, start: int, end: int, asked: Asked, strictly: bool) -> bool:
    """Whether a mention gives the answer: it is neither denied nor listed nor part of something else."""
    if denied(sentence, start, end):
        return False
    mention = _mention(sentence, start, end)
    if _asked_about(mention) or (strictly and not _says(mention, asked)):
        return False
    if mention.text[0] in "-0123456789" and mention.text[-1].isdigit():
        return not _in_numbers(mention.before, mention.behind, asked)
    return not (_listed(mention, asked) or _embedded(mention, asked))


def _mention(sentence: str, start: int, end: int) -> _Mention:
    around = sentence[max(0, start - _REACH) : end + _REACH]
    before, behind = sentence[max(0, start - _REACH) : start], sentence[end : end + _REACH]
    # "Perhaps Paris, perhaps Lyon" lists them, too.
    if _PERHAPS.may_be_in(around):
        before, behind = _PERHAPS.sub("", before), _PERHAPS.sub("", behind)
        around = f"{before} {behind}"
    return _Mention(before, sentence[start:end], behind, around)


def _asked_about(mention: _Mention) -> bool:
    """Whether the clause asks about a mention: "whether it is Paris"."""
    if not _QUESTIONED.may_be_in(mention.around):
        return False
    before = mention.before
    clause = before[max(map(before.rfind, ",.;")) + 1 :]  # what is asked ends at any of them
    return _QUESTIONED.search(clause) is not None


def _says(mention: _Mention, asked: Asked) -> bool:
    """Whether a mention stands in front of its sentence, or at the end of a clause without a denial before it."""
    before, behind = mention.before, mention.behind
    if _COPULA.match(behind) and not _LETTER.search(without_lead(before.strip())):
        return True
    if _EXAMPLE.may_be_in(mention.around) and _EXAMPLE.search(before):
        return False
    if _denies(mention) and not _BUT_IN_FRONT.search(before):
        return False
    if behind[:1] in _PART_SIGNS:  # or nothing at all
        return True
    rest = _PART_ENDS.split(behind, maxsplit=1)[0]
    words = normalise(rest).split()
    few = 12 if _IN_CJK.search(rest) else 3  # words, or characters
    return len(words) <= few or all(holds(asked.question, word) for word in words)


def _denies(mention: _Mention) -> bool:
    """Whether there is a denial before a mention, not only of something else: "not Rome but Paris"."""
    before = mention.before
    if len(before) <= _NEAR and not DENIALS.may_be_in(mention.around):
        return False
    if "," in before:
        return DENIALS.search(before) is not None
    near = before[-_NEAR:]
    return DENIALS.search(near) is not None and DENIALS.search(_UP_TO_BUT.sub("", near)) is not None


def _listed(mention: _Mention, asked: Asked) -> bool:
    """Whether other answers stand beside one, that the question does not name."""
    behind = mention.behind
    if "also" in folded(behind) and _BUT_ALSO.match(behind):
        return True
    if _JOINTS.may_be_in(mention.around):
        end = _end(mention.before)
        for match in (_OR_BEHIND.match(behind), _JOINT_AT_END.search(end) and _OR_BEFORE.search(end)):
            if match and _is_item(match[1], asked):
                return True
    if "," not in mention.around and "，" not in mention.around:
        return False
    comma = _COMMA_BEHIND.match(behind)
    if comma and _is_item(comma[1], asked) and (comma[2] or not re.search(r"\w", behind[comma.end() :])):
        return True
    comma = _COMMA_BEFORE.search(_end(mention.before))
    return bool(comma and _is_item(comma[1], asked) and not _IS.search(mention.before))


def _end(before: str) -> str:
    """The last words of what stands before a mention: patterns that end there hold three blanks at most."""
    return " ".join(before.rsplit(" ", 4)[-4:])


def _is_item(word: str, asked: Asked) -> bool:
    """Whether a word beside an answer is another answer: a name, a number or a candidate that was not asked about."""
    bare = normalise(word)
    if not bare or holds(asked.question, bare) or not without_lead(f"{word.rstrip(',')}, "):
        return False
    known = any(holds(phrase, bare) for phrase in asked.others)
    return known or word.lstrip("(\"'“‘")[:1].isupper() or word[:1].isdigit() or bool(re.match(f"[{CJK}]", word))


def _embedded(mention: _Mention, asked: Asked) -> bool:
    """Whether a mention is a part of a longer name."""
    if _OTHER_BEFORE.may_be_in(mention.around) and _OTHER_BEFORE.search(_end(mention.before)):
        return True
    name = _NAME_BEHIND.match(mention.behind)
    if not (name and mention.text[:1].isupper()) or name[1] in _KINDS_OF_PLACE:
        return False
    # In titles every word has a capital; what the question names is no part of the answer.
    return not holds(asked.question, normalise(name[1]))


def _in_numbers(before: str, behind: str, asked: Asked) -> bool:
    """Whether a number is a part of a term or a label, or stands among others that are neither the question's nor a
    date's."""
    if LABEL_IN_FRONT.search(before[-LABEL_LENGTH - 1 :]):
        return True
    if _TERM_BEHIND.match(behind) or _TERM_BEFORE.search(before):
        return True
    others = [number.rstrip(".,") for number in _DIGITS.findall(before) + _DIGITS.findall(behind)]
    # Numbers of the question may stand beside it, and those of a date.
    others = [number for number in others if not holds(asked.question, normalise(number))]
    return bool(others) and not _MONTH.search(before + behind) and "=" not in before
