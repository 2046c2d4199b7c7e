"""The 25 verifiable instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911): does a reply follow them?

Definitions are the benchmark's, which takes every number and word from the prompt's `kwargs`. Three things are counted
by rules of this module, where the benchmark asks a language toolkit:

- Words are runs of letters, digits and underscores, as in the benchmark ("don't" is two). Counted for their capitals
  are the runs between spaces, apostrophes and punctuation; full stops, hyphens and slashes do not end them ("U.S." is
  one).
- A sentence ends at ".", "!", "?" or "…", or at their full-width forms. A full stop ends one only if a space follows
  and neither an abbreviation, an initial nor the number of a list item stands before it. A rest at the end counts too.
- The language of a reply is what the package langdetect says, as in the benchmark, with a fixed seed. A reply in
  capitals is shown to it in small letters: of English in capitals it takes some 10 % for another language. Three words
  or fewer in ASCII letters pass as English, since it cannot tell them.
"""

import functools
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from gendistill.errors import MissingPackage, UserError

TOO_SHORT_TO_TELL = 3  # words

# Runs that are words when capitals are counted: "U.S." and "RE-USE" are one each.
_CAPITALS = re.compile(r"[^\s,;:!?()\[\]{}<>\"“”*'’—]+")
# With closing quotes and brackets behind it; then white space must follow, but for scripts that use none.
# From the first mark of a run, and nothing given back: a hundred thousand dots are looked at once.
_SENTENCE_END = re.compile(r"(?:(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$))|[。！？।]+")
_BEFORE_A_STOP = 64  # characters that are looked at before a full stop; abbreviations and list numbers are shorter
# What a full stop may stand behind within a sentence: an initial, "e.g", a title. "I" is no initial: "So do I."
_NO_SENTENCE_END = re.compile(
    r"(?:^|(?<=[\s(\"'“*]))(?:[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z]|(?i:mr|mrs|ms|dr|prof|rev|st|jr|sr|vs|etc|fig|approx))$"
)
# The number of a list item opens its line.
_LIST_NUMBER = re.compile(r"(?:^|\n)[ \t>*_#]*\d+$")


class Followed(NamedTuple):
    """Which of several instructions a reply follows, in their order.

    Strictly it is taken as it is; flexibly also what is left of it without its first line, its last, both, or its
    asterisks, and each instruction may be followed by another of these.
    """

    strict: tuple[bool, ...]
    flexible: tuple[bool, ...]


def followed(instruction_ids: Sequence[str], kwargs: Sequence[Mapping[str, Any]], reply: str) -> Followed:
    """Checks a reply against instructions.

    Raises:
        UserError: what `check_instruction` raises.
    """
    variants = flexible_variants(reply)  # once for all instructions
    strict, flexible = [], []
    for instruction_id, settings in zip(instruction_ids, kwargs, strict=True):
        check_instruction(instruction_id, settings)
        strict.append(_follows(instruction_id, settings, reply))
        # The reply itself is a variant too, so flexible is never less than strict.
        flexible.append(strict[-1] or any(_follows(instruction_id, settings, variant) for variant in variants))
    return Followed(tuple(strict), tuple(flexible))


def flexible_variants(reply: str) -> list[str]:
    """The reply, and that without its first line, its last line, both, or asterisks: what the benchmark calls loose."""
    lines = reply.split("\n")
    texts = ["\n".join(lines[first : len(lines) - last]).strip() for first, last in product((0, 1), repeat=2)]
    texts[0] = reply  # as it is, white space and all
    # Each once: most replies have one line and no asterisks.
    return list(dict.fromkeys([*texts, *(text.replace("*", "") for text in texts)]))


def follows(instruction_id: str, kwargs: Mapping[str, Any], reply: str) -> bool:
    """Whether a reply follows an instruction; an empty reply follows none.

    Args:
        kwargs: the instruction's settings, under the benchmark's names.

    Raises:
        UserError: what `check_instruction` raises.
    """
    check_instruction(instruction_id, kwargs)
    return _follows(instruction_id, kwargs, reply)


def _follows(instruction_id: str, kwargs: Mapping[str, Any], reply: str) -> bool:
    # "No comma" would hold of an empty reply.
    return bool(reply.strip()) and INSTRUCTIONS[instruction_id](reply, **kwargs)


def check_instruction(instruction_id: str, kwargs: Mapping[str, Any]) -> None:
    """Whether replies can be checked for this instruction, before there are any.

    Raises:
        UserError: the instruction is unknown, or its settings are not those it needs.
        MissingPackage: what checks it is not installed.
    """
    if instruction_id not in INSTRUCTIONS:
        raise UserError(f"unknown instruction '{instruction_id}'; known are: {', '.join(sorted(INSTRUCTIONS))}")
    needed = _settings_of(instruction_id)
    if sorted(kwargs) != sorted(needed):
        raise UserError(f"instruction '{instruction_id}' takes {needed or 'no settings'}, it was given {list(kwargs)}")
    for name, value in kwargs.items():
        if name.endswith("relation") and value not in _RELATIONS:
            raise UserError(f"instruction '{instruction_id}': {name} is {value!r}; known are: {', '.join(_RELATIONS)}")
    # Looked for, not imported: that takes a second, and happens with the first reply.
    if instruction_id in _NEED_LANGUAGE and importlib.util.find_spec("langdetect") is None:
        raise MissingPackage(
            f"instruction '{instruction_id}' asks for a reply's language, which the package langdetect finds out; "
            "it is not installed: pip install 'gendistill[eval]'"
        )


@functools.cache  # replies are checked one by one
def _settings_of(instruction_id: str) -> list[str]:
    # Behind the reply itself, a checker's parameters are the instruction's settings.
    return list(inspect.signature(INSTRUCTIONS[instruction_id]).parameters)[1:]


# The two that the benchmark's prompts use; there is no "at most".
_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda count, number: count >= number,
    "less than": lambda count, number: count < number,
}


# Keywords: text within longer words counts, except for forbidden words.


def _existence(reply: str, keywords: list[str]) -> bool:
    # Within longer words too ("sailing" holds "sail"): the benchmark searches for the text.
    return all(keyword.lower() in reply.lower() for keyword in keywords)


def _frequency(reply: str, relation: str, keyword: str, frequency: int) -> bool:
    return _RELATIONS[relation](reply.lower().count(keyword.lower()), frequency)


def _forbidden_words(reply: str, forbidden_words: list[str]) -> bool:
    # Lookarounds, not \b, which would need a letter at the ends of the word ("C++").
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", reply, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(reply: str, let_relation: str, letter: str, let_frequency: int) -> bool:
    return _RELATIONS[let_relation](reply.lower().count(letter.lower()), let_frequency)


# Language and case.


def _response_language(reply: str, language: str) -> bool:
    return _language(reply) in (language, None)


def _english_capital(reply: str) -> bool:
    # In small letters: langdetect takes English in capitals for other languages.
    return reply.isupper() and _may_be_english(reply.lower())


def _english_lowercase(reply: str) -> bool:
    return reply.islower() and _may_be_english(reply)


def _may_be_english(text: str) -> bool:
    # Of two or three words langdetect is sure and wrong: "hello, friend!" is Norwegian to it.
    if text.isascii() and len(text.split()) <= TOO_SHORT_TO_TELL:
        return True
    return _language(text) in ("en", None)


@functools.lru_cache(maxsize=1024)
def _language(text: str) -> str | None:
    """Code of the language, None where there is nothing to tell it by; that passes, as in the benchmark."""
    import langdetect  # here: it is an extra, and loads its profiles for a second

    langdetect.DetectorFactory.seed = 0  # it samples from the text
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:  # no letters at all
        return None


def _capital_word_frequency(reply: str, capital_relation: str, capital_frequency: int) -> bool:
    return _RELATIONS[capital_relation](sum(map(str.isupper, _CAPITALS.findall(reply))), capital_frequency)


# Lengths.


def _number_words(reply: str, relation: str, num_words: int) -> bool:
    return _RELATIONS[relation](len(re.findall(r"\w+", reply)), num_words)  # "don't" is two, as in the benchmark


def _number_sentences(reply: str, relation: str, num_sentences: int) -> bool:
    return _RELATIONS[relation](count_sentences(reply), num_sentences)


def count_sentences(text: str) -> int:
    """Sentences of a text, by the rule that this module's docstring states."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        # Only a full stop can be something else than an end; the other marks never are.
        if end[0][0] == "." and _is_within_sentence(text, start, end.start()):
            continue
        count += bool(re.search(r"\w", text[start : end.start()]))
        start = end.end()
    # A rest without an end is a sentence too, if there is a word in it.
    return count + bool(re.search(r"\w", text[start:]))


def _is_within_sentence(text: str, start: int, stop: int) -> bool:
    """Whether the full stop at `stop` ends an abbreviation, an initial or a list number, not the sentence that begins
    at `start`."""
    first = stop - _BEFORE_A_STOP
    # A letter stands for what is cut off, so that what is left does not pass for the beginning.
    before = text[start:stop] if first <= start else f"x{text[first:stop]}"
    return bool(_NO_SENTENCE_END.search(before) or _LIST_NUMBER.search(before))


def _number_paragraphs(reply: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of three asterisks; only the first and the last piece may be empty."""
    return _count_parts(reply.split("***")) == num_paragraphs


def _count_parts(parts: list[str]) -> int | None:
    """How many parts there are, not counting an empty one at either end; None if one in the middle is empty."""
    if not all(part.strip() for part in parts[1:-1]):
        return None  # equals no number that is asked for
    return sum(bool(part.strip()) for part in parts)


def _nth_paragraph_first_word(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between empty lines; the word is compared without quotes, up to its first punctuation."""
    pieces = reply.split("\n\n")
    # Counted are those with text; the index, as in the benchmark, is among all.
    filled = sum(bool(piece.strip()) for piece in pieces)
    if filled != num_paragraphs or not 1 <= nth_paragraph <= filled or not pieces[nth_paragraph - 1].strip():
        return False
    word = pieces[nth_paragraph - 1].split()[0].lower().lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0] == first_word.lower()


# Content and format.


def _number_placeholders(reply: str, num_placeholders: int) -> bool:
    return sum(map(_count_brackets, reply.split("\n"))) >= num_placeholders


def _count_brackets(line: str) -> int:
    """Stretches of a line from a bracket to the nearest that closes it: "[name] of [place]" has two."""
    count = end = 0
    while (start := line.find("[", end)) >= 0 and (end := line.find("]", start)) >= 0:
        count += 1
    return count


def _postscript(reply: str, postscript_marker: str) -> bool:
    """The marker anywhere; "P.S." may have a space after its first full stop."""
    return re.search(r"\.\s?".join(map(re.escape, postscript_marker.split("."))), reply, re.IGNORECASE) is not None


def _number_bullet_lists(reply: str, num_bullets: int) -> bool:
    """Exactly so many lines start with a dash or with one asterisk."""
    return sum(map(_is_bullet, reply.split("\n"))) == num_bullets


def _is_bullet(line: str) -> bool:
    text = line.lstrip()
    return text.startswith("-") or text.startswith("*") and text[1:2] not in ("", "*")


def _constrained_response(reply: str) -> bool:
    return any(f"My answer is {answer}." in reply for answer in ("yes", "no", "maybe"))


def _number_highlighted_sections(reply: str, num_highlights: int) -> bool:
    """Stretches of a line between single or double asterisks."""
    stretches = re.findall(r"\*[^\n*]*\*", reply) + re.findall(r"\*\*[^\n*]*\*\*", reply)
    return sum(bool(stretch.strip("* \t")) for stretch in stretches) >= num_highlights


def _multiple_sections(reply: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", reply)) >= num_sections


def _json_format(reply: str) -> bool:
    """All of the reply is JSON, a fence around it aside."""
    # Models put a fence around JSON by habit; prose around it is another matter.
    text = re.sub(r"^```(?:json)?", "", reply.strip(), flags=re.IGNORECASE).removesuffix("```")
    try:
        json.loads(text.strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(reply: str) -> bool:
    """A line with a text between double angle brackets, the first that open and the last that close."""
    for line in reply.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].strip("<> \t"):
            return True
    return False


# Two answers, the prompt again, how the reply starts and ends.


def _two_responses(reply: str) -> bool:
    parts = reply.split("******")  # six asterisks, as the prompt says
    return _count_parts(parts) == 2 and len({part.strip() for part in parts if part.strip()}) == 2


def _repeat_prompt(reply: str, prompt_to_repeat: str) -> bool:
    return reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(reply: str, end_phrase: str) -> bool:
    return reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(reply: str) -> bool:
    return len(text := reply.strip()) > 1 and text[0] == text[-1] == '"'


def _no_comma(reply: str) -> bool:
    return "," not in reply


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
# Those that find out the language of a reply.
_NEED_LANGUAGE = {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}
