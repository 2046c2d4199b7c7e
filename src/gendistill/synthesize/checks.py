"""Whether a reply is there already: duplicates, exact and near."""

import hashlib
import re
import unicodedata
from collections import Counter
from typing import Literal

_OPERATORS = "-*/%!()[]"  # those that Unicode calls punctuation; "+", "=" and "<" are symbols and always stay
# A blank on either side of an operator says nothing: "3 - 2" and "3-2" are near duplicates.
_AROUND_OPERATOR = re.compile(r" ?([-*/%()\[\]]) ?")


class Duplicates:
    """Texts met so far, as hashes of 16 bytes each.

    Near duplicates are equal but for case, white space and punctuation, as `normalise` leaves them out.

    Attributes:
        counts: how many texts were "new", "near" and "exact".
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._exact: set[bytes] = set()
        self._near: set[bytes] = set()

    def add(self, text: str) -> Literal["new", "near", "exact"]:
        """Remembers a text and says whether it was met before."""
        exact, near = _digest(text), _digest(normalise(text))  # hashes: millions of texts would not fit in memory
        kind = "exact" if exact in self._exact else "near" if near in self._near else "new"
        self._exact.add(exact)
        self._near.add(near)
        self.counts[kind] += 1
        return kind


def normalise(text: str) -> str:
    """Lower case, without white space and punctuation, except where they bear meaning.

    Symbols stay, operators and brackets next to a number or a single letter, and what stands between two digits: so
    "3 - 2" is not "3 / 2", "2(x + 1)" not "2x + 1", "1.5" neither "15" nor "1 5".
    """
    # NFKC: full-width letters, ligatures and no-break spaces become the ordinary ones.
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    text = _AROUND_OPERATOR.sub(r"\1", text)
    return "".join(character for position, character in enumerate(text) if _bears_meaning(text, position, character))


def _bears_meaning(text: str, position: int, character: str) -> bool:
    kind = unicodedata.category(character)[0]
    if kind in "LMN":  # letters, marks upon them, numbers
        return True
    if kind == "S":
        return character != "`"  # a symbol to Unicode, but in replies the mark of code
    if character in " .,:":
        return text[position - 1 : position].isdigit() and text[position + 1 : position + 2].isdigit()
    return character in _OPERATORS and (
        _is_operand(text[max(position - 2, 0) : position][::-1]) or _is_operand(text[position + 1 : position + 3])
    )


def _is_operand(neighbours: str) -> bool:
    """Whether the nearest of two characters is a digit or a letter that stands alone."""
    near, far = neighbours[:1], neighbours[1:]
    return near.isdigit() or (near.isalpha() and not far.isalpha())


def _digest(text: str) -> bytes:
    # "surrogatepass": a reply may hold half a surrogate pair, which is no UTF-8.
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
