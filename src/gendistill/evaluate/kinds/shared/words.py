"""Words of a text in the form in which short answers are compared."""

import re
import unicodedata
from functools import lru_cache

MOST_KEPT = 512  # texts whose form is remembered: a reply is held against the same candidates several times
# Left out of comparisons, as in SQuAD's and TriviaQA's scoring.
ARTICLES = {"a", "an", "the"}
# Written without blanks, so that each character is a word: Chinese, Japanese, Korean.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_NAME = "\ue000"  # stands for an "a" that is no article, while articles are taken out; no text has it
# Behind such an "a" no word follows at once, or it is in brackets: "(A)", "type A", "A: no". As in the next pattern but
# one, a plain sign comes first, so that only such signs are looked at.
_NAMED_A = re.compile(r"a(?:(?<![\w'’]a)(?=[^\w\s\"'“‘*`(\[{$\\-]|\s*$)|(?<=[(\[]a)(?=[)\]]))")
# A number with its sign and decimals is one word; what is neither letter nor digit is none. Most words begin with a
# letter, so that is tried first.
_WORD = re.compile(
    rf"[^\W\d{CJK}][^\W{CJK}]*|[{CJK}{_NAME}]|(?:(?<!\w)|(?<=[{CJK}]))-?\d+(?:\.\d+)*[^\W{CJK}]*|[^\W{CJK}]+"
)
_ANY_WORD = re.compile(rf"[\w{CJK}]")
_THOUSANDS = re.compile(r",(?<=\d,)(?=\d{3})")  # separators
_RUN = re.compile(r"\w+")
# In every text that has words other than runs of letters and digits.
_APART = re.compile(rf"[-.,{CJK}{_NAME}](?:(?<=[^-.,])|\d)")
# Of each ASCII character itself in small letters, or a blank for one that is in no word.
_PARTED = bytes(ord(chr(code).lower()) if re.match(r"\w", chr(code), re.ASCII) else ord(" ") for code in range(256))


@lru_cache(maxsize=MOST_KEPT)
def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces; signs and decimal points of numbers stay.

    An "a" that names something is no article: "(A)" is "a", "type A" is "type a".
    """
    return _forms(text)[0]


def with_articles(text: str) -> str:
    """As `normalise`, but articles stay: what "type A" is found by in "type A blood"."""
    return _forms(text)[1]


def ascii_words(text: str) -> list[str]:
    """The runs of ASCII letters, digits and underscores of a text, in small letters: "más" has two."""
    return text.encode("ascii", "replace").translate(_PARTED).decode().split()  # many times as fast as a pattern


def has_words(text: str) -> bool:
    """Whether there is anything to compare in a text in `plain` spelling."""
    return _ANY_WORD.search(text) is not None


def outermost(phrases: set[str]) -> set[str]:
    """The phrases that are not part of a longer one among them."""
    if len(phrases) < 2:
        return set(phrases)
    return {phrase for phrase in phrases if not any(phrase != other and holds(other, phrase) for other in phrases)}


def holds(text: str, phrase: str) -> bool:
    """Whether a normalised text has a normalised phrase in it, as whole words."""
    return bool(phrase) and f" {phrase} " in f" {text} "


def _is_word(text: str) -> bool:
    """Whether a text is a single plain word, as most answers are: there is nothing to leave out or to part."""
    return text.isascii() and text.isalnum()


@lru_cache(maxsize=16)  # most texts are wanted both ways
def _forms(text: str) -> tuple[str, str]:
    """A text without and with articles."""
    if _is_word(text):
        return text.casefold(), text.casefold()
    words = _words(text)
    # An article alone is all there is to compare ("The"), so it stays.
    kept = [word for word in words if word not in ARTICLES] or words
    return " ".join(kept).replace(_NAME, "a"), " ".join(words).replace(_NAME, "a")


def _words(text: str) -> list[str]:
    """The words in small letters; an "a" that names something is `_NAME`."""
    if not text.isascii():  # one spelling for full-width letters and for the minus sign
        text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    if not _APART.search(text):
        words = ascii_words(text) if text.isascii() else _RUN.findall(text.casefold())
        if "a" not in words:
            return words
    return _WORD.findall(_THOUSANDS.sub("", _NAMED_A.sub(_NAME, text.casefold())))
