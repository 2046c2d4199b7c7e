"""Long tasks of graded difficulty: what is hidden in their prompts is what they ask for, and nothing else gives it."""

import re
import time

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from gendistill.data.chat import render_prompt, render_prompts
from gendistill.embedded import teacher_folder
from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.fact import FIRST_NAMES, RELATIONS, SURNAMES
from gendistill.evaluate.kinds.recall import recall_prompts
from gendistill.evaluate.kinds.shared.haystack import Haystack
from gendistill.recipe.evaluation import TASK_FILES, make_task, task_names

LONG = [name for name in task_names() if "\nlength:" in (TASK_FILES / f"{name}.yaml").read_text()]
LISTED = re.compile(r"^([a-z]+ [a-z]+): (\d+)$", re.MULTILINE)
NEEDLE = re.compile(r" ?One of the special magic numbers for ([a-z]+ [a-z]+) is (\d+)\.")
PRICE = re.compile(r" ?The price of the ([a-z]+ [a-z]+) is (\d+) coins\.")
# Real enough: paragraphs, initials, titles, numbers and a family that facts may not be about.
PROSE = (
    'Mr. Quarndon met Dr. A. Smith in 1871. "Where is it?" he asked; nobody knew.\n\nThe rain went on for 12 days, '
    "and then the wind turned! They took the violin to Lisbon, as was their habit."
)


@pytest.fixture(scope="session")
def embedded():
    return AutoTokenizer.from_pretrained(teacher_folder())


@pytest.fixture(scope="session")
def prose(tmp_path_factory):
    path = tmp_path_factory.mktemp("hay") / "prose.txt"
    path.write_text("\n\n".join([PROSE] * 20), encoding="utf-8")
    return str(path)


def make(tokenizer, name, length=1500, items=8, seed=0, **settings):
    return load_items("long", make_task(task=name, length=length, items=items, **settings), seed, tokenizer)


def strict(item, reply):
    return grade([item], [reply])[0].strict


def text_of(item):
    """What stands between the introduction and the question."""
    return item.question.split("\n\n", 1)[1].rpartition("\n\n")[0]


def test_the_long_tasks_are_shipped():
    assert {"needle_single", "needle_multi_key", "needle_sum", "fact_in_prose", "recall_easy", "recall_full"} <= {*LONG}
    assert len(LONG) <= 8


@pytest.mark.parametrize("hay", ["made up", "prose"])
@pytest.mark.parametrize("name", [name for name in LONG if name != "recall_full"])
def test_items_fill_their_length_and_their_answer_is_right(embedded, prose, name, hay):
    length = 6000 if name == "recall_hard" else 1500
    settings = {"haystack": prose} if hay == "prose" else {}
    items = make(embedded, name, length, **settings)
    for item in items:
        assert 0.97 * length <= len(render_prompt(embedded, item.messages)) <= length
        (gold,) = item.gold
        assert item.candidates[gold] == item.solution and len(set(item.candidates)) == 4
        assert [strict(item, text).correct for text in item.candidates] == [n == gold for n in range(4)]
    assert make(embedded, name, length, items=3, **settings) == items[:3]
    assert make(embedded, name, length, items=3, seed=1, **settings) != items[:3]
    # No candidate is right more often because of where it stands: the order is drawn.
    assert len({item.gold for item in items}) > 1


@pytest.mark.parametrize("name", LONG)
def test_without_what_is_hidden_a_prompt_does_not_give_its_answer(embedded, name):
    for item in make(embedded, name, 6000 if name == "recall_hard" else 1500, items=4):
        lines = [sentence for pattern in (NEEDLE, PRICE) for sentence in pattern.findall(item.question)]
        bare = LISTED.sub("", PRICE.sub("", NEEDLE.sub("", item.question)))
        if name == "fact_in_prose":
            bare = re.sub(rf"[^.\n]*\b{item.answers[0]}\b[^.\n]*\.", "", text_of(item))
            assert len(text_of(item)) - len(bare) < 120
        assert item.answers[0] not in bare
        assert name.startswith(("recall", "fact")) or lines


def test_needles_asked_for_are_those_of_the_question_in_order(embedded):
    for item in make(embedded, "needle_multi_value", 2000, keys=6, asked=3):
        needles = dict(NEEDLE.findall(item.question))
        asked = re.findall(r"[a-z]+ [a-z]+", item.question.rpartition("magic numbers for ")[2].replace(" and ", ", "))[
            :3
        ]
        assert len(needles) == 6 and item.answers == (", ".join(needles[key] for key in asked),)
        # Evenly apart: something early and something late is asked for.
        places = sorted(item.question.index(needles[key]) / len(item.question) for key in asked)
        assert places[1] - places[0] > 0.15 and places[2] - places[1] > 0.15


@pytest.mark.parametrize("keys", [2, 7])
def test_prices_asked_for_add_up_to_the_answer(embedded, keys):
    for item in make(embedded, "needle_sum", keys=keys, items=20):
        prices = dict(PRICE.findall(item.question))
        first, second = re.search(r"do the (.+?) and the (.+?) cost in total", item.question).groups()
        one, other = int(prices[first]), int(prices[second])
        total = one + other
        assert len(prices) == keys and item.answers == (str(total),)
        assert item.solution == f"{one} + {other} = {total}"
        # Wrong candidates are true equations of the same form.
        terms = [re.fullmatch(r"(\d\d) \+ (\d\d) = (\d\d)", text).groups() for text in item.candidates]
        assert all(int(a) + int(b) == int(c) for a, b, c in terms)
        if keys >= 4:
            assert {term for a, b, _ in terms for term in (a, b)} <= {*prices.values()}
        said = f"The {first} costs {one} coins and the {second} {other}."
        assert strict(item, f"{said} The total is {total} coins.").correct
        assert not strict(item, said).correct and not strict(item, f"The answer is {one}.").correct


@pytest.mark.parametrize("keys", [1, 5])
def test_facts_are_stated_once_and_asked_for_in_other_words(embedded, prose, keys):
    items = make(embedded, "fact_in_prose", keys=keys, haystack=prose, items=20)
    for item in items:
        text, (answer,) = text_of(item), item.answers
        name = re.search(r"is about (\w+ \w+)\. Remember", item.question)[1]
        assert text.count(name) == 1 and "Quarndon" not in name
        (relation,) = [each for each in RELATIONS if item.question.endswith(_asked(each, name))]
        assert relation.statement.format(name=name, value=answer) in text
        people = [f"{first} {last}" for first in FIRST_NAMES for last in SURNAMES if f"{first} {last}" in text]
        assert len(people) == keys
        stated = [value for value in relation.values if any(_is_in(text, relation, person, value) for person in people)]
        assert len(stated) == keys  # another value of each
        assert {*item.candidates} <= {*relation.values}
        assert keys == 1 or {*item.candidates} <= {*stated}
        assert strict(item, f"{answer.capitalize()}.").correct and strict(item, f"It is {answer}.").correct
        assert not strict(item, "I do not know.").correct
    assert len({item.question.rpartition("\n\n")[2].split()[5] for item in items}) > 2


def _asked(relation, name):
    return relation.question.format(name=name) + " Answer with one word only."


def _is_in(text, relation, name, value):
    return relation.statement.format(name=name, value=value) in text


def test_question_and_statement_of_a_fact_share_no_word_that_says_what_is_asked():
    small = {"a", "the", "of", "in", "to", "for", "does", "has", "is", "as", "with"}
    for relation in RELATIONS:
        stated, asked = (
            set(re.findall(r"[a-z]+", text.replace("{name}", "").replace("{value}", "").lower())) - small
            for text in (relation.statement, relation.question)
        )
        assert stated & asked <= {"front", "door"}
        assert len(set(relation.values)) == len(relation.values) >= 16


@pytest.mark.parametrize(("pairs", "length"), [(4, 400), (16, 400), (16, 3000), (200, 3000)])
def test_lists_have_so_many_lines_whatever_the_length(embedded, prose, pairs, length):
    for item in make(embedded, "recall_easy", length, pairs=pairs, haystack=prose):
        listed = LISTED.findall(item.question)
        key = re.search(r"value of ([a-z]+ [a-z]+) in the list", item.question)[1]
        assert len(listed) == len(dict(listed)) == pairs and item.answers == (dict(listed)[key],)
        assert set(item.candidates) <= {value for _, value in listed}
        lines = item.question.split("\n")
        first, last = (lines.index(f"{key}: {value}") for key, value in (listed[0], listed[-1]))
        assert last - first == pairs - 1  # one block
        assert lines[first - 1] == lines[last + 1] == "" and lines[last + 2] and not lines[last + 2].startswith(" ")
    # Those asked for stand anywhere in the list.
    assert (
        len(
            {
                [key for key, _ in LISTED.findall(item.question)].index(_key(item))
                for item in make(embedded, "recall_easy", 400, items=12)
            }
        )
        > 4
    )


def _key(item):
    return re.search(r"value of ([a-z]+ [a-z]+) in the list", item.question)[1]


def test_lists_within_text_stand_at_all_depths(embedded):
    depths = [item.checks["depth"] for item in make(embedded, "recall_easy", 3000, items=16)]
    for quarter in range(4):
        assert abs(sum(quarter <= 4 * depth < quarter + 1 for depth in depths) - 4) <= 1


def test_recall_prompts_with_pairs_and_text_of_ones_own(embedded, prose):
    (answered,) = recall_prompts(embedded, 700, 1, pairs=16, haystack=prose)
    text = embedded.decode(answered.prompt)
    assert len(LISTED.findall(text)) == 16 and "the wind turned!" in text
    assert embedded.decode(answered.answer).strip() in dict(LISTED.findall(text)).values()


def test_nothing_is_hidden_behind_a_title_or_an_initial(embedded):
    haystack = Haystack.of(PROSE, embedded)
    assert [haystack.words[word].strip() for word in haystack.starts] == ["Mr.", '"Where', "he", "The", "They"]


@pytest.mark.parametrize("room", [0, 1, 7, 100, 977, 5000])
@pytest.mark.parametrize("start", [0, 3, 9])
def test_a_stretch_is_as_much_as_fits_and_begins_anew_behind_the_end(embedded, start, room):
    haystack = Haystack.of(PROSE, embedded)
    stretch, count = haystack.stretch(start, room), len(haystack.words)
    assert stretch.pieces == [haystack.words[(start + n) % count] for n in range(len(stretch.pieces))]
    following = haystack.sizes[(start + len(stretch.pieces)) % count]
    assert stretch.sizes.sum() <= room < stretch.sizes.sum() + following


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="needle", keys=2, asked=3), "asked: 3 is more than there are needles (keys: 2)"),
        (dict(kind="recall", pairs=5, keys=4), "give at least 7"),
        (dict(kind="recall", haystack="x.txt"), "give pairs, too"),
        (dict(kind="needle_sum", keys=1), "greater than or equal to 2"),
    ],
)
def test_settings_that_cannot_be_met(settings, message):
    with pytest.raises(ValidationError) as raised:
        make_task(length=1000, **settings)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fact_in_prose", dict(keys=14), "keys: 14 is more than there are; give at most 13"),
        ("recall_easy", dict(pairs=30_000), "pairs: 30000 is more than there are names (22,"),
        ("recall_hard", dict(length=500), "at least"),
    ],
)
def test_tasks_that_cannot_be_made(embedded, name, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make(embedded, name, **settings)


def test_a_haystack_of_all_surnames_is_refused(embedded, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text(" ".join(SURNAMES), encoding="utf-8")
    with pytest.raises(UserError, match="1 are needed, 0 are left. Give another text"):
        make(embedded, "fact_in_prose", haystack=str(path))


def test_a_haystack_without_text_is_an_error(embedded, tmp_path):
    path = tmp_path / "blank.txt"
    path.write_text(" \n ", encoding="utf-8")
    with pytest.raises(UserError):
        make(embedded, "needle_single", haystack=str(path))


def test_many_prompts_are_rendered_as_each_by_itself(embedded):
    conversations = [item.messages for item in make(embedded, "needle_single", 300, items=3)]
    together = [prompt.ids for prompt in render_prompts(embedded, conversations)]
    assert together == [render_prompt(embedded, each) for each in conversations]


def test_making_items_takes_little_longer_than_tokenising_them(embedded):
    few, many = 1, 9
    times = {}
    for count in (few, many):
        start = time.process_time()
        items = make(embedded, "fact_in_prose", 32_768, items=count)
        times[count] = time.process_time() - start
    start = time.process_time()
    render_prompts(embedded, [item.messages for item in items])
    tokenising = (time.process_time() - start) / many
    assert (times[many] - times[few]) / (many - few) < 2 * tokenising + 0.02  # seconds an item
