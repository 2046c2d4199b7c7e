"""Short free answers: when two texts are the same, and whether a reply gives one."""

import re
from collections.abc import Sequence

from gendistill.evaluate.kinds.item import Answer

# Left out of comparisons, as in SQuAD's and TriviaQA's scoring.
_ARTICLES = {"a", "an", "the"}
# A number with its sign and decimals is one word; what is neither letter nor digit is none.
_WORD = re.compile(r"(?<!\w)-?\d+(?:\.\d+)*\w*|\w+")


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces; signs and decimal points of numbers stay."""
    words = _WORD.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold()))  # no thousands separators
    # An article alone is all there is to compare ("The"), so it stays.
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def strict_phrase(reply: str, accepted: Sequence[str], candidates: Sequence[str]) -> Answer:
    """Grades a short free answer: right if it holds an accepted answer, as whole words, and no other candidate.

    A candidate inside a longer one that is there too ("York" in "New York") does not count as named. A reply that names
    several answers is unparsed; so is an empty one. Any other reply that names no candidate is an answer, and wrong.
    """
    text = normalise(reply)
    right = {normalise(answer) for answer in accepted}
    known = right | {normalise(candidate) for candidate in candidates}
    found = {phrase for phrase in known if holds(text, phrase)}
    found = outermost(found)
    if found and found <= right:
        return Answer(min(found), True)  # several accepted ones: any, but the same whenever it is asked
    if not text or len(found) > 1:
        return Answer(None, False)
    return Answer(found.pop() if found else text, False)


def flexible_phrase(reply: str, accepted: Sequence[str], candidates: Sequence[str]) -> Answer:
    """Right if the reply holds an accepted answer, whatever else it holds; else as `strict_phrase` says."""
    text = normalise(reply)
    for answer in map(normalise, accepted):
        if holds(text, answer):
            return Answer(answer, True)
    return strict_phrase(reply, accepted, candidates)


def outermost(phrases: set[str]) -> set[str]:
    """The phrases that are not part of a longer one among them."""
    return {phrase for phrase in phrases if not any(phrase != other and holds(other, phrase) for other in phrases)}


def holds(text: str, phrase: str) -> bool:
    """Whether a normalised text has a normalised phrase in it, as whole words."""
    return bool(phrase) and f" {phrase} " in f" {text} "
