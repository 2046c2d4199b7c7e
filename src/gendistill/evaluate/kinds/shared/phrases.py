"""Short free answers: whether a reply gives one."""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

from gendistill.evaluate.kinds.item import Answer
from gendistill.evaluate.kinds.shared.asked import Asked
from gendistill.evaluate.kinds.shared.hinted import Hinted
from gendistill.evaluate.kinds.shared.letters import flexible_letter, strict_letter
from gendistill.evaluate.kinds.shared.numbers import LABEL_IN_FRONT, LABEL_LENGTH
from gendistill.evaluate.kinds.shared.statements import DENIALS, denied, plain, sentences, statements
from gendistill.evaluate.kinds.shared.words import CJK, MOST_KEPT, has_words, holds, normalise, outermost, with_articles
from gendistill.names import LETTERS

_MOST_WORDS = 12  # of a reply that is an answer by itself rather than prose that may hold one
_MOST_MENTIONS = 50
_LETTERED = re.compile(r"\(([A-Z])\)")
_OPTION = re.compile(r"^\s*\(([A-Z])\)[ \t]*(\S.*)$", re.MULTILINE)
# Words in front of an answer that add nothing to it.
_LEAD = re.compile(
    r"^(?:(?:it|this|that|he|she|they|there|i|we|you)(?:['’]s|[ ](?:is|was|are|were|think|believe|get|would|say|guess"
    r"|(?:could|might|may)[ ]be)"
    r"|['’]m|['’]d)?"
    r"|is|was|that|in|on|at|by|to|the|an?|probably|likely|definitely|certainly|about|approximately|around|called|named|yes,|sure"
    r"|so|thus|"
    r"therefore|hence|well|ok|okay|of course|certainly|es|ist|est|son|er|sie|il|elle|él|ella|c['’]est|el|la|le|les|los"
    r"|las"
    r"|der|die|das|"
    r"ein|eine|un|une|una|en|im|am|dans|à|是|在|它|他|她|这)(?=[\s,:]|$|['’])[\s,:]*",
    re.IGNORECASE,
)
# Behind these anything may follow: "No, ice is not".
_YES_NO = re.compile(r"^(?:yes|no|true|false|sí|si|oui|non|ja|nein|是|不是|对|不对)(?=\s?[,，])", re.IGNORECASE)
# It begins with one of a few signs, so that only those are looked at.
_EXPLAINED = re.compile(
    r"[\s:.(,](?:(?<=\s)(?:[(–—]|-\s(?!\d))|(?<=[:.])(?!\d)|(?<=[(\n])"
    r"|(?<=,)\s?(?=(?:because|since|as|which|who|where|but|not|although|while|it|he|she|they|there|that|this|the)\b))",
    re.IGNORECASE,
)
# What stands between answers that are merely listed; in front of another answer, or behind one.
_OR_BEHIND = re.compile(
    r"[)\"'”’]?\s?(?:,\s?)?(?:/|&|、|;|\b(?:or|and|oder|und|ou|et|o|y)\b|或|和|还是)\s?(\S+)", re.IGNORECASE
)
_OR_BEFORE = re.compile(
    r"(\S+)\s?(?:/|&|、|;|\b(?:or|and|oder|und|ou|et|o|y)\b|或|和|还是)\s?(?:the\s|an?\s)?[(\"'“‘]?$", re.IGNORECASE
)
_COMMA_BEHIND = re.compile(
    r"[)\"'”’]?\s?[,，]\s?([^\s,，、]+)(\s?[,，、]|\s(?:or|and|oder|und|ou|et|o|y)\b)?", re.IGNORECASE
)
_COMMA_BEFORE = re.compile(r"(?:^|[\s,，])([^\s,，]+)\s?[,，]\s?$")
_PERHAPS = Hinted(
    r"\b(?:maybe|perhaps|possibly|vielleicht|peut[- ]être|quizás?|tal[ ]vez)[ ]|也许|或许",
    hints=r"maybe perhaps possibly vielleicht peut quiz tal 也许 或许",
)
_QUESTIONED = re.compile(r"\b(?:if|whether|ob|si|between|among|zwischen|entre)\b[^,.;]{0,200}$", re.IGNORECASE)
# Names that another word makes into those of other things: "Paris Hilton", "South Korea".
_OTHER_BEFORE = re.compile(
    r"\b(?:New|North|South|East|West|Northern|Southern|Eastern|Western|Anti|Non|Un|Saint|San)[ -]$"
)
_NAME_BEHIND = re.compile(r"[ -]([A-ZÀ-Þ][^\W\d_]+)")
_KINDS_OF_PLACE = {"River", "City", "Sea", "Ocean", "Island", "Islands", "County", "State", "Mountain",
                   "Mountains", "Lake",
                   "Desert", "Empire", "Republic", "Street", "Company", "Inc", "Corporation"}  # fmt: skip
_COPULA = re.compile(
    r"[\"'”’)]{0,2}\s?(?:,[^,]{0,60},\s?)?(?:is|was|are|were|has|had|ist|war|sind|es|era|fue|est|était|wrote|painted|invented|是)\b|[\"'”’)]{0,2}是",
    re.I,
)
_RELATIVE = re.compile(r",\s(?:which|who|whose|because|since|der|die|das|weil|qui|car|porque)\b", re.I)
_EXAMPLE = re.compile(r"\b(?:including|such as|like|e\.g\.|for example)\s?(?:the\s|an?\s)?[\"'“‘]?$", re.I)
_BUT_ALSO = re.compile(r"[^.]{0,40}\bbut\b[^.]{0,20}\balso\b", re.I)
_MONTH = re.compile(
    r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|januar|märz|mai|juin|juillet|août|enero|julio|mayo)\w{0,8}\b|[年月]",
    re.I,
)
_LETTER = re.compile(r"\w")
_IN_CJK = re.compile(f"[{CJK}]")
_UP_TO_BUT = re.compile(r"^.*\b(?:but|sondern|sino|mais)\b|^.*而是")
_BUT_IN_FRONT = re.compile(r"(?:\bbut|\bsondern|\bsino|\bmais|而是)\s\S{0,20}\s?$")
_PART_ENDS = re.compile(
    r"[.,;:!?(\n，。；！？]|\s[-–—]\s|\b(?:because|since|as|which|who|where|but|and|not|when|for)\b"
)
_IS = re.compile(r"\b(?:is|was|are|were|ist|est|es)\b|是")
_DIGITS = re.compile(r"(?<![\w.])-?\d[\d,.]*")


def strict_phrase(
    reply: str, accepted: Sequence[str], candidates: Sequence[str], question: str = "", truncated: bool = False
) -> Answer:
    """Grades a short free answer: right if the reply is an accepted one, or states it and no other.

    Stated is what stands behind "the answer is" and its like, alone on the first line, or in a sentence that says it of
    what was asked. Not right are answers that are denied, listed beside others, a part of a longer name or term, or in
    a sentence that was cut off. Such replies are unparsed, as is prose that states nothing; a reply that is another
    answer is that answer, and wrong.
    """
    return _strict_phrase(reply, tuple(accepted), tuple(candidates), question, truncated)


@lru_cache(maxsize=16)  # the flexible reading begins with the strict one
def _strict_phrase(
    reply: str, accepted: tuple[str, ...], candidates: tuple[str, ...], question: str, truncated: bool
) -> Answer:
    if letters := _as_letters(accepted, candidates, question):
        return _lettered(strict_letter(reply, letters, truncated), accepted)
    text, asked = plain(reply).strip(), _asked(accepted, candidates, question)
    if not has_words(text):
        return Answer(None, False)
    stated = _stated(text, asked, truncated)
    if stated:
        given = set(stated)
        return _answer(given.pop(), asked) if len(given) == 1 and "" not in given else Answer(None, False)
    whole = _whole(text, asked, truncated)
    held = outermost({phrase for sentence in whole for phrase in _asserted(sentence, asked, strictly=True)})
    if not held:
        return Answer(None if truncated or _undecided(text, asked) else normalise(text), False)
    # A candidate in another place of a sentence is one more that may be meant.
    with_others = [sentence for sentence in whole if not asked.named_in(sentence) <= asked.right]
    if {phrase for sentence in with_others for phrase in _asserted(sentence, asked)} - held - asked.right:
        return Answer(None, False)
    if held <= asked.right:
        return Answer(min(held), True)  # several accepted ones are one answer; the same whenever it is asked
    return _answer(held.pop(), asked) if len(held) == 1 else Answer(None, False)


def flexible_phrase(
    reply: str, accepted: Sequence[str], candidates: Sequence[str], question: str = "", truncated: bool = False
) -> Answer:
    """Right if any statement or sentence of the reply gives an accepted answer, whatever others say."""
    accepted, candidates = tuple(accepted), tuple(candidates)
    strict = _strict_phrase(reply, accepted, candidates, question, truncated)
    if strict.parsed is not None:
        return strict
    if letters := _as_letters(accepted, candidates, question):
        return _lettered(flexible_letter(reply, letters, truncated), accepted)
    text, asked = plain(reply).strip(), _asked(accepted, candidates, question)
    stated = _stated(text, asked, truncated)
    if stated:
        return (
            _answer(stated[-1], asked) if stated[-1] else strict
        )  # the last one: a reply that reasons comes to its answer at the end
    whole = _whole(text, asked, truncated)
    held = {phrase for sentence in whole for phrase in _asserted(sentence, asked)} & asked.right
    said = {phrase for sentence in whole for phrase in _asserted(sentence, asked, strictly=True)} - asked.right
    return Answer(min(held), True) if held and not said else strict


@lru_cache(maxsize=16)  # both readings ask it
def _whole(text: str, asked: Asked, truncated: bool) -> tuple[str, ...]:
    """The sentences that name a known phrase, but for one that was cut off, and for those that repeat the question."""
    found = sentences(text)
    if found and truncated and not text.endswith((".", "!", "。")):
        *found, last = found
        # Its main clause had ended if it was cut off in a relative one.
        found += _RELATIVE.split(last, maxsplit=1)[:1] if _RELATIVE.search(last) else []
    found = filter(asked.named_in, found)
    return tuple(sentence for sentence in found if len(sentence) < 20 or not holds(asked.question, normalise(sentence)))


_asked = lru_cache(maxsize=16)(Asked)  # both readings hold a reply against the same


@lru_cache(maxsize=16)
def _as_letters(accepted: tuple[str, ...], candidates: tuple[str, ...], question: str) -> tuple[str, ...]:
    """The options' texts, where answers are letters in brackets and the options stand in the question."""
    if not all(_LETTERED.fullmatch(answer.strip()) for answer in accepted):
        return ()
    letters = [match[1] for text in (*accepted, *candidates) if (match := _LETTERED.fullmatch(text.strip()))]
    if not letters:
        return ()
    texts = dict(_OPTION.findall(question))
    count = LETTERS.index(max([*letters, *texts])) + 1
    return tuple(texts.get(letter, "").strip() for letter in LETTERS[:count])


def _lettered(letter: str | None, accepted: Sequence[str]) -> Answer:
    return Answer(letter and letter.lower(), letter in [answer.strip(" ()") for answer in accepted])


def _answer(phrase: str, asked: Asked) -> Answer:
    return Answer(phrase, phrase in asked.right)


@lru_cache(maxsize=16)  # both readings begin with it
def _stated(text: str, asked: Asked, truncated: bool) -> tuple[str, ...]:
    """What a reply states: of each statement the phrase, accepted ones as such, others as they stand."""
    first, _, rest = text.partition("\n")
    # The reply, or its first line, is an answer by itself.
    alone = _is_phrase(first, asked)
    listed = any(_is_phrase(line, asked) not in (None, alone) for line in rest.split("\n")[:5])
    if alone is not None and listed:
        return ("",)
    if alone is not None and not (truncated and not rest.strip() and not first.endswith(".")):
        return (alone,)
    found = []
    for statement in statements(text):
        content = statement.content
        phrase = _is_phrase(content, asked)
        if phrase is None:
            held = outermost(_asserted(content, asked))
            phrase = held.pop() if len(held) == 1 else None
        if not statement.ended and truncated and not _goes_on(content, phrase):
            continue
        words = normalise(content)
        # A ramble states nothing, nor does a statement of what it is not.
        short = (
            len(words.split()) <= _MOST_WORDS
            and not denied(content, 0, len(content))
            and not DENIALS.pattern.match(content)
        )
        found.append(phrase or (words if short else ""))
    return tuple(found)


def _goes_on(content: str, phrase: str | None) -> bool:
    """Whether a statement says more behind its phrase, so that the phrase was not cut off."""
    return phrase is not None and not normalise(content).endswith(phrase)


def _is_phrase(text: str, asked: Asked) -> str | None:
    """The known phrase that a text is, but for words that add nothing to it; None if it is none or denies it."""
    if text.rstrip().endswith("?"):
        return None
    if not asked.may_be_in(text):
        return None
    for _ in range(5):
        text = text.strip(" .。!,;:\"'“”‘’")
        # Behind a mark stands what explains an answer: "Paris, because", "Yes. It is", "yen (JPY)".
        parts = [text, _EXPLAINED.split(text, maxsplit=1)[0]]
        if yes_no := _YES_NO.match(text):
            parts.append(yes_no[0])
        for part in dict.fromkeys(parts):
            found = [form for form in (normalise(part), with_articles(part)) if form in asked.known]
            if found:
                return min(found)
        # Known phrases first: a lead ("in") may be one.
        without_lead = _LEAD.sub("", text, count=1)
        if without_lead == text:
            return None
        text = without_lead
    return None


def _asserted(sentence: str, asked: Asked, strictly: bool = False) -> set[str]:
    """Known phrases that a sentence gives for the answer: neither denied nor listed nor part of something else.

    Strictly, those are given that stand where a sentence says something: in front, or at the end of a clause.
    """
    if sentence.endswith("?"):
        return set()
    given = {phrase for phrase in outermost(asked.named_in(sentence)) if _given(sentence, phrase, asked, strictly)}
    # A candidate that the question names may only be talked about, unless it is put where the answer stands.
    told = {phrase for phrase in given if phrase in asked.right or not holds(asked.question, phrase)}
    return told or {phrase for phrase in given if _given(sentence, phrase, asked, strictly=True)}


def _given(sentence: str, phrase: str, asked: Asked, strictly: bool) -> bool:
    """Whether some mention of a phrase in a sentence gives it for the answer."""
    if phrase in ("yes", "no", "true", "false", "none", "a", "i"):
        return False  # words that any sentence may hold; they count where they are stated
    places = islice(_pattern(phrase).finditer(sentence), _MOST_MENTIONS)
    # Spelled so differently that it is not found in the text as it is: nothing is known of what stands around it.
    return any(_mention(sentence, match.start(), match.end(), asked, strictly) for match in places)


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


def _mention(sentence: str, start: int, end: int, asked: Asked, strictly: bool) -> bool:
    # "Perhaps Paris, perhaps Lyon" lists them, too.
    before, behind = sentence[max(0, start - 300) : start], sentence[end : end + 300]
    if _PERHAPS.may_be_in(sentence):
        before, behind = _PERHAPS.sub("", before), _PERHAPS.sub("", behind)
    clause = before[max(map(before.rfind, ",.;")) + 1 :]  # what is asked ends at any of them
    if denied(sentence, start, end) or _QUESTIONED.search(clause):
        return False
    if strictly and not _says(before, behind, asked):
        return False
    mention = sentence[start:end]
    if mention[0] in "-0123456789" and mention[-1].isdigit():
        return not _in_numbers(before, behind, asked)
    return not (_listed(before, behind, asked) or _embedded(before, mention, behind, asked))


def _says(before: str, behind: str, asked: Asked) -> bool:
    """Whether a mention stands in front of its sentence, or at the end of a clause without a denial before it."""
    front = not before or not _LETTER.search(_LEAD.sub("", before.strip()))
    if front and _COPULA.match(behind):
        return True
    # Behind "not Rome but" the denial is of the other one.
    if _EXAMPLE.search(before):
        return False
    denial = DENIALS.search(before if "," in before else before[-40:])
    if denial and "," not in before:
        denial = DENIALS.search(_UP_TO_BUT.sub("", before[-40:]))
    if denial and not _BUT_IN_FRONT.search(before):
        return False
    rest = _PART_ENDS.split(behind, maxsplit=1)[0]
    words = normalise(rest).split()
    few = 12 if _IN_CJK.search(rest) else 3  # words, or characters
    return len(words) <= few or all(holds(asked.question, word) for word in words)


def _listed(before: str, behind: str, asked: Asked) -> bool:
    """Whether other answers stand beside one, that the question does not name."""
    if _BUT_ALSO.match(behind):
        return True
    end = _end(before)
    for match in (_OR_BEHIND.match(behind), _OR_BEFORE.search(end)):
        if match and _is_item(match[1], asked):
            return True
    comma = _COMMA_BEHIND.match(behind)
    if comma and _is_item(comma[1], asked) and (comma[2] or not re.search(r"\w", behind[comma.end() :])):
        return True
    comma = _COMMA_BEFORE.search(end)
    return bool(comma and _is_item(comma[1], asked) and not _IS.search(before))


def _end(before: str) -> str:
    """The last words of what stands before a mention: patterns that end there hold three blanks at most."""
    start = len(before)
    for _ in range(4):
        start = before.rfind(" ", 0, max(start, 0))
    return before[start + 1 :]


def _is_item(word: str, asked: Asked) -> bool:
    """Whether a word beside an answer is another answer: a name, a number or a candidate that was not asked about."""
    bare = normalise(word)
    if not bare or holds(asked.question, bare) or not _LEAD.sub("", f"{word.rstrip(',')}, "):
        return False
    known = any(holds(phrase, bare) for phrase in asked.others)
    return known or word.lstrip("(\"'“‘")[:1].isupper() or word[:1].isdigit() or bool(re.match(f"[{CJK}]", word))


def _embedded(before: str, mention: str, behind: str, asked: Asked) -> bool:
    """Whether a mention is a part of a longer name."""
    if _OTHER_BEFORE.search(_end(before)):
        return True
    name = _NAME_BEHIND.match(behind)
    if not (name and mention[:1].isupper()) or name[1] in _KINDS_OF_PLACE:
        return False
    # In titles every word has a capital; what the question names is no part of the answer.
    return not holds(asked.question, normalise(name[1]))


def _in_numbers(before: str, behind: str, asked: Asked) -> bool:
    """Whether a number is a part of a term or a label, or stands among others that are neither the question's nor a
    date's."""
    if LABEL_IN_FRONT.search(before[-LABEL_LENGTH - 1 :]):
        return True
    if re.match(r"\s?(?:[-+*/×÷^=]\s?[\d(]|[+*×÷^]|[xyzn]\b(?!\w))", behind) or re.search(r"[+*×÷^/]\s?$", before):
        return True
    others = [number.rstrip(".,") for number in _DIGITS.findall(before) + _DIGITS.findall(behind)]
    # Numbers of the question may stand beside it, and those of a date.
    others = [number for number in others if not holds(asked.question, normalise(number))]
    return bool(others) and not _MONTH.search(before + behind) and "=" not in before


def _undecided(text: str, asked: Asked) -> bool:
    """Whether a reply without a right answer gives none at all: it denies, it lists, or it is prose."""
    if len(text.split()) > _MOST_WORDS or len(sentences(text)) > 1:
        return True
    # It names an answer without giving it.
    return any(holds(normalise(text), phrase) for phrase in asked.known)
