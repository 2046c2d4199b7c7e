"""Which lettered option a reply picks, by strict and by flexible extraction."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from gendistill.evaluate.kinds.shared.hinted import Hinted
from gendistill.evaluate.kinds.shared.letter_patterns import ARTICLE, Patterns, patterns_for
from gendistill.evaluate.kinds.shared.statements import (
    MOST_STATEMENTS,
    cut_back,
    denied,
    has_marks,
    plain,
    sentence_end,
    sentences,
    statements,
)
from gendistill.evaluate.kinds.shared.words import MOST_KEPT, normalise, outermost, with_articles
from gendistill.names import LETTERS

_LETTER_IN_FRONT = re.compile(r"\W?(\w)\s*[^\w\s]\W{0,2}")
_A_WORD = re.compile(r"[^\W\d_]{2}|[^\x00-\x7f]")
_LONE_LETTER = re.compile(r"[A-Za-z]\.?")
# A letter by itself in bold, code or LaTeX.
_MARKED = re.compile(r"(\*\*|__|`|\$)\s?([A-Z])\s?\1")
MARKED_LENGTH = 8  # of a reply that is nothing but a letter and its marks
# An option's text in quotes at the end of a sentence, marked as what is meant.
_QUOTED = Hinted(
    re.compile(r"(?:\b(?:is|es|est|ist)\s|是)[\"“«]([^\"”»\n]{1,80})[\"”»](?=[.。]?\s*$)"),
    hints=r"is\s es\s est\s ist\s 是",
    words="is es est ist 是",
)
_QUOTED_ENDS = tuple(f"{quote}{stop}" for quote in '"”»' for stop in ("", ".", "。"))
_DENIED = "¬"  # stands for a denial of a letter
_DENIAL_IN_FRONT = re.compile(r"^(?: ?¬ ?)+(?=[A-Z(])")  # as `_without_denied` writes one
_TAKEN_BACK = re.compile(r"\b(?:is|ist|es|est)\s(?:wrong|incorrect|false|falsch|incorrect[oae]|faux|fausse)\b|错")
_LIST_OF_WRONG = Hinted(
    re.compile(r"\b(?:wrong|incorrect|falsche?n?|incorrectas|fausses|mauvaises|错误)\b[^\n]{0,60}:\s*\n"),
    hints=r"wrong incorrect falsch fausses mauvaises 错误",
    words="wrong incorrect falsch falsche falschn falschen incorrectas fausses mauvaises 错误",
)
_WRONG = Hinted(
    r"\b(?:wrong|incorrect|false|not|no|falsch|nicht|incorrect[oae]|faux|fausse)\b|n['’]t\b|错|不",
    hints=r"wrong incorrect false no falsch nicht faux fausse n['’]t 错 不",
    words="wrong incorrect false not no falsch nicht incorrecto incorrecta incorrecte faux fausse t 错 不",
)


class _Options:
    """The options of a question, and the patterns that find their letters.

    Attributes:
        texts: by letter, for comparing letter by letter.
        ends: the texts, but for empty ones.
    """

    def __init__(self, choices: tuple[str, ...]):
        self.choices = choices
        self.letters = LETTERS[: len(choices)]
        self.texts = dict(zip(LETTERS, map(_bare, choices), strict=False))
        self.ends = tuple(filter(None, self.texts.values()))
        self.patterns = patterns_for(len(choices))

    def with_text(self, bare: str) -> list[str]:
        """Letters of the options with this text."""
        if bare not in self.texts.values():  # as most texts
            return []
        return [letter for letter, text in self.texts.items() if text == bare]


def strict_letter(reply: str, choices: Sequence[str], truncated: bool = False) -> str | None:
    """Letter of the option a reply picks, or None.

    Picked is a letter at the reply's start ("B", "b)", "[B]", "B. text", "B is correct"), one that is stated to be the
    answer anywhere ("The answer is B", "答案：B", a box), and an option by its bare or stated text. A reply that picks
    several options, or only says which it is not, picks none; neither does one that was cut off before it had said so.
    """
    return _strict_letter(reply, _options(tuple(choices)), truncated)


@lru_cache(maxsize=16)  # the flexible reading begins with the strict one
def _strict_letter(reply: str, options: _Options, truncated: bool) -> str | None:
    text = _spelled(reply)
    # What most replies to such a question are; none of the rules below says anything else of it.
    if len(text) < 3 and _LONE_LETTER.fullmatch(text) and text[0].upper() in options.letters:
        return text[0].upper()
    found = _by_whole_text(text, options)
    if not found:
        said = {letter for letter, ended in _said(text, options, strictly=True) if ended or not truncated}
        opened = set(_opening(text, options))
        # Several options one below the other repeat the question; what is stated behind them counts.
        found = said if said and len(opened) > 1 else said | opened
        # The whole reply is several letters: none of them was picked.
        if found and (options.patterns.listed.match(text) or found & _called_wrong(text, options)):
            return None
    return found.pop() if len(found) == 1 else None


def flexible_letter(reply: str, choices: Sequence[str], truncated: bool = False) -> str | None:
    """Letter of the option a reply picks in whatever words, or None.

    Beyond `strict_letter`: the last letter that is stated, in brackets or behind "option" or "choice"; else the one
    option whose text the reply holds and does not deny; else the one capital letter that stands alone.
    """
    options = _options(tuple(choices))
    if strict := _strict_letter(reply, options, truncated):
        return strict
    text, patterns = _spelled(reply), options.patterns
    said = [letter for letter, ended in _said(text, options, strictly=False) if ended or not truncated]
    if said:
        return said[-1]  # the last one: a reply that reasons comes to its answer at the end
    # Goes through the options and names none, or was cut off on its way to an answer.
    if patterns.opening.search(text):
        opened = set(_opening(text, options, strictly=False))
        return opened.pop() if len(opened) == 1 and patterns.opening.match(text) else None
    if patterns.several.search(text):
        return None
    # Of a reply that was cut off its whole sentences count, but not against what its last one says.
    if truncated:
        named = _named(cut_back(text), choices) if len(_named(text, choices)) == 1 else set()
        named = {letter for letter in named if _A_WORD.search(choices[LETTERS.index(letter)])}
        return named.pop() if len(named) == 1 else None
    # By an option's text first: a capital letter alone may be an initial.
    candidates = _named(text, choices) or _alone(text, options)
    return candidates.pop() if len(candidates) == 1 else None


def _spelled(reply: str) -> str:
    marked = "$" in reply or has_marks(reply)
    if not marked and reply.isascii():  # nothing that would be spelled otherwise
        return reply.strip()
    # Marked as one, it is not a word of the sentence.
    if marked and len(reply.strip()) > MARKED_LENGTH:
        reply = _MARKED.sub(lambda match: f"({match[2]})", reply)
    # Dollar signs are LaTeX's here; options that are sums lose theirs too.
    return plain(reply).replace("$", "").strip()


@lru_cache(maxsize=MOST_KEPT)
def _bare(text: str) -> str:
    """For comparing a text with an option's, letter by letter."""
    return " ".join(_spelled(text).casefold().split()).rstrip(".。!}").strip("\"'“”‘’").rstrip(".")


_options = lru_cache(maxsize=16)(_Options)  # all rules compare with the same ones


def _by_whole_text(text: str, options: _Options) -> set[str]:
    """Letters of the options whose text the reply, or its first line, is; with its letter before it or not."""
    bare = _bare(text)
    if found := _lettered(bare, options) or _whole(bare, options):
        return found
    first = text.split("\n", 1)[0]
    bare = _bare(first)
    # A first line that begins with another letter is that option's text ("A. flavus"), not a pick of A.
    whole = _whole(bare, options)
    if whole and not _lettered(bare, options) and options.patterns.opening.match(first):
        return whole
    return set()


def _lettered(bare: str, options: _Options) -> set[str]:
    """Letters of the options that a text is, with its letter before it."""
    if not bare.endswith(options.ends):
        return set()
    # Even if the option is a letter itself: "B. A".
    held = {letter: len(bare) - len(text) for letter, text in options.texts.items() if text and bare.endswith(text)}
    in_front = {letter: _LETTER_IN_FRONT.fullmatch(bare, 0, end) for letter, end in held.items()}
    return {letter for letter, match in in_front.items() if match and match[1] == letter.lower()}


def _whole(bare: str, options: _Options) -> set[str]:
    """Letters of the options that a text is, but for single letters and signs."""
    return set(options.with_text(bare)) if len(bare) > 1 else set()


def _opening(text: str, options: _Options, strictly: bool = True) -> Iterator[str]:
    """The letter that opens the reply, and those of lines that go on with it as a list.

    Strictly, a line that opens with a letter and denies it later opens with none.
    """
    patterns, texts = options.patterns, options.texts
    lines = [*filter(str.strip, text.split("\n"))]
    first = patterns.opening.match(lines[0]) if lines else None
    if first is None:
        # The option's text on a line of its own, with reasons below it.
        if len(lines) > 1:
            yield from options.with_text(_bare(lines[0]))
        return
    opened, bare = _letter_of(first), _bare(lines[0])
    # It may be that of the option's text ("A. flavus").
    if bare.startswith(opened.lower()) and bare.startswith(options.ends):
        begun = [letter for letter, option in texts.items() if len(option) > 1 and bare.startswith(option)]
        opened = max(begun, key=lambda letter: len(texts[letter]), default=opened)
    if denied(lines[0], first.start(), first.end()) or patterns.joined.match(lines[0], first.end()):
        return
    refused = patterns.denials.matches(lines[0]) if strictly and patterns.denials.may_be_in(text) else []
    if any(re.search(rf"\b{opened}\b", match[0]) for match in refused):
        return
    yield opened
    previous, calls_wrong = opened, _WRONG.may_be_in(text)
    for line in lines[1:]:
        match = patterns.opening.match(line)
        # Prose, or a line that says why it is not this one: what follows explains.
        if match is None or (calls_wrong and _WRONG.search(line)):
            return
        letter, said = _letter_of(match), _bare(line[match.end() :].lstrip(".): "))
        if said != texts.get(letter):
            # The text of another option under the same letter: nobody knows which is meant.
            yield from (other for other, option in texts.items() if option == said)
        # Options one after the other are a list, whatever is said of each; another order may be an explanation.
        if letter > previous or said in ("", texts.get(letter)):
            yield letter
        previous = letter


def _called_wrong(text: str, options: _Options) -> set[str]:
    """Letters of a list that is headed as that of the wrong ones."""
    heading = _LIST_OF_WRONG.search(text) if "\n" in text else None
    if heading is None:
        return set()
    listed = filter(str.strip, text[heading.end() :].split("\n"))
    lines = takewhile(lambda match: match is not None, map(options.patterns.opening.match, listed))
    return {_letter_of(match) for match in lines}


def _letter_of(match: re.Match) -> str:
    """The letter of a match, one of whose groups took part, perhaps with its brackets."""
    return match[match.lastindex].strip("()[] \t").upper()


class _Said(NamedTuple):
    """A letter that a reply says is the answer.

    Attributes:
        place: where the reply says so.
        ended: whether the text continues behind it, so that nothing of it was cut off.
        taken_back: whether the rest of the sentence calls it wrong: "Answer C, 30 days, is wrong".
    """

    place: int
    letter: str
    ended: bool
    taken_back: bool = False


def _said(text: str, options: _Options, strictly: bool) -> list[tuple[str, bool]]:
    """Letters that a reply says are the answer, in its order, and of each whether the text continues behind it."""
    text = _without_denied(text, options.patterns)
    found = _clearly_said(text, options)
    if not strictly:
        found = [said for said in (*found, *_loosely_said(text, options)) if not said.taken_back]
    return [(said.letter, said.ended) for said in sorted(found)]


@lru_cache(maxsize=16)  # both readings begin with it
def _clearly_said(text: str, options: _Options) -> tuple[_Said, ...]:
    """What is stated, and letters that are said to be right or to be chosen."""
    patterns, found = options.patterns, []
    for statement in statements(text):
        content = statement.content
        if content.startswith((_DENIED, f" {_DENIED}")):
            content = _DENIAL_IN_FRONT.sub("", content)
        bare = _bare(content)
        by_text = options.with_text(bare) if len(bare) > 1 else []
        match = None if by_text else patterns.stated.match(content)
        if len(by_text) == 1:
            found.append(_Said(statement.start, by_text[0], statement.ended))
        elif match and ARTICLE.match(content, match.start(1)):
            continue
        elif match and not patterns.joined.match(content, match.end()) and not denied(content, 0, match.end()):
            ended = statement.ended or bool(content[match.end() :].strip())
            found.append(_Said(statement.start, match[1].upper(), ended))
    return *found, *_picked(patterns.picked, text, patterns)


def _loosely_said(text: str, options: _Options) -> list[_Said]:
    """An option's text in quotes; letters in brackets, behind "option" and the like."""
    found = []
    quoted = _QUOTED.matches(text)[-MOST_STATEMENTS:] if text.endswith(_QUOTED_ENDS) else []
    for match in quoted:
        by_text = options.with_text(_bare(match[1]))
        found += [_Said(match.start(), by_text[0], True)] if len(by_text) == 1 else []
    return found + _picked(options.patterns.loosely, text, options.patterns)


def _without_denied(text: str, patterns: Patterns) -> str:
    """The text with a sign in the place of each denial of a letter."""
    if not patterns.denials.may_be_in(text) or not patterns.lone.search(text, 1):
        return text
    return patterns.denials.sub(f" {_DENIED} ", text)


def _picked(pattern: Hinted, text: str, patterns: Patterns) -> list[_Said]:
    """Letters that a pattern finds by themselves and that are not denied."""
    if not pattern.may_be_in(text) or not patterns.lone.search(text, 1):
        return []
    found = []
    for match in pattern.matches(text)[-MOST_STATEMENTS:]:
        if patterns.joined.match(text, match.end()) or denied(text, match.start(), match.end()):
            continue
        rest = text[match.end() : min(sentence_end(text, match.end()), match.end() + 60)]
        taken_back = _TAKEN_BACK.search(rest) is not None
        found.append(_Said(match.start(), _letter_of(match), match.end() < len(text), taken_back))
    return found


def _named(text: str, choices: Sequence[str]) -> set[str]:
    """Letters of the options whose texts a reply holds and does not deny; one inside a longer one does not count."""
    options = {letter: normalise(choice) for letter, choice in zip(LETTERS, choices, strict=False)}
    # Sentences that deny something say nothing for sure about what else they hold.
    sure = sentences(text)
    if _WRONG.may_be_in(text):
        sure = [sentence for sentence in sure if not _WRONG.search(sentence)]
    # With articles too: in "hepatitis A is" the A looks like one.
    forms = f" {' '.join(map(normalise, sure))} \n {' '.join(map(with_articles, sure))} "
    held = {
        letter: option
        for letter, option in options.items()
        # An option that is a letter itself ("B") cannot be told from the letter of another.
        if option and option.upper() not in options and f" {option} " in forms
    }
    whole = outermost(set(held.values()))
    return {letter for letter, option in held.items() if option in whole}


def _alone(text: str, options: _Options) -> set[str]:
    """Capital letters that stand alone and are nowhere denied."""
    patterns = options.patterns
    matches = [*patterns.alone.finditer(_without_denied(text, patterns))][-MOST_STATEMENTS:]
    refused = {match[0] for match in matches if denied(match.string, match.start(), match.end())}
    # The text of another option may be meant.
    refused |= {choice.strip() for choice in options.choices}
    return {match[0] for match in matches} - refused
