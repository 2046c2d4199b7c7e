"""Prompts that fill a length, with what is asked for where `checks` says, for tokenizers of several kinds."""

import random
import re
import time

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gendistill.data.chat import render_prompt
from gendistill.embedded import teacher_folder
from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.kinds.recall import recall_prompts
from gendistill.evaluate.kinds.shared.haystack import made_up_text
from gendistill.evaluate.kinds.shared.long_context import grade_values
from gendistill.recipe.evaluation import make_task

KINDS = [("needle", 1), ("needle", 4), ("recall", 1), ("recall", 3)]
NEEDLE = re.compile(r"One of the special magic numbers for ([a-z]+ [a-z]+) is (\d+)\. ?")
PAIR = re.compile(r"^([a-z]+ [a-z]+): (\d+)$", re.MULTILINE)


@pytest.fixture(scope="session")
def embedded():
    return AutoTokenizer.from_pretrained(teacher_folder())


@pytest.fixture(scope="session")
def phrases(tokenizer):
    """Its tokens reach over blanks, and every text gets a blank in front: tokens of single words do not add up."""
    raw = Tokenizer(models.BPE(unk_token="?"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["?", "<|im_start|>", "<|im_end|>"])
    raw.train_from_iterator([made_up_text(random.Random("training"), 200), "0123456789:\nxyz"], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", unk_token="?")
    made.chat_template = tokenizer.chat_template
    return made


def make(tokenizer, kind, keys=1, length=1024, items=4, seed=0, **settings):
    task = make_task(kind=kind, keys=keys, length=length, items=items, **settings)
    return load_items("long", task, seed, tokenizer)


def size(tokenizer, item):
    return len(render_prompt(tokenizer, item.messages))


def hidden(item):
    """The text between introduction and question, and the keys and values it holds."""
    text = item.question.split("\n\n", 1)[1].rpartition("\n\n")[0]
    return text, (NEEDLE if item.kind == "needle" else PAIR).findall(text)


@pytest.mark.parametrize(("kind", "keys"), KINDS)
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("embedded", [256, 257, 300, 511, 1024, 4096]),
        ("tokenizer", [1000, 1001, 1313, 4096]),  # a token a byte
        ("phrases", [400, 513, 1500]),
    ],
)
def test_prompts_fill_their_length(request, name, lengths, kind, keys):
    tokenizer = request.getfixturevalue(name)
    for length in lengths:
        for item in make(tokenizer, kind, keys, length):
            assert 0.97 * length <= size(tokenizer, item) <= length
            assert item.checks["length"] == length


@pytest.mark.parametrize(("name", "length"), [("embedded", 200), ("tokenizer", 450), ("phrases", 200)])
def test_short_lists_are_full_too(request, name, length):
    """A line takes more than 3 % of these."""
    tokenizer = request.getfixturevalue(name)
    for item in make(tokenizer, "recall", length=length, items=20):
        assert 0.97 * length <= size(tokenizer, item) <= length


@pytest.mark.parametrize("keys", [1, 5])
def test_needles_are_in_the_haystack_once_and_apart(embedded, keys):
    for item in make(embedded, "needle", keys, items=12):
        text, needles = hidden(item)
        assert len(needles) == len(dict(needles)) == len({value for _, value in needles}) == keys
        asked = re.search(r"magic number for ([a-z]+ [a-z]+) mentioned", item.question)[1]
        assert item.answers == (dict(needles)[asked],)
        assert text.count(item.answers[0]) == 1 and re.fullmatch(r"\d{7}", item.answers[0])
        assert not re.search(r"\d", NEEDLE.sub("", text))
        # A needle stands between two sentences, so its neighbours are whole.
        assert all(match.start() == 0 or text[match.start() - 2] == "." for match in NEEDLE.finditer(text))


@pytest.mark.parametrize(("kind", "keys"), KINDS)
def test_depth_is_where_the_answer_stands(embedded, kind, keys):
    for item in make(embedded, kind, keys, length=2000, items=12):
        text, _ = hidden(item)
        key = re.search(r"(?:magic number for|values? of) ([a-z]+ [a-z]+)", item.question)[1]
        line = NEEDLE if kind == "needle" else PAIR
        place = next(match.start() for match in line.finditer(text) if match[1] == key)
        before, padding = (len(embedded(NEEDLE.sub("", part))["input_ids"]) for part in (text[:place], text))
        assert item.checks["depth"] == pytest.approx(before / padding, abs=0.01)


@pytest.mark.parametrize("kind", ["needle", "recall"])
def test_depths_are_spread_evenly_over_any_number_of_items(embedded, kind):
    depths = [item.checks["depth"] for item in make(embedded, kind, length=4000, items=40)]
    for count in (8, 20, 40):
        for quarter in range(4):
            inside = sum(quarter <= 4 * depth < quarter + 1 or depth == 1 == quarter - 2 for depth in depths[:count])
            assert abs(inside - count / 4) <= 1.5


@pytest.mark.parametrize("keys", [1, 3])
def test_recall_asks_for_pairs_of_the_list(embedded, keys):
    for item in make(embedded, "recall", keys, items=12):
        text, pairs = hidden(item)
        assert len(pairs) == len(dict(pairs)) == len(text.split("\n"))  # nothing but pairs, all names different
        asked = re.findall(
            r"[a-z]+ [a-z]+", re.search(r"values? of (.+) in the list", item.question)[1].replace("and ", "")
        )
        values = [dict(pairs)[key] for key in asked]
        assert len(set(values)) == keys and item.answers == (", ".join(values),)


@pytest.mark.parametrize(("kind", "keys"), KINDS)
def test_candidates_are_of_one_form_and_the_gold_is_right(embedded, kind, keys):
    items = make(embedded, kind, keys, items=20)
    for item in items:
        (gold,) = item.gold
        assert item.answers == (item.candidates[gold],) == (item.solution,)
        assert len(set(item.candidates)) == 4 and len({re.sub(r"\d", "0", text) for text in item.candidates}) == 1
        assert [grade_values(text, item.answers).correct for text in item.candidates] == [n == gold for n in range(4)]
        values = {value for _, value in hidden(item)[1]}
        if (kind, keys) != ("needle", 1):  # there the haystack holds no other number
            assert {value for text in item.candidates for value in text.split(", ")} <= values
    assert len({item.gold for item in items}) == 4


@pytest.mark.parametrize(("kind", "keys"), KINDS)
def test_items_are_fixed_by_seed_name_and_index(embedded, kind, keys):
    few, many = make(embedded, kind, keys, items=3), make(embedded, kind, keys, items=7)
    assert few == many[:3] and [item.id for item in many] == list(range(7))
    assert make(embedded, kind, keys, items=3, seed=1) != few
    task = make_task(kind=kind, keys=keys, length=1024, items=3)
    assert load_items("long", task, 0, embedded) == few
    assert load_items("other", task, 0, embedded)[0].answers != few[0].answers
    assert len({item.question for item in many}) == 7


@pytest.mark.parametrize(("kind", "keys"), KINDS)
def test_too_short_a_prompt_says_the_smallest_length(embedded, kind, keys):
    with pytest.raises(
        UserError, match=r"task 'long': a prompt of 20 tokens cannot hold .* of at least (\d+)"
    ) as error:
        make(embedded, kind, keys, length=20, items=9)
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert all(size(embedded, item) <= least for item in make(embedded, kind, keys, length=least, items=9))
    with pytest.raises(UserError, match="at least"):
        make(embedded, kind, keys, length=least - 1, items=9)


def test_too_long_a_list_and_too_many_keys_are_errors(embedded):
    with pytest.raises(UserError, match=r"task 'long': there are names for a list of some [\d,]+ tokens"):
        make(embedded, "recall", length=2_000_000, items=1)
    with pytest.raises(UserError, match="keys: 900 is more than there are; give at most 897"):
        make(embedded, "recall", keys=900)
    with pytest.raises(UserError, match=r"keys: 30000 is more than there are; give at most 22,\d+"):
        make(embedded, "needle", keys=30_000)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_needles_in_a_haystack_of_ones_own(embedded, tmp_path, write_records, suffix):
    paragraphs = [f"Chapter {number}. It rained on day {1000000 + number}! Why?" for number in range(30)]
    path = tmp_path / "hay.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    if suffix == ".jsonl":
        path = write_records("hay.jsonl", [{"text": paragraph} for paragraph in paragraphs])
    for item in make(embedded, "needle", keys=2, length=2000, haystack=str(path), items=6):
        text, needles = hidden(item)
        assert 0.97 * 2000 <= size(embedded, item) <= 2000
        assert len(needles) == 2 and item.question.count(item.answers[0]) == 1
        rest = NEEDLE.sub("", text)
        assert "Chapter 7. It rained on day 1000007! Why?\n\nChapter 8." in rest  # as it stands in the file
        # The text is shorter than the prompt, so that it begins anew after its end.
        assert rest.count("Chapter 7. ") > 1 and "1000029! Why? Chapter 0." in rest


def test_numbers_of_the_haystack_are_no_needles(embedded, tmp_path):
    path = tmp_path / "hay.txt"
    path.write_text("Nothing to see. " * 50, encoding="utf-8")
    drawn = {text for item in make(embedded, "needle", keys=4, haystack=str(path)) for text in item.candidates}
    path.write_text(f"Calls to {', '.join(sorted(drawn))} are free. " * 9, encoding="utf-8")
    for item in make(embedded, "needle", keys=4, haystack=str(path)):
        assert not drawn & {*item.candidates, *(value for _, value in NEEDLE.findall(item.question))}


def test_a_haystack_that_cannot_be_read_is_an_error(embedded, tmp_path, write_records):
    with pytest.raises(UserError, match="no such file"):
        make(embedded, "needle", haystack=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="no field 'text'"):
        make(embedded, "needle", haystack=write_records("hay.jsonl", [{"body": "Some text."}]))


@pytest.mark.parametrize("kind", ["needle", "recall"])
def test_128k_tokens_take_seconds(embedded, kind):
    start = time.process_time()
    items = make(embedded, kind, length=131_072, items=1)
    assert time.process_time() - start < 6
    assert all(0.97 * 131_072 <= size(embedded, item) <= 131_072 for item in items)


@pytest.mark.parametrize(
    ("reply", "answer", "parsed", "correct"),
    [
        ("8846761", "8846761", "8846761", True),
        ("The special magic number for open goat is 8846761.", "8846761", "8846761", True),
        ("**8,846,761**", "8846761", "8846761", True),
        ("8846761. Yes, 8846761!", "8846761", "8846761", True),
        ("Of the 4 numbers, it is 8846761", "8846761", "8846761", True),
        ("8846761 or 5351060", "8846761", None, False),
        ("8846761, 5351060", "8846761", None, False),
        ("1234567,8846761", "8846761", None, False),
        ("5351060", "8846761", "5351060", False),
        ("884676", "8846761", "884676", False),
        ("88467610", "8846761", "88467610", False),
        ("I do not know.", "8846761", None, False),
        ("", "8846761", None, False),
        ("140", "140", "140", True),
        ("open goat: 140", "140", "140", True),
        ("140, 274", "140", None, False),
        ("140,274,692", "140, 274, 692", "140, 274, 692", True),
        ("open goat is 140, mellow bow 274 and coral lake 692.", "140, 274, 692", "140, 274, 692", True),
        ("1. 140\n2. 274\n3. 692", "140, 274, 692", "140, 274, 692", True),
        ("140, 692, 274", "140, 274, 692", "140, 692, 274", False),
        ("140, 274", "140, 274, 692", None, False),
    ],
)
def test_grade_values(reply, answer, parsed, correct):
    assert grade_values(reply, (answer,)) == (parsed, correct)


def test_recall_prompts_are_what_generation_sees_with_the_right_reply(embedded):
    answered = recall_prompts(embedded, 512, 5, seed=3, keys=2)
    for prompt, answer in answered:
        assert 0.97 * 512 <= len(prompt) <= 512
        whole = embedded.decode(prompt)
        asked = re.search(r"values of ([a-z]+ [a-z]+) and ([a-z]+ [a-z]+) in the list", whole).groups()
        pairs = dict(PAIR.findall(whole))
        assert embedded.decode(answer).strip() == ", ".join(pairs[key] for key in asked)
    assert recall_prompts(embedded, 512, 2, seed=3, keys=2) == answered[:2]
    assert recall_prompts(embedded, 512, 2, seed=4, keys=2) != answered[:2]
