"""What a reply commits itself to: the text without what it only holds possible.

Belief is an answer ("I think it is Paris", "probably Paris"). Possibility ("it could be Paris", "maybe Paris"), a guess
and what the reply says it is not sure of are none.
"""

import re
from collections.abc import Sequence

from gendistill.evaluate.kinds.shared.hinted import Hinted
from gendistill.evaluate.kinds.shared.statements import sentence_end

# Not "may be written as", which says how, and not "most likely" in Chinese (最可能), which is belief.
_POSSIBLY = Hinted(
    r"\b(?:could|might|may)\s(?:well\s|also\s|just\s|possibly\s|perhaps\s)?be\b(?!\s(?-i:[a-z]+(?:ed|en|wn)|found)\b)"
    r"|\b(?:could|might|may)\shave\sbeen\b|\bmight\shave\b|\b(?:maybe|perhaps|possibly)\b(?!\s[a-z]+ly\b)"
    r"|\bI(?:\swould|['’]d)?\sguess\b|\bI(?:\sam|['’]m)\s(?:just\s|only\s)?guessing\b|\bmy\s(?:best\s|only\s)?guess\b"
    r"|\b(?:vielleicht|möglicherweise|eventuell|könnten?|ich\srate)\b"
    r"|\b(?:peut[- ]être|pourra(?:it|ient)|possiblement|je\sdevine)\b|\bil\sse\speut\b"
    r"|\b(?:quizás?|tal\svez|a\slo\smejor|podrían?|puede\sser|posiblemente|adivino)\b"
    r"|\b(?:forse|potrebbe|talvez|poderia)\b"
    r"|(?<![不最很极大])可能(?!性)|也许|或许|说不定|我猜",
    hints=r"could\s might\s may\s maybe perhaps possib i\sguess i\swould\s i['’]d\s i\sam\s i['’]m\s "
    r"my\s vielleicht möglich eventuell könnt ich\s peut pourra je\s il\s quiz tal\s a\slo\s "
    r"podr puede\s posib adivino forse potrebbe talvez poderia 可能 也许 或许 说不定 我猜",
    words="could might may maybe perhaps possibly guess guessing vielleicht möglicherweise eventuell könnte könnten "
    "rate peut pourrait pourraient possiblement devine quizá quizás vez mejor podría podrían puede posiblemente "
    "adivino forse potrebbe talvez poderia 可能 也许 或许 说不定 我猜",
)
_UNSURE = Hinted(
    r"\bI(?:\sam|['’]m)\s(?:really\s|still\s)?(?:not|un)\s?(?:\w+\s)?(?:sure|certain)\b"
    r"|\bI\s(?:can(?:not|['’]t)|could(?:\snot|n['’]t))\sbe\s(?:\w+\s)?(?:sure|certain)\b"
    r"|\b(?:do\snot|don['’]t)\s(?:really\s)?know(?:\sfor\s(?:sure|certain)\b|,?\sbut\b)"
    r"|\b(?:just|only)\s(?:a|my)\sguess\b|\ba\s(?:wild\s)?guess\b"
    r"|\bnicht\s(?:\w+\s)?sicher\b|\bkeine\sAhnung\b|\bpas\s(?:\w+\s)?(?:sûre?|certaine?)\b|\baucune\sidée\b"
    r"|\bno\s(?:estoy|soy)\s(?:\w+\s)?segur[oa]\b|\bni\sidea\b|我?不(?:太|是很|大|能)?(?:确定|肯定)|没(?:有)?把握",
    hints=r"i\sam\s i['’]m\s i\scan i\scould do\snot\s don['’]t\s just\s only\s a\sguess a\swild nicht\s "
    r"keine\s pas\s aucune\s no\s ni\s 我不 不 没",
    words="sure unsure notsure certain uncertain notcertain know guess sicher ahnung pas aucune seguro segura idea "
    "确定 肯定 把握",
)
_NOT_SURE = re.compile(r"\W*(?:but\s)?not\s(?:\w+\s)?sure\b", re.IGNORECASE)  # at the start of a sentence
# Any of them; looked for first, since few replies hedge.
_HEDGES = Hinted(
    rf"{_POSSIBLY.pattern.pattern}|{_UNSURE.pattern.pattern}|\bnot\s(?:\w+\s)?sure\b",
    hints=rf"{_POSSIBLY.hints} {_UNSURE.hints} not\s",
    words=f"{_POSSIBLY.words} {_UNSURE.words}",
)
# Asks for what is possible.
_ASKS_POSSIBLE = re.compile(r"\b(?:could|might|may|possibl[ey]|könnten?|pourrait|podría)\b|可能", re.IGNORECASE)
# A clause begins behind these; signs inside of a number begin none.
_BREAK = re.compile(r"[,:](?!\d)|[;，；：]|[.!?。！？\n](?!\d)")
# What is said against the rest of the sentence is not hedged with it.
_BUT = re.compile(r"\b(?:but|however|aber|pero|mais|ma|mas)\b|但是?|不过", re.IGNORECASE)
_MOST_BESIDE = 3  # of a sentence that says no more than that it is not sure
_REACH = 300  # characters before a hedge in which its clause begins


def committed(reply: str, question: str = "", options: Sequence[str] = ()) -> str:
    """The reply without its hedged parts.

    Hedged is a clause that holds something possible, with the rest of its sentence up to a "but"; the clause before it
    if it says nothing else ("Paris, maybe"); a sentence that says it is not sure, and the one before it if it says
    nothing else. Where the question asks for what is possible ("Where might ...?"), such words hedge nothing, nor where
    an answer has them ("Fish may be harmed").

    Args:
        options: the answers that a reply may give.
    """
    if not _HEDGES.may_be_in(reply):
        return reply
    if _POSSIBLY.search(reply) and not _ASKS_POSSIBLE.search(question) and not any(map(_POSSIBLY.search, options)):
        reply = _without_possible(reply)
    if _unsure(reply) and not any(map(_unsure, options)):
        reply = _without_unsure(reply)
    return reply


def _without_possible(text: str) -> str:
    kept, done = [], 0
    for hedge in _POSSIBLY.matches(text):
        if hedge.start() < done:  # in a part that is gone
            continue
        end = sentence_end(text, hedge.start())
        but = _BUT.search(text, hedge.end(), end)
        end = but.start() if but else end
        start = _clause_start(text, hedge.start(), done)
        # "Paris, maybe.", "Paris, I guess": the hedge is of what stands before it.
        if not re.search(r"\w", text[start : hedge.start()] + text[hedge.end() : end]):
            start = _clause_start(text, start - 1, done)
        kept.append(text[done:start])
        done = end
    return "".join(kept) + text[done:]


def _clause_start(text: str, place: int, least: int) -> int:
    """Where the clause around a place begins."""
    least = max(least, place - _REACH)
    breaks = [match.end() for match in _BREAK.finditer(text, least, max(least, place))]
    return breaks[-1] if breaks else least


def _unsure(text: str) -> re.Match | None:
    return _NOT_SURE.match(text) or _UNSURE.search(text)


def _without_unsure(text: str) -> str:
    kept, start = [], 0
    while start < len(text):
        end = sentence_end(text, start)
        sentence = text[start:end]
        unsure = _unsure(sentence)
        if unsure is None:
            kept.append(sentence)
        # A sentence of its own ("Paris. I am not sure, though.") is about the one before.
        elif len(re.findall(r"\w+", sentence[: unsure.start()] + sentence[unsure.end() :])) <= _MOST_BESIDE:
            kept = kept[:-1]
        start = end
    return "".join(kept)
