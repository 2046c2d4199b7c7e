import json
import random
import time

import pytest

from gendistill.errors import UserError
from gendistill.recipe.evaluation import make_task
from gendistill.synthesize.overlap import Overlap, OverlapIndex
from gendistill.synthesize.run import index_of

QUESTION = (
    "A farmer has 17 sheep, and all but nine of them run away in the night. How many sheep does the farmer have left? "
    "A) eight B) nine C) seventeen D) none. Answer: B"
)
PROMPT = "You are a patient teacher. Explain the following to a pupil of ten years. {} Take your time, and be kind."
LETTERS = [f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def sentence(count: int, start: int = 0) -> str:
    return " ".join(LETTERS[start : start + count])


@pytest.fixture
def index():
    index = OverlapIndex()
    index.add(
        "riddles", "Which animal walks on four legs in the morning, on two at noon, on three in the evening? Man."
    )
    index.add("riddles", QUESTION)
    index.add("capitals", "What is the capital of France? Paris")  # 7 words: whole
    index.add("capitals", "Capital of Peru?")  # 3 words: alone
    index.add("chinese", "床前明月光，疑是地上霜。举头望明月，低头思故乡。")
    return index


@pytest.mark.parametrize(
    "planted",
    [
        QUESTION,
        QUESTION.upper(),
        QUESTION.replace(" ", "\n\n"),
        QUESTION.replace(",", " ;").replace("?", "...").replace(")", "."),
        "**" + QUESTION.replace("sheep", "_sheep_") + "**",
        "ＡＬＬ ＢＵＴ nine of them run away in the night: how many sheep does",
    ],
)
def test_a_planted_item_is_found(index, planted):
    overlap = index.find(PROMPT.format(planted))
    assert overlap[:2] == ("riddles", 1)
    assert "nine of them run away" in overlap.words
    assert len(overlap.words.split()) == 13


def test_unrelated_text_is_not_found(index):
    assert index.find(PROMPT.format("Why is the sky blue?")) is None
    assert index.find("") is None
    assert index.find("?!") is None
    assert index.find("How many sheep does the farmer have left in spring? Nine of them run away in the night.") is None
    assert not index.found


def test_the_boundaries_of_n():
    index = OverlapIndex(n=13)
    index.add("set", sentence(20))
    for start in range(8):
        shared = sentence(13, start)
        assert index.find(f"before {shared} after") == Overlap("set", 0, shared)
        assert index.find(shared) == Overlap("set", 0, shared)
    assert index.find(f"{sentence(12)} x {sentence(8, 12)}") is None
    assert index.find(sentence(12)) is None
    assert index.find("x " + sentence(12, 8)) is None


@pytest.mark.parametrize("length", [6, 7, 12, 13])
def test_short_items_are_found_whole(length):
    index = OverlapIndex(n=13)
    index.add("set", sentence(length))
    assert index.find(f"before {sentence(length).title()}, after") == Overlap("set", 0, sentence(length))
    assert index.find(f"before {sentence(length - 1)} after") is None
    assert index.find(sentence(length - 1)) is None
    assert index.find(f"{sentence(3)} x {sentence(length - 3, 3)}") is None


@pytest.mark.parametrize("length", [1, 5])
def test_shorter_items_are_found_alone(length):
    index = OverlapIndex(n=13)
    index.add("set", sentence(length))
    assert index.find(f"{sentence(length).upper()}!") == Overlap("set", 0, sentence(length))
    assert index.find(f"before {sentence(length)}") is None
    assert index.find(sentence(length + 1)) is None


def test_items_of_every_length_side_by_side(index):
    assert index.find("Tell me, what is the capital of France? Paris, I think.")[:2] == ("capitals", 0)
    assert index.find("capital of peru")[:2] == ("capitals", 1)
    assert index.find("The capital of Peru is Lima.") is None


def test_chinese_counts_characters(index):
    assert index.find("请背诵：床前明月光疑是地上霜举头望") == Overlap(
        "chinese", 0, "床 前 明 月 光 疑 是 地 上 霜 举 头 望"
    )
    assert index.find("请背诵：床前明月光疑是地上霜举头") is None  # 12 of them
    assert index.find("请背诵：低头思故乡，举头望明月。") is None


def test_vowel_signs_are_part_of_words():
    index = OverlapIndex()
    index.add("hindi", "भारत की राजधानी क्या है बताइए")
    assert index.find("कृपया: भारत की राजधानी क्या है, बताइए!")[:2] == ("hindi", 0)
    assert index.find("भारत का राजधानी क्या है बताइए") is None


def test_the_first_of_several_overlaps_is_told_and_all_are_counted(index):
    text = f"What is the capital of France? Paris. {QUESTION}"
    assert index.find(text).evaluation == "capitals"
    assert index.find(QUESTION).evaluation == "riddles"
    index.find("nothing here")
    assert index.found == {"capitals": 1, "riddles": 2}
    assert index.items == {"riddles": 2, "capitals": 2, "chinese": 1}


def test_an_item_of_two_evaluations_counts_for_both():
    index = OverlapIndex()
    assert [index.add(name, QUESTION) for name in ("one", "two", "two")] == [0, 0, 1]
    assert index.find(PROMPT.format(QUESTION))[:2] == ("one", 0)
    assert index.found == {"one": 1, "two": 1}


def test_items_can_be_added_after_a_search(index):
    text = PROMPT.format(sentence(20))
    assert index.find(text) is None
    index.add("late", sentence(15, 5))
    assert index.find(text) == Overlap("late", 0, sentence(13, 5))
    assert index.find(QUESTION) is not None


def test_agrees_with_a_search_of_strings():
    random.seed(0)
    items = [" ".join(random.choices("abc", k=random.randint(1, 16))) for _ in range(100)]
    index = OverlapIndex(n=8)
    for item in items:
        index.add("set", item)
    grams = {" ".join(item.split()[i : i + 8]) for item in items for i in range(max(len(item.split()) - 7, 1))}
    long = [gram for gram in grams if len(gram.split()) >= 6]
    found = 0
    for _ in range(500):
        text = " ".join(random.choices("abc", k=random.randint(1, 30)))
        expected = any(f" {gram} " in f" {text} " for gram in long) or (len(text.split()) < 6 and text in grams)
        assert (index.find(text) is not None) == expected
        found += expected
    assert 100 < found < 450


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="6 or more"):
        OverlapIndex(n=5)
    with pytest.raises(UserError, match="capitals holds no word"):
        OverlapIndex().add("capitals", " ?! ")


def test_a_large_index_is_fast_and_lean():
    random.seed(0)
    vocabulary = ["".join(random.choices("abcdefghijklmnop", k=random.randint(2, 9))) for _ in range(20000)]
    index = OverlapIndex()
    for _ in range(2000):
        index.add("set", " ".join(random.choices(vocabulary, k=200)))
    texts = [" ".join(random.choices(vocabulary, k=300)) for _ in range(500)]
    assert index.find(texts[0]) is None  # sorts
    start = time.process_time()
    assert not any(map(index.find, texts))
    bytes_a_second = sum(map(len, texts)) / (time.process_time() - start)
    assert bytes_a_second > 3e5  # 2e6 on a quiet machine
    hashes = index._by_length[13]
    assert hashes._hashes.nbytes + hashes._owners.nbytes == 12 * 2000 * 188


HUMANEVAL = {
    "prompt": 'def halves(a):\n    """Return half of each even number of the list, in its order."""\n',
    "canonical_solution": "    return [n // 2 for n in a if n % 2 == 0]\n",
    "test": "def check(f): assert f([2]) == [1]",
    "entry_point": "halves",
}
BBH = {"question": "Which of the two ships reached its port before the storm began?", "target": "A", "subject": "ships"}


@pytest.mark.parametrize(
    ("task", "records", "own", "worded"),
    [
        (
            "humaneval",
            [HUMANEVAL],
            HUMANEVAL["prompt"],
            "Complete this function. Give all of it in a code block.\n\n```python\ndef {}(a):\n    pass\n```",
        ),
        (
            "bbh",
            [BBH, BBH | {"question": "Was it the other one?", "target": "B"}],
            BBH["question"],
            '{}\n\nLet\'s think step by step. End with "So the answer is" and the answer.',
        ),
    ],
    ids=["humaneval", "bbh"],
)
def test_the_wording_that_a_task_puts_around_its_items_is_none_of_them(tmp_path, task, records, own, worded):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    index = index_of({task: make_task(task=task, path=str(path))}, 13, 0)
    assert index.find(worded.format("other")) is None
    assert index.find(f"As was asked: {own}") is not None
