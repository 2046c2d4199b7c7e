"""How replies say that something is the answer, or is not, in several languages; what all kinds read alike."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

from gendistill.evaluate.kinds.shared.hinted import Hinted, folded

# Tags between which models think before they answer.
_THOUGHT = r"think|thinking|thought|thoughts|reason|reasoning|reflection|scratchpad|analysis|seed:think"
# Each form begins with its sign, so that only signs are looked at; one in quotes is only talked about.
_TAG = re.compile(
    rf"(?:<(?<![\"'`].)(?P<close>/?)(?:{_THOUGHT})>|\[(?<![\"'`].)(?P<square>/?)THINK\]"
    r"|◁(?<![\"'`].)(?P<kimi>/?)think▷|<(?<![\"'`].)\|(?P<token>begin|end)_of_thought\|>)(?![\"'`])",
    re.IGNORECASE,
)

# Behind these stands the answer. At most a few words stand between "answer" and "is".
_SUBJECT = r"(?:answer|(?:correct|right|best|final)\s(?:option|choice|result|solution))"
_MARKER = Hinted(
    re.compile(
        rf"""
    \b(?:  # asked once at each character: Python's search has no other way to find where a word begins
    {_SUBJECT}\b(?:[ ](?:to|of|for)[ ][^.\n:：=]{{0,60}}?)?(?:[ ](?:here|therefore|thus|then))?
        \s*(?:\bis\b|\bwas\b|\b(?:would|should|must|will)[ ]be\b|:|=)
        (?:[ ](?:that|therefore|thus|then|clearly|definitely|certainly|(?:most[ ])?(?:likely|probably))\b)?
    | (?:respuesta|soluci[oó]n|opci[oó]n[ ]correcta)(?:[ ](?:correcta|final))?\s*(?:\b(?:es|ser[ií]a)\b|:)
    | (?:antwort|l[oö]sung|antwortm[oö]glichkeit)\s*(?:\b(?:ist|lautet|w[aä]re)\b|:)
    | r[eé]ponse(?:[ ](?:correcte|finale))?\s*(?:\b(?:est|serait)\b|:)
    | (?:risposta|resposta)(?:[ ](?:corretta|correta|finale|final))?\s*(?:[eèé]\b|:)
    )
    | (?:答案|正确选项|正解|答え)\s*(?:应该是|应当是|应该选|应为|应选|就是|是|为|選|选|は|:)
    | 【答案】 | [\"'](?:answer|antwort|respuesta|r[eé]ponse|risposta|resposta|答案)[\"']\s?:
    """,
        re.IGNORECASE | re.VERBOSE | re.MULTILINE,
    ),
    hints=r"answer correct\s[ocrs] right\s[ocrs] best\s[ocrs] final\s[ocrs] respuesta soluci opci antwort l[oö]sung "
    r"r[eé]ponse ris?posta resposta 答案 正确选项 正解 答え 【答案 "
    "'a 'r '答 " + '"a "r "答',
    words="answer option choice result solution respuesta solucion solución opcion opción antwort losung lösung "
    "antwortmoglichkeit antwortmöglichkeit reponse réponse risposta rispostae resposta respostae "
    "答案 正确选项 正解 答え",
)
_HASHES = re.compile(r"^[ ]*####", re.MULTILINE)
_CALLED_WRONG = Hinted(
    r"\b(?:wrong|incorrect|false|falsche[nr]?|incorrect[ao]s?|fausses?|mauvaises?)\s$|(?:错误|不正确)的?$",
    hints="wrong incorrect false falsche fausse mauvaise 错误 不正确",
    words="wrong incorrect false falsche falschen falscher incorrecta incorrectas incorrecto incorrectos fausse "
    "fausses mauvaise mauvaises 错误 不正确",
)
_TO_ANSWER = re.compile(r"[\s:]{0,20}")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile("[{}]")
# No statement is longer, and no denial reaches further: reading takes no longer than the text is long.
_STATEMENT_LENGTH = 1000
_BOX_LENGTH = 200
_REACH = 300
MOST_STATEMENTS = 50  # of a reply count, the last ones; one with more is a loop

# What turns what follows it round, up to the end of the clause.
DENIAL = (
    r"(?:\b(?:(?:n(?:ot|ever|either|or|icht|iemals|ie|e|on|ão|unca)|cannot|without|wrong|anything[ ]but|other[ ]than"
    r"|rather[ ]than|rule[sd]?[ ]out|instead[ ]of|incorrect|exc(?:ept|luding)|unlike|kein(?:en?)?|pas|jamais|tampoco"
    r"|no[ ](?:es|era|fue|son|longer|creo|pienso|parece|puede))\b|n['’](?=est|était))"
    r"|n['’]t\b|不是|并非|并不|不选|错误|不|非|不能|ではな)"
)
# What turns what stands before it round.
DENIED_AFTER = re.compile(
    # What follows begins with a letter; where a sentence ends it does not.
    r"\s{0,3}+[)\]\"'”’*]{0,3}+\s{0,3}+(?=[\w '’])(?:"
    r"(?:is|was|are|were|does|do|did|has|can|could|would|will|ist|war|sind|es|era|est|n['’]est)?"
    r"[ ]?(?:(?:definitely|certainly|actually|clearly|also|probably)[ ])?"
    r"(?:not\b|n['’]t\b|nicht\b|kein|pas\b)|(?:is|was|are|would[ ]be)[ ](?:\w+[ ])?"
    r"(?:wrong|incorrect|false|never|excluded|ruled[ ]out|eliminated)\b|no[ ]es\b|n['’]est[ ]pas|ist[ ]falsch|"
    r"es[ ]incorrect|est[ ](?:fausse|incorrecte)|不是|不对|错|是错|ではな)",
    re.IGNORECASE,
)
# A clause ends here, and with it what a denial turns round.
# It begins with one of a few signs, so that only those are looked at; it is searched for in small letters.
_CLAUSE = re.compile(
    r"[.,;:!?\n，。；：！？、而bsm](?:(?<=[^而bsm])|(?<=\bb)(?:ut|ecause)\b|(?<=\bs)(?:ondern|ino|ince)\b|(?<=\bm)ais\b"
    r"|(?<=而)是)"
)
DENIAL_HINTS = (
    r"not never nor neither nicht nie ne non não nunca no\s n['’] cannot without wrong "
    r"anything other\s rather\s rule instead incorrect exc unlike kein pas jamais tampoco "
    r"不 并 错误 非 ではな"
)
# "isn't" is two words.
DENIAL_WORDS = (
    "not never nor neither nicht niemals nie ne non não nunca no n t cannot without wrong anything other rather rule "
    "rules ruled instead incorrect except excluding unlike kein keine keinen pas jamais tampoco 不 并 错误 非 ではな"
)
DENIALS = Hinted(DENIAL, DENIAL_HINTS, DENIAL_WORDS)
_ANYTHING_BUT = re.compile(r"\banything but\b", re.IGNORECASE)
_THOUGHT_THAT = re.compile(r",\s?(?=(?:dass|daß|que|that)\b)")
# What is put between a denial and what it denies: "It is not, however, Paris".
_ASIDE = re.compile(
    r",\s?(?:however|of course|in fact|indeed|I think|I believe|though|as some (?:say|think)),\s?", re.I
)

# LaTeX around words, and what only marks them.
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|bf|rm|emph)[ ]?\{([^{}]{0,200})\}")
_MARKUP = re.compile(
    # Each of its parts begins with a sign, so that only signs are looked at.
    r"\\[()\[\]]|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\*|`|__+|</?(?:b|i|strong|em|answer)>"
)

# Sentences end here; a point inside of a number, an initial or an abbreviation ends none.
# It begins with one of a few signs, so that only those are looked at.
_SENTENCE = re.compile(
    r"[.!?。！？\n](?:(?<=\.)(?=[\s\"'”’)\]*]|$)"
    r"(?<!\b[A-Za-z]\.)(?<!\bSt\.)(?<!\b[DM]r\.)(?<!\bMrs\.)(?<!\bNo\.)(?<!\bFig\.)(?<!\bFigs\.)(?<!\bEq\.)(?<!\bvs\.)(?<!\bRs\.)[\"'”’)\]*]*"
    r"|(?<=[!?。！？])[\"'”’)\]*]*|(?<=\n))"
)


def answer_part(reply: str) -> str:
    """The reply without the blocks in which a model thinks before it answers; empty if the thinking never ends.

    A block may lack its opening tag, since templates put that into the prompt.
    """
    if ">" not in reply and "]" not in reply and "▷" not in reply:
        return reply  # one of these ends each tag
    kept, start, thinking = [], 0, False
    for tag in _TAG.finditer(reply):
        closes = "/" in tag[0] or tag["token"] == "end"
        if closes and not thinking:
            kept.clear()  # all before it was thought
        if not closes and not thinking:
            kept.append(reply[start : tag.start()])
        thinking = not closes
        start = tag.end()
    if not start:  # no tag at all
        return reply
    if not thinking:
        kept.append(reply[start:])
    # Line breaks only: the indentation of a program belongs to it.
    return "".join(kept).lstrip("\r\n")


def plain(text: str) -> str:
    """The text in one spelling: full-width signs as ASCII, without bold, code and LaTeX around words."""
    return text if text.isascii() and not has_marks(text) else _plain(text)


def has_marks(text: str) -> bool:
    """False if a text has none of the signs of which one is in all that `plain` takes out of ASCII texts."""
    return "*" in text or "\\" in text or "`" in text or "_" in text or "<" in text


@lru_cache(maxsize=64)  # the strict and the flexible reading see the same text
def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u200b", "")
    if "\\" in text:
        text = _LATEX_TEXT.sub(lambda match: match[1], text)
    return _MARKUP.sub("", text) if has_marks(text) else text


class Statement(NamedTuple):
    """What a reply says is the answer.

    Attributes:
        content: the rest of the sentence or the line, or what is in the box.
        start: where it stands in the text.
        ended: whether the text continues behind it, so that nothing of it was cut off.
    """

    content: str
    start: int
    ended: bool


def statements(text: str) -> list[Statement]:
    """What a text in `plain` spelling says is the answer, in the order of the text."""
    markers = _MARKER.matches(text)
    if "####" in text:
        markers = sorted([*markers, *_HASHES.finditer(text)], key=lambda marker: marker.start())
    found = _marked(text, markers[-MOST_STATEMENTS:]) if markers else []
    if "\\" in text and (boxes := [*_boxes(text)]):
        found = sorted(boxes + found, key=lambda statement: statement.start)
    return found


def _marked(text: str, markers: Sequence[re.Match]) -> list[Statement]:
    """What stands behind each marker, unless that is called wrong or holds the next one."""
    found = []
    for marker, following in zip_longest(markers, markers[1:]):
        # What is called wrong is no answer; a statement in a statement is the one that counts.
        if _CALLED_WRONG.may_be_in(text) and _CALLED_WRONG.pattern.search(
            text, max(0, marker.start() - 30), marker.start()
        ):
            continue
        # The answer may stand on the next line: "Answer:\n\nB".
        start = _TO_ANSWER.match(text, marker.end()).end()
        end = sentence_end(text, start)
        if following and following.start() < end and not re.search(r"[.\n]", text[start : following.start()]):
            continue
        if content := text[start:end].strip():
            found.append(Statement(content, start, end < len(text)))
    return found


def _boxes(text: str) -> Iterator[Statement]:
    """Contents of LaTeX boxes, which may hold braces themselves."""
    for opening in [*_BOXED.finditer(text)][-MOST_STATEMENTS:]:
        depth = 1
        for brace in _BRACE.finditer(text, opening.end(), opening.end() + _BOX_LENGTH):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                if content := text[opening.end() : brace.start()].strip():
                    yield Statement(content, opening.end(), True)
                break


def sentence_end(text: str, start: int) -> int:
    """Where the sentence around `start` ends, its full stop included; no further than a statement is long."""
    end = _SENTENCE.search(text, start, start + _STATEMENT_LENGTH)
    return end.end() if end else min(len(text), start + _STATEMENT_LENGTH)


def sentences(text: str) -> list[str]:
    """The sentences of a text, the ends of lines also being ends of sentences; none is blank."""
    found, start = [], 0
    for match in _SENTENCE.finditer(text):
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def denied(sentence: str, start: int, end: int) -> bool:
    """Whether a sentence says of what stands from `start` to `end` that it is not so; no word goes on at `start`."""
    if DENIED_AFTER.match(sentence, end):
        return True
    # Other rules ask for words of the sentence, too; but a part of it may begin within a word.
    if start == 0 or (start <= _REACH and not DENIALS.may_be_in(sentence)):
        return False
    return _denied_before(sentence[max(0, start - _REACH) : start])


def _denied_before(before: str) -> bool:
    if not DENIALS.may_be_in(before):
        return False
    if "," in before:
        before = _ASIDE.sub(" ", before)
        # The comma before what is thought ends no denial: "Ich glaube nicht, dass".
        before = _THOUGHT_THAT.sub(" ", before)
    # Nor does the "but" of this.
    if "but" in folded(before):
        before = _ANYTHING_BUT.sub("not", before)
    breaks = [match.end() for match in _CLAUSE.finditer(folded(before))]
    clause = before[breaks[-1] :] if breaks else before
    return DENIALS.search(clause) is not None


def cut_back(text: str) -> str:
    """A text whose end was cut off, without the sentence that it breaks off in."""
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    return text[: ends[-1]] if ends else ""
