"""Which lettered option a reply picks, by strict and by flexible extraction."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from gendistill.evaluate.kinds.shared.hinted import Hinted
from gendistill.evaluate.kinds.shared.statements import (
    DENIAL,
    DENIAL_HINTS,
    MOST_STATEMENTS,
    cut_back,
    denied,
    plain,
    sentence_end,
    sentences,
    statements,
)
from gendistill.evaluate.kinds.shared.words import MOST_KEPT, normalise, outermost, with_articles
from gendistill.names import LETTERS

_B = r"\s{0,3}"  # blanks; bounded, or a run of them would be tried in every way
_JOINT = (
    rf"(?:{_B}(?:,|/|&|、|\+){_B}(?:and\b|or\b)?{_B}|{_B}\b(?:and|or|y|o|und|oder|et|ou|nor)\b{_B}|{_B}[和或与]{_B})"
)
_LONE_LETTER = re.compile(r"[A-Za-z]\.?")
# A letter by itself in bold, code or LaTeX.
_MARKED = re.compile(r"(\*\*|__|`|\$)\s?([A-Z])\s?\1")
_SIGN = re.compile(r"[*_`$\\<]")  # in every mark
MARKED_LENGTH = 8  # of a reply that is nothing but a letter and its marks
# An option's text in quotes at the end of a sentence, marked as what is meant.
_QUOTED = Hinted(
    re.compile(r"(?:\b(?:is|es|est|ist)\s|是)[\"“«]([^\"”»\n]{1,80})[\"”»](?=[.。]?\s*$)"),
    hints=r"is\s es\s est\s ist\s 是",
)
_DENIAL_IN_FRONT = re.compile(r"^(?: ?¬ ?)+(?=[A-Z(])")  # as `_said` writes one
_TAKEN_BACK = re.compile(r"\b(?:is|ist|es|est)\s(?:wrong|incorrect|false|falsch|incorrect[oae]|faux|fausse)\b|错")
_LIST_OF_WRONG = Hinted(
    re.compile(r"\b(?:wrong|incorrect|falsche?n?|incorrectas|fausses|mauvaises|错误)\b[^\n]{0,60}:\s*\n"),
    hints=r"wrong incorrect falsch fausses mauvaises 错误",
)
# "A hexagon is", and not "A because".
_ARTICLE = re.compile(
    r"A (?!(?:because|since|as|for|and|or|is|which|due|in|according|given|but|with|if|based)\b)[a-z]+\b"
)
# Only at the start of a clause: "If I choose B" and "Should I choose B" choose nothing.
_CHOOSE = (
    r"(?:^|(?<=[.,;:!\n])|(?<=[.,;:!\n]\s)|(?<=\b[Ss]o\s))"
    r"(?i:I(?:\swould|\swill|['’]d|['’]ll)?\s(?:choose|chose|pick|select|go\swith)|ich\swähle|je\schoisis|elijo|escojo)"
)
_WRONG = Hinted(
    r"\b(?:wrong|incorrect|false|not|no|falsch|nicht|incorrect[oae]|faux|fausse)\b|n['’]t\b|错|不",
    hints=r"wrong incorrect false no falsch nicht faux fausse n['’]t 错 不",
)
_RIGHT = (
    rf"(?:\bis|:|-|–|是|es|ist|est){_B}(?:the\s|la\s|die\s|definitely\s)?"
    r"(?:correct|right|best|true|answer|正确|richtig|correct[ae]|bonne)"
)


def strict_letter(reply: str, choices: Sequence[str], truncated: bool = False) -> str | None:
    """Letter of the option a reply picks, or None.

    Picked is a letter at the reply's start ("B", "b)", "[B]", "B. text", "B is correct"), one that is stated to be the
    answer anywhere ("The answer is B", "答案：B", a box), and an option by its bare or stated text. A reply that picks
    several options, or only says which it is not, picks none; neither does one that was cut off before it had said so.
    """
    return _strict_letter(reply, tuple(choices), truncated)


@lru_cache(maxsize=16)  # the flexible reading begins with the strict one
def _strict_letter(reply: str, choices: tuple[str, ...], truncated: bool) -> str | None:
    text = _spelled(reply)
    # What most replies to such a question are; none of the rules below says anything else of it.
    if _LONE_LETTER.fullmatch(text) and text[0].upper() in LETTERS[: len(choices)]:
        return text[0].upper()
    found = set(_by_whole_text(text, choices))
    if not found:
        said = {letter for letter, ended in _said(text, choices, strictly=True) if ended or not truncated}
        opened = set(_opening(text, choices))
        # Several options one below the other repeat the question; what is stated behind them counts.
        found = said if said and len(opened) > 1 else said | opened
        # The whole reply is several letters: none of them was picked.
        if _patterns(len(choices)).listed.match(text) or found & _called_wrong(text, choices):
            return None
    return found.pop() if len(found) == 1 else None


def flexible_letter(reply: str, choices: Sequence[str], truncated: bool = False) -> str | None:
    """Letter of the option a reply picks in whatever words, or None.

    Beyond `strict_letter`: the last letter that is stated, in brackets or behind "option" or "choice"; else the one
    option whose text the reply holds and does not deny; else the one capital letter that stands alone.
    """
    choices = tuple(choices)
    if strict := _strict_letter(reply, choices, truncated):
        return strict
    text, patterns = _spelled(reply), _patterns(len(choices))
    said = [letter for letter, ended in _said(text, choices, strictly=False) if ended or not truncated]
    if said:
        return said[-1]  # the last one: a reply that reasons comes to its answer at the end
    # Goes through the options and names none, or was cut off on its way to an answer.
    if patterns.opening.search(text):
        opened = set(_opening(text, choices, strictly=False))
        return opened.pop() if len(opened) == 1 and patterns.opening.match(text) else None
    if patterns.several.search(text):
        return None
    # Of a reply that was cut off its whole sentences count, but not against what its last one says.
    if truncated:
        named = _named(cut_back(text), choices) if len(_named(text, choices)) == 1 else set()
        named = {letter for letter in named if re.search(r"[^\W\d_]{2}|[^\x00-\x7f]", choices[LETTERS.index(letter)])}
        return named.pop() if len(named) == 1 else None
    # By an option's text first: a capital letter alone may be an initial.
    for candidates in (_named(text, choices), _alone(text, choices)):
        if candidates:
            return candidates.pop() if len(candidates) == 1 else None
    return None


class _Patterns(NamedTuple):
    """Patterns for so many options.

    Attributes:
        lone: a capital letter that ends its word: without one, none is named within the text.
        opening: a letter that opens a line.
        listed: a text that opens with several letters.
        joined: another letter behind one: "and B", "/B".
        stated: what stands at the start of a statement.
        picked: a letter that is said to be right, or to be chosen, without the word "answer".
        loosely: a letter in brackets, or behind "option" and the like.
        alone: a capital letter by itself, but for the article.
        several: letters that are named in one breath.
        denials: "not B", "nicht (B)".
    """

    lone: re.Pattern
    opening: re.Pattern
    listed: re.Pattern
    joined: re.Pattern
    stated: re.Pattern
    picked: Hinted
    loosely: Hinted
    alone: re.Pattern
    several: re.Pattern
    denials: Hinted


@lru_cache
def _patterns(count: int) -> _Patterns:
    capitals = LETTERS[:count]
    capital, letter = f"[{capitals}]", f"[{capitals}{capitals.lower()}]"
    # Latin only: Chinese and Japanese write on without a blank.
    after = r"(?![A-Za-z0-9_À-ɏ'’])"
    # A small letter is one only where nothing but a mark follows, or the article of "a dog" would be an option.
    either = rf"(?:{capital}{after}|{letter}(?={_B}(?:[.):,;!?\]}}\"'”’」】]|\n|$)))"
    open_, close = r"[(\[{\"'“‘「『【<]{0,3}" + _B, _B + r"[)\]}\"'”’」』】>]{0,3}"
    small = "the|la|die|l['’]|el|le|der|letter|option|choice|answer|opción|opcion|opção|lettre|buchstabe|letra|选项"
    word = rf"(?:(?:{small}){_B}){{0,3}}"
    bracketed = rf"(?:\({_B}{letter}{_B}\)|\[{_B}{letter}{_B}\])"
    return _Patterns(
        lone=re.compile(capital + after),
        # Punctuation or the end of the line must follow, or "A dog" would be option A.
        opening=re.compile(
            rf"^[ \t]*(?:(?:option|choice|选项)\s+)?(?:({bracketed})"
            rf"|[\"'“‘「【]?({letter})[\"'”’」】]?"
            rf"(?=[.):,;!。、，：]|[ \t]+[-–—]|[ \t]*$|{_B}{_RIGHT}|{_B}(?:选项)?(?:正确|对)))",
            re.MULTILINE | re.IGNORECASE,
        ),
        listed=re.compile(rf"{_B}\(?{letter}[.):]*(?:{_JOINT}|{_B})\(?{letter}(?:[.):]|{_B}$|{_JOINT})"),
        joined=re.compile(rf"{close}{_JOINT}(?i:option\s)?{open_}{either}"),
        stated=re.compile(rf"(?i:{word}){open_}({either})"),
        picked=Hinted(
            re.compile(
                rf"(?:应选|故选|选择|(?<!不)选)(?:项)?{_B}[:为是]?{_B}{open_}({capital}){after}"
                rf"|(?:\b(?i:option|choice|opción|réponse|antwort)\s+){open_}({capital}){after}{close}{_B}{_RIGHT}"
                rf"|\b(?i:is|es|est|ist|are|serait|sería|wäre|would\sbe)\s(?:(?i:{word})\(({capital})\)|(?i:la\s|the\s|die\s)?(?i:option|opción)\s({capital}){after})"
                rf"|{_CHOOSE}\s(?i:{word}){open_}(?!{_ARTICLE.pattern})({capital}){after}(?!{close}\s?\?)"
            ),
            hints=r"i\s i['’] ich\swähle je\schoisis elijo\s escojo\s 应选 故选 选 "
            r"option\s choice\s opción\s réponse\s antwort\s is\s es\s est\s ist\s are\s "
            r"serait\s sería\s wäre\s would\s",
        ),
        loosely=Hinted(
            re.compile(
                rf"(?<=[^\n])\(({capital})\)|\b(?:is|es|est|ist)\s({capital})(?=[.]?\s*$)"
                rf"|\b(?i:option|choice|opción|antwort|réponse|letter)\s+{open_}({capital}){after}(?! [a-z]+ed\b)"
            ),
            hints=r"( is\s es\s est\s ist\s option\s choice\s opción\s antwort\s réponse\s letter\s",
        ),
        alone=re.compile(rf"(?<![A-Za-z0-9_À-ɏ'’.]){capital}{after}(?! [a-z])"),
        several=re.compile(rf"(?<![A-Za-z0-9_À-ɏ'’.]){capital}{close}{_JOINT}(?i:option\s)?{open_}{capital}{after}"),
        denials=Hinted(
            rf"{DENIAL}{_B}(?:be\s|to be\s)?(?i:{word}){open_}{capital}{after}{close}"
            rf"(?:(?:{_JOINT}){open_}{capital}{after}{close}){{0,9}}"
            rf"(?:{_B},?{_B}(?:but|sondern|sino|mais|而是){_B}(?:rather\s)?)?",
            DENIAL_HINTS,
        ),
    )


def _spelled(reply: str) -> str:
    if reply.isascii() and not _SIGN.search(reply):  # nothing that would be spelled otherwise
        return reply.strip()
    # Marked as one, it is not a word of the sentence.
    if len(reply.strip()) > MARKED_LENGTH:
        reply = _MARKED.sub(lambda match: f"({match[2]})", reply)
    # Dollar signs are LaTeX's here; options that are sums lose theirs too.
    return plain(reply).replace("$", "").strip()


@lru_cache(maxsize=MOST_KEPT)
def _bare(text: str) -> str:
    """For comparing a text with an option's, letter by letter."""
    return " ".join(_spelled(text).casefold().split()).rstrip(".。!}").strip("\"'“”‘’").rstrip(".")


@lru_cache(maxsize=16)  # all rules compare with the same ones
def _options(choices: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(LETTERS, map(_bare, choices), strict=False))


def _by_whole_text(text: str, choices: tuple[str, ...]) -> Iterator[str]:
    """Letters of the options whose text the reply, or its first line, is; with its letter before it or not."""
    options = _options(choices)
    for part in dict.fromkeys((text, text.split("\n", 1)[0])):
        bare = _bare(part)
        # Even if the option is a letter itself: "B. A".
        held = [letter for letter, option in options.items() if option and bare.endswith(option)]
        lettered = [
            letter
            for letter in held
            if re.fullmatch(rf"\W?{letter.lower()}\s*[^\w\s]\W{{0,2}}", bare[: -len(options[letter])])
        ]
        whole = [letter for letter in held if options[letter] == bare and len(bare) > 1]
        if (lettered or whole) and part is text:
            yield from lettered or whole
            return
        # A first line that begins with another letter is that option's text ("A. flavus"), not a pick of A.
        if whole and not lettered and _patterns(len(choices)).opening.match(part):
            yield from whole
            return


def _opening(text: str, choices: tuple[str, ...], strictly: bool = True) -> Iterator[str]:
    """The letter that opens the reply, and those of lines that go on with it as a list.

    Strictly, a line that opens with a letter and denies it later opens with none.
    """
    patterns, options = _patterns(len(choices)), _options(choices)
    lines = [line for line in text.split("\n") if line.strip()]
    first = patterns.opening.match(lines[0]) if lines else None
    if first is None:
        # The option's text on a line of its own, with reasons below it.
        if lines and len(lines) > 1:
            yield from (letter for letter, option in options.items() if option == _bare(lines[0]))
        return
    opened, bare = _letter_of(first), _bare(lines[0])
    if bare.startswith(opened.lower()):  # it may be that of the option's text ("A. flavus")
        begun = [letter for letter, option in options.items() if len(option) > 1 and bare.startswith(option)]
        opened = max(begun, key=lambda letter: len(options[letter]), default=opened)
    if denied(lines[0], first.start(), first.end()) or patterns.joined.match(lines[0], first.end()):
        return
    refused = patterns.denials.matches(lines[0]) if strictly and patterns.lone.search(lines[0], 1) else []
    if any(re.search(rf"\b{opened}\b", match[0]) for match in refused):
        return
    yield opened
    previous = opened
    for line in lines[1:]:
        match = patterns.opening.match(line)
        # Prose, or a line that says why it is not this one: what follows explains.
        if match is None or _WRONG.search(line):
            return
        letter, said = _letter_of(match), _bare(line[match.end() :].lstrip(".): "))
        # The text of another option under the same letter: nobody knows which is meant.
        yield from (other for other, option in options.items() if option == said != options.get(letter))
        # Options one after the other are a list, whatever is said of each; another order may be an explanation.
        if letter > previous or said in ("", options.get(letter)):
            yield letter
        previous = letter


def _called_wrong(text: str, choices: tuple[str, ...]) -> set[str]:
    """Letters of a list that is headed as that of the wrong ones."""
    heading = _LIST_OF_WRONG.search(text) if "\n" in text else None
    listed = text[heading.end() :].split("\n") if heading else []
    lines = takewhile(
        lambda match: match is not None, map(_patterns(len(choices)).opening.match, filter(str.strip, listed))
    )
    return {_letter_of(match) for match in lines}


def _letter_of(match: re.Match) -> str:
    """The letter of a match, one of whose groups took part, perhaps with its brackets."""
    (found,) = [group for group in match.groups() if group]
    return found.strip("()[] \t").upper()


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


def _said(text: str, choices: tuple[str, ...], strictly: bool) -> list[tuple[str, bool]]:
    """Letters that a reply says are the answer, in its order, and of each whether the text continues behind it."""
    text = _without_denied(text, len(choices))
    found = _clearly_said(text, choices)
    if not strictly:
        found = [said for said in (*found, *_loosely_said(text, choices)) if not said.taken_back]
    return [(said.letter, said.ended) for said in sorted(found)]


@lru_cache(maxsize=16)  # both readings begin with it
def _clearly_said(text: str, choices: tuple[str, ...]) -> tuple[_Said, ...]:
    """What is stated, and letters that are said to be right or to be chosen."""
    patterns, options = _patterns(len(choices)), _options(choices)
    found = []
    for statement in statements(text):
        content = _DENIAL_IN_FRONT.sub("", statement.content)
        bare = _bare(content)
        by_text = [letter for letter, option in options.items() if option == bare and len(option) > 1]
        match = patterns.stated.match(content)
        if by_text:
            found += [_Said(statement.start, by_text[0], statement.ended)] if len(by_text) == 1 else []
        elif match and _ARTICLE.match(content, match.start(1)):
            continue
        elif match and not patterns.joined.match(content, match.end()) and not denied(content, 0, match.end()):
            ended = statement.ended or bool(content[match.end() :].strip())
            found.append(_Said(statement.start, match[1].upper(), ended))
    return *found, *_picked(patterns.picked, text, patterns)


def _loosely_said(text: str, choices: tuple[str, ...]) -> list[_Said]:
    """An option's text in quotes; letters in brackets, behind "option" and the like."""
    options, patterns = _options(choices), _patterns(len(choices))
    found = []
    for match in _QUOTED.matches(text)[-MOST_STATEMENTS:]:
        by_text = [letter for letter, option in options.items() if option == _bare(match[1])]
        found += [_Said(match.start(), by_text[0], True)] if len(by_text) == 1 else []
    return found + _picked(patterns.loosely, text, patterns)


@lru_cache(maxsize=16)  # both readings begin with it
def _without_denied(text: str, count: int) -> str:
    """The text with a sign in the place of each denial of one of so many letters."""
    patterns = _patterns(count)
    return patterns.denials.sub(" ¬ ", text) if patterns.lone.search(text, 1) else text


def _picked(pattern: Hinted, text: str, patterns: _Patterns) -> list[_Said]:
    """Letters that a pattern finds by themselves and that are not denied."""
    if not patterns.lone.search(text, 1):
        return []
    found = []
    for match in pattern.matches(text)[-MOST_STATEMENTS:]:
        if patterns.joined.match(text, match.end()) or denied(text, match.start(), match.end()):
            continue
        rest = text[match.end() : min(sentence_end(text, match.end()), match.end() + 60)]
        taken_back = _TAKEN_BACK.search(rest) is not None
        found.append(_Said(match.start(), _letter_of(match), match.end() < len(text), taken_back))
    return found


def _named(text: str, choices: tuple[str, ...]) -> set[str]:
    """Letters of the options whose texts a reply holds and does not deny; one inside a longer one does not count."""
    options = {letter: normalise(choice) for letter, choice in zip(LETTERS, choices, strict=False)}
    # Sentences that deny something say nothing for sure about what else they hold.
    sure = [sentence for sentence in sentences(text) if not _WRONG.search(sentence)]
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


def _alone(text: str, choices: tuple[str, ...]) -> set[str]:
    """Capital letters that stand alone and are nowhere denied."""
    patterns = _patterns(len(choices))
    matches = [*patterns.alone.finditer(_without_denied(text, len(choices)))][-MOST_STATEMENTS:]
    refused = {match[0] for match in matches if denied(match.string, match.start(), match.end())}
    # The text of another option may be meant.
    refused |= {choice.strip() for choice in choices}
    return {match[0] for match in matches} - refused
