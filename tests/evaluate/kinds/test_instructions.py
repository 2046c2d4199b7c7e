import importlib.util
import time

import pytest

from gendistill.errors import UserError
from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.item import Item
from gendistill.evaluate.kinds.shared import constraints
from gendistill.evaluate.kinds.shared.constraints import (
    INSTRUCTIONS,
    check_instruction,
    count_sentences,
    flexible_variants,
    followed,
    follows,
)

GERMAN = "Der Zug fährt heute leider nicht, weil auf der Strecke gebaut wird. Bitte nehmen Sie den Bus."
HINDI = "मुझे सुबह की चाय के साथ अख़बार पढ़ना बहुत अच्छा लगता है।"
ENGLISH = "The train does not run today because the line is being repaired. Please take the bus."
TWO_PARAGRAPHS = "The first one.\n***\nThe second one."

# (instruction, its settings, replies that follow it, replies that do not)
CASES = [
    ("keywords:existence", {"keywords": ["boat", "Sail"]}, ["A sailing BOAT."], ["A boat.", "Sails."]),
    (
        "keywords:frequency",
        {"relation": "at least", "keyword": "tea", "frequency": 2},
        ["Tea, more tea.", "teatea"],
        ["One tea.", "Coffee."],
    ),
    (
        "keywords:frequency",
        {"relation": "less than", "keyword": "tea", "frequency": 2},
        ["One tea.", "Coffee."],
        ["Tea, more tea."],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "C++"]},
        ["Concatenate the lists.", "C is fine."],
        ["A Cat!", "I like C++."],
    ),
    (
        "keywords:letter_frequency",
        {"let_relation": "at least", "letter": "o", "let_frequency": 3},
        ["Oh no, no.", "ooo"],
        ["No, no."],
    ),
    (
        "keywords:letter_frequency",
        {"let_relation": "less than", "letter": "!", "let_frequency": 1},
        ["Calm."],
        ["Calm!"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN, "42"], [ENGLISH, HINDI]),
    ("language:response_language", {"language": "hi"}, [HINDI], [GERMAN]),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        ["Dr. Wu left at 5.30 p.m. sharp. Why?", "No end"],
        ["One. Two. Three."],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
        ["Really? Yes.", 'He said "no." Then he left'],
        ["A single one.", "1. e.g. this"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        [TWO_PARAGRAPHS, f"***\n{TWO_PARAGRAPHS}\n***"],
        ["One.\n\nTwo.", "One.\n***\n***\nTwo.", f"{TWO_PARAGRAPHS}\n***\nThree."],
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 4},
        ["one two three four", "It's well-known"],
        ["one two three", "- - - - -"],
    ),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 2}, ["one"], ["one two"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "However"},
        ["It rains.\n\nhowever, we go.", 'It rains.\n\n"However" we go.\n\n'],
        ["However, it rains.\n\nWe go.", "However", "One.\n\nHowever, two.\n\nThree.", "One.\nHowever, two."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], see you in [city].", "[a][b][c]"],
        ["Dear [name].", "Dear (name), see you in (city)."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Yours, Ann\n\nP.S. Bring cake.", "yours. p. s. cake"],
        ["Yours, Ann", "PS: Bring cake."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Yours.\nP.P.S. Bring cake.", "Yours.\nP. P. S Cake"],
        ["Yours.\nP.S. Bring cake."],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["Buy:\n* milk\n* bread", "- milk\n  - fresh"],
        ["* milk", "* milk\n* bread\n* eggs", "1. milk\n2. bread", "**milk**\n**bread**"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is maybe.", "Well. My answer is no."],
        ["Maybe.", "my answer is no", "My answer is unclear."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*One* and *two*.", "**One** and *two*."],
        ["*One* and two.", "**One** and ** **.", "*One\n and* two"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        ["Day 1\nSleep.\nDay 2\nWork.", "Day1: a Day2: b Day3: c"],
        ["Day 1\nSleep.", "Day one\nSleep.\nDay two\nWork.", "DAY 1\nDAY 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, null]}', '```json\n{"a": 1}\n```', '```\n"a"\n```'],
        ["{'a': 1}", 'Here it is:\n{"a": 1}', "[" * 10**4],
    ),
    ("detectable_format:title", {}, ["<<Rain>>\nIt fell.", "It fell. <<Rain>>"], ["<Rain>\nIt fell.", "<<>>", "<< >>"]),
    (
        "combination:two_responses",
        {},
        ["Yes.\n******\nNo.", "******\nYes.\n******\nNo."],
        ["Yes.", "Yes.\n******\nYes.", "Yes.\n******", "Yes.\n******\nNo.\n******\nWell.", "Yes.\n***\nNo."],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "What is a fjord?"},
        ["What is a fjord? A long bay.", "  what is a fjord?"],
        ["A long bay.", "You ask: What is a fjord?"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ["It rains. That is all.", '"It rains. THAT IS ALL."\n', "That is all."],
        ["That is all. Bye.", "It rains."],
    ),
    ("startend:quotation", {}, ['"It rains."', ' "" '], ["It rains.", '"It rains.', '"', "'It rains.'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        ["The BIG storm in the U.S.", "I said I would.", "**STOP** (NOW)"],
        ["The BIG storm.", "A storm 2024 42."],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 1},
        ["Small words Only, 42."],
        ["NO."],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()], [ENGLISH, GERMAN.lower(), "123"]),
    ("punctuation:no_comma", {}, ["One; two.", "One، two"], ["One, two."]),
]


def item(*instructions):
    names, settings = zip(*instructions, strict=True)
    return Item(0, "instructions", "?", (), (), (), checks={"instruction_ids": list(names), "kwargs": list(settings)})


def test_every_instruction_of_the_benchmark_has_cases():
    assert len(INSTRUCTIONS) == 25
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)


@pytest.mark.parametrize(("name", "settings", "right", "wrong"), CASES, ids=[case[0] for case in CASES])
def test_replies_follow_or_do_not(name, settings, right, wrong):
    verdicts = {reply: follows(name, settings, reply) for reply in (*right, *wrong)}
    assert verdicts == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


@pytest.mark.parametrize(("name", "settings"), [case[:2] for case in CASES])
def test_an_empty_reply_follows_nothing(name, settings):
    assert not follows(name, settings, " \n")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("***", 0),
        ("No mark at its end", 1),
        ("One. Two! Three? Four… Five", 5),
        ("Wait... what?! Really.", 3),
        ('"Go." He went. (He ran.) *Far.*', 4),
        ("Mr. J. R. Smith of the U.S. Navy, e.g. here, has 3.5 litres.", 1),
        ("So do I. The answer is no. Then go.", 3),
        ("Buy:\n1. Milk.\n2. Bread.\n10. Eggs.", 3),
        ("It was 1999. Then came 2000.", 2),
        ("See example.org for more.", 1),
        ("今日は雨です。家にいます。", 2),
        ("यह पहला है। यह दूसरा है।", 2),
    ],
)
def test_sentences_are_counted(text, count):
    assert count_sentences(text) == count


def test_flexible_readings_drop_first_and_last_line_and_asterisks():
    assert flexible_variants("a\n*b*\n\nc") == [
        *("a\n*b*\n\nc", "a\n*b*", "*b*\n\nc", "*b*"),
        *("a\nb\n\nc", "a\nb", "b\n\nc", "b"),
    ]
    assert set(flexible_variants("one line")) == {"one line", ""}


@pytest.mark.parametrize(
    ("reply", "strict", "flexible"),
    [
        ('{"a": 1}', (True, True), (True, True)),
        ('Sure, here it is:\n{"a": 1}', (False, False), (True, True)),
        ('{"a": 1}\n\nAnything else, maybe?', (False, False), (True, True)),
        ('Sure:\n{"a": 1}\nBye.', (False, True), (True, True)),
        ('Sure:\nHere:\n{"a": 1}', (False, True), (False, True)),
        ('**{"a": 1}**', (False, True), (True, True)),
        # Each instruction is followed by another part of the reply: without the first line, without the last.
        ('One, two\n{"a": 1,\n"b": 2}', (False, False), (True, False)),
        ("", (False, False), (False, False)),
    ],
)
def test_strict_and_flexible(reply, strict, flexible):
    asked = item(("detectable_format:json_format", {}), ("punctuation:no_comma", {}))
    assert followed(asked.checks["instruction_ids"], asked.checks["kwargs"], reply) == (strict, flexible)
    [grades] = grade([asked], [reply])
    assert grades.notes == {"followed": list(strict)}
    assert grades.strict == (f"{sum(strict)} of 2", all(strict))
    assert grades.flexible == (f"{sum(flexible)} of 2", all(flexible))


def test_a_flexible_reading_never_takes_away():
    """The reply itself is one of the variants, so what is followed strictly is followed flexibly."""
    for name, settings, right, wrong in CASES:
        for reply in right + wrong:
            found = followed([name], [settings], reply)
            assert found.strict <= found.flexible


def test_a_language_is_the_same_every_time():
    short = "Hotel Restaurant Taxi"  # could be any; the package draws samples
    verdicts = set()
    for _ in range(20):
        constraints._language.cache_clear()
        verdicts.add(constraints._language(short))
    assert len(verdicts) == 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("length:lines", {}, "unknown instruction 'length:lines'; known are: change_case:capital_word_frequency, .*"),
        ("punctuation:no_comma", {"num": 1}, "takes no settings, it was given \\['num'\\]"),
        ("keywords:existence", {}, "takes \\['keywords'\\], it was given \\[\\]"),
        (
            "length_constraints:number_words",
            {"relation": "about", "num_words": 3},
            "relation is 'about'; known are: at least, less than",
        ),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        grade([item((name, settings))], ["A reply."])


def test_languages_need_a_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_instruction("punctuation:no_comma", {})
    with pytest.raises(UserError, match="package langdetect.*pip install 'gendistill\\[eval\\]'"):
        check_instruction("language:response_language", {"language": "de"})


# Replies of 100 KB that patterns with two open ends take the square of it for.
SIZE = 100_000
LONG = {
    "dots": "." * SIZE + "x",
    "dots and quotes": "." * (SIZE // 2) + '"' * (SIZE // 2) + "x",
    "abbreviations": "e.g. " * (SIZE // 5),
    "titles": "Mr. " * (SIZE // 4),
    "list numbers": "1. " * (SIZE // 3),
    "brackets": "[" * SIZE,
    "angles": "<<a" * (SIZE // 3),
    "empty lines": "\n" * SIZE,
    "blanks": " " * SIZE + "x",
    "stars": "*" * SIZE,
    "digits": "1" * SIZE + ".",
    "nested": "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "prose": "That is one thing, isn't it. " * (SIZE // 29),
}
COUNTED = {
    "length_constraints:number_sentences": {"relation": "at least", "num_sentences": 1},
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_format:number_bullet_lists": {"num_bullets": 1},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:title": {},
    "detectable_format:json_format": {},
    "change_case:capital_word_frequency": {"capital_relation": "at least", "capital_frequency": 1},
}


@pytest.mark.parametrize("reply", LONG.values(), ids=LONG)
def test_time_grows_with_the_reply_and_not_with_its_square(reply):
    began = time.process_time()
    followed(list(COUNTED), list(COUNTED.values()), reply)
    assert time.process_time() - began < 3  # nine readings of it by each; squares take minutes


@pytest.mark.parametrize(
    ("text", "sentences"),
    [("a " * 100 + "Mr. Wu left.", 1), ("x" * 100 + ". y", 2), ("So. " * 3, 3), ("b" * 63 + "A. Then.", 2)],
)
def test_abbreviations_far_from_the_beginning_of_a_sentence(text, sentences):
    assert count_sentences(text) == sentences
