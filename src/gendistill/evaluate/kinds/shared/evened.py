"""Texts with numbers in one spelling."""

import re
from functools import lru_cache

from gendistill.evaluate.kinds.shared.statements import plain

_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
           "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SMALL_DIGIT = re.compile(f"[{''.join(_VULGAR)}⁰¹²³⁴⁵⁶⁷⁸⁹]")
_VULGAR_SIGN = re.compile(f"[{''.join(_VULGAR)}]")
_RAISED_SIGNS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
# As elsewhere, a plain sign comes first and then what must stand before it, so that only such signs are looked at.
_LATEX_COMMA = re.compile(
    r"[{\\](?:(?<=\{),\}(?<=\d...)|(?<=\\)[,!;: ](?<=\d..)|(?<=\{)\\,\}(?<=\d....))(?=\d{3}(?!\d))"
)
_LETTERS_DOLLAR = re.compile(r"\$(?<=[A-Za-z].)")
_FRACTION = re.compile(r"\\[dtc]?frac\s?(?:\{\s?(-?[\d,.]{1,40})\s?\}\s?\{\s?([\d,.]{1,40})\s?\}|(\d)\s?(\d))")
# The number of a figure is no amount: "Fig.5", "Eq. 12", "vs.3". That of an answer or a currency is one: "Rs.75".
_LABEL_WORD = (
    r"(?:(?<![A-Za-z])(?:(?!(?:Rs|Re|Nos?|Nr|Ans|Ca|Abt)\.)[A-Z][a-z]{1,3}|figs?|eqs?|secs?|tab|vol|ch|cf|vs|ver)\."
    r"|\b(?:Figs?|Eqs?|Secs?|Tab|Abb|Vol|Ref)\.\s)"
)
_LABEL = re.compile(rf"{_LABEL_WORD}\d+(?:\.\d+)*")
LABEL_IN_FRONT = re.compile(rf"{_LABEL_WORD}$")
LABEL_LENGTH = 6  # of its word, with a point and a blank
# In every label.
_LABEL_POINT = re.compile(
    r"\.(?=\s?\d)(?<=[A-Za-z].)(?:(?<=[A-Z][a-z].)|(?<=[A-Z][a-z]{2}.)|(?<=[A-Z][a-z]{3}.)|(?<=eq.)|(?<=ch.)|(?<=cf.)|(?<=vs.)"
    r"|(?<=fig.)|(?<=figs.)|(?<=eqs.)|(?<=sec.)|(?<=secs.)|(?<=tab.)|(?<=vol.)|(?<=ver.))"
)
# Behind the sign by which lines are found soonest.
_ENUMERATOR = re.compile(r"\n[ \t]*(?:\d{1,2}[.)]|(?:Step|Schritt|Paso|Étape)\s\d{1,2}\s?[:.])[ \t]+(?=\S)")


@lru_cache(maxsize=16)  # both readings see the same text
def evened(text: str) -> str:
    """The text with fractions as "1/2", thousands separators as commas, and no LaTeX, list or figure numbers."""
    if not text.isascii() and _SMALL_DIGIT.search(text):
        text = _VULGAR_SIGN.sub(lambda match: f" {_VULGAR[match[0]]}", text)
        text = _RAISED_SIGNS.sub(lambda match: f"^{match[0].translate(_RAISED)}", text)
    if "\\" in text or "{" in text:
        text = _LATEX_COMMA.sub(",", text)
    text = plain(text).replace("\u2044", "/")
    if "\\" in text:
        text = text.replace("\\$", "$").replace("\\%", "%")
    if "$" in text:
        # Behind letters a currency's sign parts them from the number: "US$5".
        text = _LETTERS_DOLLAR.sub(" ", text).replace("$", "")
    if "frac" in text:
        text = _FRACTION.sub(lambda match: f" {match[1] or match[3]}/{match[2] or match[4]}", text)
    if _LABEL_POINT.search(text):
        text = _LABEL.sub(" ", text)
    return _ENUMERATOR.sub("\n", f"\n{text}")[1:]
