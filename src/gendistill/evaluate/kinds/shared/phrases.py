"""Short free answers: whether a reply gives one."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from gendistill.evaluate.kinds.item import Answer
from gendistill.evaluate.kinds.shared.asked import Asked
from gendistill.evaluate.kinds.shared.letters import flexible_letter, strict_letter
from gendistill.evaluate.kinds.shared.mentions import gives, without_lead
from gendistill.evaluate.kinds.shared.statements import DENIALS, denied, plain, sentences, statements
from gendistill.evaluate.kinds.shared.words import has_words, holds, normalise, outermost, with_articles
from gendistill.names import LETTERS

_MOST_WORDS = 12  # of a reply that is an answer by itself rather than prose that may hold one
_LETTERED = re.compile(r"\(([A-Z])\)")
_OPTION = re.compile(r"^\s*\(([A-Z])\)[ \t]*(\S.*)$", re.MULTILINE)
# Behind these anything may follow: "No, ice is not".
_YES_NO = re.compile(r"^(?:yes|no|true|false|sí|si|oui|non|ja|nein|是|不是|对|不对)(?=\s?[,，])", re.IGNORECASE)
# It begins with one of a few signs, so that only those are looked at.
_EXPLAINED = re.compile(
    r"[\s:.(,](?:(?<=\s)(?:[(–—]|-\s(?!\d))|(?<=[:.])(?!\d)|(?<=[(\n])"
    r"|(?<=,)\s?(?=(?:because|since|as|which|who|where|but|not|although|while|it|he|she|they|there|that|this|the)\b))",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r",\s(?:which|who|whose|because|since|der|die|das|weil|qui|car|porque)\b", re.I)


class _Reading(NamedTuple):
    """What both readings of a reply begin with.

    Attributes:
        stated: what the reply states, see `_stated`.
        whole: without any, the sentences that may say something, see `_whole`.
        strict: the strict reading.
    """

    asked: Asked
    stated: Sequence[str]
    whole: Sequence[str]
    strict: Answer


def strict_phrase(
    reply: str, accepted: Sequence[str], candidates: Sequence[str], question: str = "", truncated: bool = False
) -> Answer:
    """Grades a short free answer: right if the reply is an accepted one, or states it and no other.

    Stated is what stands behind "the answer is" and its like, alone on the first line, or in a sentence that says it of
    what was asked. Not right are answers that are denied, listed beside others, a part of a longer name or term, or in
    a sentence that was cut off. Such replies are unparsed, as is prose that states nothing; a reply that is another
    answer is that answer, and wrong.
    """
    accepted, candidates = tuple(accepted), tuple(candidates)
    if letters := _as_letters(accepted, candidates, question):
        return _lettered(strict_letter(reply, letters, truncated), accepted)
    return _read(reply, accepted, candidates, question, truncated).strict


def flexible_phrase(
    reply: str, accepted: Sequence[str], candidates: Sequence[str], question: str = "", truncated: bool = False
) -> Answer:
    """Right if any statement or sentence of the reply gives an accepted answer, whatever others say."""
    accepted, candidates = tuple(accepted), tuple(candidates)
    if letters := _as_letters(accepted, candidates, question):
        return _lettered(flexible_letter(reply, letters, truncated), accepted)
    asked, stated, whole, strict = _read(reply, accepted, candidates, question, truncated)
    if strict.parsed is not None:
        return strict
    if stated:
        # The last one: a reply that reasons comes to its answer at the end.
        return _answer(stated[-1], asked) if stated[-1] else strict
    held = {phrase for sentence in whole for phrase in _asserted(sentence, asked)} & asked.right
    said = {phrase for sentence in whole for phrase in _asserted(sentence, asked, strictly=True)} - asked.right
    return Answer(min(held), True) if held and not said else strict


@lru_cache(maxsize=16)  # for the flexible reading what the strict one found
def _read(
    reply: str, accepted: tuple[str, ...], candidates: tuple[str, ...], question: str, truncated: bool
) -> _Reading:
    text, asked = plain(reply).strip(), Asked(accepted, candidates, question)
    if not has_words(text):
        return _Reading(asked, (), (), Answer(None, False))
    if stated := _stated(text, asked, truncated):
        given = set(stated)
        one = len(given) == 1 and "" not in given
        return _Reading(asked, stated, (), _answer(given.pop(), asked) if one else Answer(None, False))
    whole = _whole(text, asked, truncated)
    return _Reading(asked, (), whole, _strict(text, whole, asked, truncated))


def _strict(text: str, whole: Sequence[str], asked: Asked, truncated: bool) -> Answer:
    """The strict reading of a text that states nothing, by its sentences."""
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


def _whole(text: str, asked: Asked, truncated: bool) -> list[str]:
    """The sentences that name a known phrase, but for one that was cut off, and for those that repeat the question."""
    found = sentences(text)
    if found and truncated and not text.endswith((".", "!", "。")):
        *found, last = found
        # Its main clause had ended if it was cut off in a relative one.
        found += _RELATIVE.split(last, maxsplit=1)[:1] if _RELATIVE.search(last) else []
    found = filter(asked.named_in, found)
    return [sentence for sentence in found if len(sentence) < 20 or not holds(asked.question, normalise(sentence))]


def _as_letters(accepted: tuple[str, ...], candidates: tuple[str, ...], question: str) -> tuple[str, ...]:
    """The options' texts, where answers are letters in brackets and the options stand in the question."""
    if accepted and "(" not in accepted[0]:  # most answers are none
        return ()
    return _options(accepted, candidates, question)


@lru_cache(maxsize=16)  # both readings ask for them
def _options(accepted: tuple[str, ...], candidates: tuple[str, ...], question: str) -> tuple[str, ...]:
    if not all(map(_LETTERED.fullmatch, map(str.strip, accepted))):
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


def _stated(text: str, asked: Asked, truncated: bool) -> Sequence[str]:
    """What a reply states: of each statement the phrase, accepted ones as such, others as they stand."""
    first, _, rest = text.partition("\n")
    # The reply, or its first line, is an answer by itself.
    alone = _is_phrase(first, asked)
    if alone is not None and any(_is_phrase(line, asked) not in (None, alone) for line in rest.split("\n")[:5]):
        return ("",)  # a list
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
    return found


def _goes_on(content: str, phrase: str | None) -> bool:
    """Whether a statement says more behind its phrase, so that the phrase was not cut off."""
    return phrase is not None and not normalise(content).endswith(phrase)


def _is_phrase(text: str, asked: Asked) -> str | None:
    """The known phrase that a text is, but for words that add nothing to it; None if it is none or denies it."""
    if not asked.may_be_in(text) or text.rstrip().endswith("?"):
        return None
    for _ in range(5):
        text = text.strip(" .。!,;:\"'“”‘’")
        for part in _parts(text) if asked.may_open(text) else ():
            found = asked.known & {normalise(part), with_articles(part)}
            if found:
                return min(found)
        # Known phrases first: a lead ("in") may be one.
        shorter = without_lead(text)
        if shorter == text:
            return None
        text = shorter
    return None


def _parts(text: str) -> Iterator[str]:
    """A text, and what may be its answer: behind a mark stands what explains it: "Paris, because", "Yes. It is"."""
    yield text
    if explained := _EXPLAINED.search(text):
        yield text[: explained.start()]
    if yes_no := _YES_NO.match(text):
        yield yes_no[0]


@lru_cache(maxsize=64)  # of the sentences of a reply it is asked several times
def _asserted(sentence: str, asked: Asked, strictly: bool = False) -> set[str]:
    """Known phrases that a sentence gives for the answer: neither denied nor listed nor part of something else.

    Strictly, those are given that stand where a sentence says something: in front, or at the end of a clause.
    """
    if sentence.endswith("?"):
        return set()
    given = {phrase for phrase in outermost(asked.named_in(sentence)) if gives(sentence, phrase, asked, strictly)}
    # A candidate that the question names may only be talked about, unless it is put where the answer stands.
    told = {phrase for phrase in given if phrase in asked.right or not holds(asked.question, phrase)}
    return told or {phrase for phrase in given if gives(sentence, phrase, asked, strictly=True)}


def _undecided(text: str, asked: Asked) -> bool:
    """Whether a reply without a right answer gives none at all: it denies, it lists, or it is prose."""
    if len(text.split()) > _MOST_WORDS or len(sentences(text)) > 1:
        return True
    # It names an answer without giving it.
    return any(holds(normalise(text), phrase) for phrase in asked.known)
