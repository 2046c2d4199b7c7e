"""Conversations with distant answers: where what they depend on stands, what is learnt of them, that none can be
guessed, and that a killed preparation gives the same."""

import json
import random
import re
import time
from itertools import pairwise
from threading import Lock

import pytest

from gendistill.data.dataset import prepare
from gendistill.data.distant import make, questions, store
from gendistill.data.distant.checking import Check
from gendistill.data.distant.invention import Invention
from gendistill.data.distant.passages import Passages, Place, sentence_ends
from gendistill.data.distant.questions import KINDS, Pages
from gendistill.data.distant.store import distant_counts, make_distant
from gendistill.errors import UserError
from gendistill.evaluate.kinds import fact, needle, needle_sum, recall
from gendistill.evaluate.kinds.shared.haystack import made_up_text
from gendistill.evaluate.kinds.shared.keys import KEYS
from gendistill.files import write_atomically
from gendistill.recipe.data import Source
from gendistill.recipe.loading import parse_recipe
from gendistill.synthesize.overlap import OverlapIndex

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOW, HIGH = 2000, 8000  # of a tokenizer whose tokens are characters, but for few
ROW = 9000


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(CHATML)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "texts.jsonl"
    documents = [made_up_text(random.Random(number), sentences=150) for number in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


@pytest.fixture
def made(text, tokenizer, tmp_path):
    def run(
        tokens=150_000, *, path=text, cache=tmp_path / "distant", overlaps=lambda text: False, check=None, **settings
    ):
        fixed = {"sequence_length": ROW, "seed": 0, "purpose": "0", "evaluations": {}}
        fixed |= {name: settings.pop(name) for name in list(settings) if name in fixed}
        source = Source(path=path, made="distant", **({"distances": (LOW, HIGH)} | settings))
        how = fixed | {"overlaps": lambda: overlaps, "cache": cache, "check": check}
        return make_distant(source, tokenizer, tokens=tokens, **how)[0]

    return run


@pytest.fixture
def records(made):
    return [json.loads(line) for line in made().read_text().splitlines()]


def sequences(record, tokenizer):
    """The ids of a record's sequence, and where its reply begins."""
    user, assistant = (message["content"] for message in record["messages"])
    prompt = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt)["input_ids"]
    return ids + tokenizer(assistant + "<|im_end|>")["input_ids"], len(ids)


def test_only_the_answers_are_learnt(made, records, tokenizer, tmp_path):
    source = Source(path=str(made()), messages="messages")
    rows = prepare(
        [source], tokenizer, sequence_length=ROW, tokens=15 * ROW, loss_on="completion", seed=0, cache=tmp_path / "data"
    )[:]
    of_reply = {record["messages"][1]["content"] + "<|im_end|>": record for record in records}
    learnt = []
    for ids, mask in zip(rows["input_ids"], rows["loss_mask"], strict=True):
        runs = "".join("x" if target else " " for target in mask)
        learnt += [tokenizer.decode(ids[run.start() : run.end()]) for run in re.finditer("x+", runs)]
    assert len(learnt) > 15 and set(learnt) <= set(of_reply)
    wanted = sum(len(tokenizer(reply)["input_ids"]) for reply in learnt)
    assert int(rows["loss_mask"].sum()) == wanted


def test_what_answers_depend_on_lies_beyond_a_window(records, tokenizer):
    for record in records:
        ids, start = sequences(record, tokenizer)
        whole, window = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start - LOW : start])
        assert len(ids) <= ROW
        for asked in record["asked"]:
            for evidence, distance in zip(asked["evidence"], asked["distance"], strict=True):
                assert whole.count(evidence) == 1 and evidence not in window
                # Counted in another way: the tokens of all that stands behind it.
                behind = whole[whole.index(evidence) + len(evidence) :]
                assert distance == len(tokenizer(behind)["input_ids"]) + 1
                assert LOW <= distance <= HIGH
        _, answers = (message["content"] for message in record["messages"])
        values = re.findall(r"[A-Z]{2}-\d{4}|\d{3,}", answers)
        worked_out = {str(value) for value in map(int, re.findall(r"make (\d+)\.", answers))}
        assert not [value for value in values if value not in worked_out and value in window]


def test_kinds_and_distances_are_spread(made, records):
    kinds = [asked["kind"] for record in records for asked in record["asked"]]
    assert set(kinds) == set(KINDS)
    counts = distant_counts(made())
    assert counts.conversations == len(records) and sum(counts.kinds.values()) == len(kinds)
    farthest = [max(d for asked in record["asked"] for d in asked["distance"]) for record in records]
    assert min(farthest) < 2 * LOW and max(farthest) > 0.8 * HIGH
    asked = [len(record["asked"]) for record in records]
    assert len(set(asked)) > 3 and len(records) / 8 < asked.count(1) < len(records) / 2
    assert counts.loss_tokens < counts.tokens / 25


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_what_is_planted(kind):
    text = made_up_text(random.Random(7), sentences=30)
    cuts = [0, *sentence_ends(text)]
    sentences = [text[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
    for number in range(30):
        rng = random.Random(number)
        made = KINDS[kind](Invention(rng, text), rng, Pages(sentences, range(len(sentences))))
        evidence = [each.evidence for each in made.planted if each.evidence is not None]
        assert made.kind == kind and evidence
        if kind == "code":
            scope = {}
            exec(evidence[0], scope)  # written by the project
            (call,) = re.findall(r"What does (.*) return\?", made.question)
            assert str(eval(call, scope)) == made.answer
        elif kind == "added":
            first, second, total = map(int, re.findall(r"\d+", made.answer))
            assert first + second == total
            assert sorted(re.findall(r"\d+", " ".join(evidence))) == sorted([str(first), str(second)])
        elif kind == "compared":
            more, less = map(int, re.findall(r"\d+", made.answer))
            (says,) = [sentence for sentence in evidence if str(more) in sentence]
            assert more > less and made.answer.split(",")[0] in says
        elif kind == "several":
            pairs = [pair.split(" for ") for pair in made.answer.split("; ")]
            assert len(pairs) == len(evidence) > 1
            assert all(value in says and name in says for (value, name), says in zip(pairs, evidence, strict=True))
        else:
            assert made.answer in " ".join(evidence[0].split())
        # What was invented for the answer is not in the question.
        assert made.answer not in made.question


def test_never_the_words_or_the_form_of_an_evaluation():
    ours = [
        *make.INTRODUCTIONS,
        make.MANY_QUESTIONS,
        *(form.format(question="Is it so?") for form in make.ONE_QUESTION),
    ]
    for table in (questions.RELATIONS, questions.AMOUNTS, questions.LISTINGS):
        ours += [template for row in table for template in row]
    ours += [register.heading for register in questions.REGISTERS]
    ours += [column.question for register in questions.REGISTERS for column in register.columns]
    for number in range(200):
        rng = random.Random(number)
        pages = Pages(["They walked a long way down to the sea that day, and none of them said a word."], [0])
        made = KINDS[list(KINDS)[number % len(KINDS)]](Invention(rng, ""), rng, pages)
        ours += [made.question, made.answer, *(each.text for each in made.planted)]
    theirs = [needle.NEEDLE, needle.PROMPT, needle_sum.NEEDLE, needle_sum.PROMPT, recall.PROMPT, recall.PROMPT_WITHIN]
    theirs += [needle._prompt(keys) for keys in (["{key}"], ["{key}", "{key}"])]
    theirs += [recall._question(keys) for keys in (["{key}"], ["{key}", "{key}"])]
    theirs += [fact.PROMPT, *(text for relation in fact.RELATIONS for text in relation[:2])]
    assert not fours(ours) & fours(theirs)
    words = [re.findall(r"[a-z]+", text.lower()) for text in ours]
    assert not {" ".join(pair) for text in words for pair in zip(text, text[1:], strict=False)} & set(KEYS)
    # Nor the line of a list "name: value", nor a number of as many digits as a needle's.
    assert not [text for text in ours if re.search(r"(?m)^[\w ]+: \S+$", text) or re.search(r"\d{7}", text)]


def fours(texts):
    """Four words in sequence, places to fill in as words."""
    words = [re.findall(r"[a-z]+|\{\w*\}", text.lower()) for text in texts]
    return {tuple(text[at : at + 4]) for text in words for at in range(len(text) - 3)}


def test_depends_on_seed_and_place_in_the_mixture_alone(made, tmp_path):
    whole, few = made().read_bytes(), made(tokens=60_000).read_bytes()
    assert made(cache=tmp_path / "again").read_bytes() == whole
    assert len(few) < len(whole) / 2 and whole.startswith(few)
    assert made(tokens=20_000, seed=1).read_bytes()[:1000] != whole[:1000]
    assert made(tokens=20_000, purpose="1").read_bytes()[:1000] != whole[:1000]


@pytest.mark.parametrize("checked", [False, True])
def test_threads_change_nothing(made, tmp_path, monkeypatch, checked):
    """Among what overlaps with an item is looked up one text at a time."""
    looking = Lock()

    def overlaps(text):
        assert looking.acquire(blocking=False)
        time.sleep(0.001)
        looking.release()
        return len(text) % 7 == 0

    check = Check("says it", says_the_passage) if checked else None
    found = []
    for threads in (8, 1):
        monkeypatch.setattr(store, "THREADS", threads)
        path = made(overlaps=overlaps, check=check, cache=tmp_path / f"{threads}")
        found.append((path.read_text(), distant_counts(path)))
    assert found[0] == found[1] and found[0][1].unused


def test_no_token_is_shorter_than_a_byte(tokenizer, monkeypatch, made, tmp_path):
    """What is taken for granted instead of tokenising changes nothing, with room to spare and with little."""
    settings = [dict(), dict(distances=(LOW, LOW + 900))]
    quick = [made(cache=tmp_path / f"quick{i}", **each).read_text() for i, each in enumerate(settings)]
    exact = make.Maker._overhead
    monkeypatch.setattr(make.Maker, "_overhead", lambda maker, drawn, enough=0: exact(maker, drawn))
    assert [made(cache=tmp_path / f"exact{i}", **each).read_text() for i, each in enumerate(settings)] == quick


def test_resumes_where_it_was_killed(made, tmp_path, monkeypatch):
    whole = made()
    monkeypatch.setattr(store, "BETWEEN_STATES", 4)
    take, seen = make.Maker.take, []

    def dies(maker, number, passages):
        seen.append(number)
        if number == 10:
            raise KeyboardInterrupt
        return take(maker, number, passages)

    monkeypatch.setattr(make.Maker, "take", dies)
    with pytest.raises(KeyboardInterrupt):
        made(cache=tmp_path / "killed")
    monkeypatch.setattr(make.Maker, "take", lambda *given: seen.append(given[1]) or take(*given))
    resumed = made(cache=tmp_path / "killed")
    assert resumed.read_bytes() == whole.read_bytes() and distant_counts(resumed) == distant_counts(whole)
    assert seen[:12] == [*range(11), 8]  # behind the last state


@pytest.mark.parametrize("name", [store.RECORDS, store.STATE])
def test_what_has_changed_since_it_was_killed_is_made_anew(made, tmp_path, monkeypatch, name):
    whole = made(tokens=20_000)
    monkeypatch.setattr(store, "BETWEEN_STATES", 4)
    with monkeypatch.context() as killed:
        killed.setattr(store, "write_atomically", lambda *given: write_atomically(*given) or _die())
        with pytest.raises(KeyboardInterrupt):  # behind the first state
            made(tokens=20_000, cache=tmp_path)
    (path,) = tmp_path.glob(f"*.partial/{name}")
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    again = made(tokens=20_000, cache=tmp_path)
    assert again.read_bytes() == whole.read_bytes() and distant_counts(again) == distant_counts(whole)


def _die():
    raise KeyboardInterrupt


def says_the_passage(asked):
    """What asks for something that stands in the passage is answered rightly so; a sum is not."""
    return [messages[0]["content"] for messages in asked]


def test_what_the_teacher_answers_wrongly_is_left_out(made, tmp_path):
    asked = []
    check = Check("one", lambda conversations: asked.extend(conversations) or says_the_passage(conversations))
    every, kept = made(), made(check=check)
    kinds = {path: {asked["kind"] for asked in read(path, "asked")} for path in (every, kept)}
    assert "added" in kinds[every] and "added" not in kinds[kept] >= {"single", "several", "table", "quoted"}
    counts = distant_counts(kept)
    assert counts.wrong["added"] > 0 and counts.wrong.keys() <= {"added", "compared", "code"}
    assert counts.unused[make.WRONG] > 0  # of conversations with no other question
    # It is shown what the answer depends on, and little else.
    evidence = [part for each in read(kept, "asked") for part in each["evidence"]]
    passages = "\n".join(messages[0]["content"] for messages in asked)
    assert all(part in passages for part in evidence)
    assert max(len(messages[0]["content"]) for messages in asked) < LOW
    # Another teacher may answer otherwise.
    assert made(check=Check("one", says_the_passage)) == kept != made(check=Check("other", says_the_passage))


def read(path, key):
    return [each for line in path.read_text().splitlines() for each in json.loads(line)[key]]


def test_a_checked_source_killed_is_resumed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BETWEEN_STATES", 4)
    whole = made(check=Check("one", says_the_passage))
    rounds = []

    def dies(asked):
        rounds.append(asked)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        return says_the_passage(asked)

    with pytest.raises(KeyboardInterrupt):
        made(check=Check("one", dies), cache=tmp_path / "killed")
    resumed = made(check=Check("one", says_the_passage), cache=tmp_path / "killed")
    assert resumed.read_bytes() == whole.read_bytes() and distant_counts(resumed) == distant_counts(whole)


def test_reads_on_from_any_place(text, tokenizer):
    source = Source(path=text, made="distant", distances=(LOW, HIGH), epochs=2)
    passages = Passages(source, tokenizer, 0, Place())
    everything = [sentence.text for sentence in passages.take(10**9)]
    assert len(everything) % 2 == 0 and everything[: len(everything) // 2] == everything[len(everything) // 2 :]
    passages = Passages(source, tokenizer, 0, Place())
    begin = [sentence.text for sentence in passages.take(700_000)]
    rest = [sentence.text for sentence in Passages(source, tokenizer, 0, passages.place).take(10**9)]
    assert begin + rest == everything and passages.place.epoch == 2


def test_evaluation_items_are_left_out(made, text, tmp_path):
    item = "If a farmer has twelve sheep and sells a third of them at noon, how many are left at night?"
    path = tmp_path / "texts.jsonl"
    with open(text) as file:
        path.write_text(file.read().replace("by the window.", f"by the window. {item}", 40))
    index = OverlapIndex()
    index.add("task", item)
    every = made(path=str(path), cache=tmp_path / "all")
    kept = made(path=str(path), overlaps=lambda text: index.find(text) is not None)
    assert item in every.read_text() and item not in kept.read_text()
    assert distant_counts(kept).unused[make.OVERLAP] >= 1


def test_sentences_end_where_they_end():
    chinese = "\u5b83\u8d70\u3002\u4ed6\u4e5f\u8d70\u3002"
    text = f'Mr. Ulm saw it. "Is it so?" he asked.\nIt was\nso.\n\nA title\n\n{chinese} etc.'
    cuts = [0, *sentence_ends(text)]
    pieces = [text[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
    assert "".join(pieces) == text
    assert [piece.strip() for piece in pieces] == [
        "Mr. Ulm saw it.", '"Is it so?"', "he asked.", "It was\nso.", "A title", "\u5b83\u8d70\u3002",
        "\u4ed6\u4e5f\u8d70\u3002", "etc.",
    ]  # fmt: skip
    assert sentence_ends(" \n ") == []
    assert all(0 < right - left <= 1000 for left, right in pairwise([0, *sentence_ends("word " * 1000)]))


def test_a_text_too_small_says_how_much_it_gave(made, tmp_path):
    with pytest.raises(UserError, match=r"too small: 1 pass over it gave \d+ conversations of .* tokens are wanted"):
        made(tokens=10**6)
    small = tmp_path / "small.txt"
    small.write_text("It is short. It says nothing.")
    with pytest.raises(UserError, match="gave 0 conversations of 0 tokens, 5,000 tokens are wanted"):
        made(tokens=5000, path=str(small))


def test_distances_that_leave_no_room(made, tmp_path):
    with pytest.raises(UserError, match=r"distances of 100 to 130 tokens leave no room: .* take \d+ or more"):
        made(distances=(100, 130))
    with pytest.raises(UserError, match="distances up to 8,000 tokens need rows as long; sequence_length is 4,000"):
        made(sequence_length=4000)


def test_what_comes_out_otherwise_than_drawn_is_not_used(made, monkeypatch):
    """Where a tokenizer counts sentences otherwise than the whole: here twice as many tokens as there are."""
    monkeypatch.setattr(store, "FEW", 4)
    behind = make._tokens_behind
    monkeypatch.setattr(make, "_tokens_behind", lambda sentences: 2 * behind(sentences))
    with pytest.raises(UserError, match=rf"could not be used: .*{make.OUTSIDE}"):
        made()


def test_a_text_without_blanks_is_told(made, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FEW", 4)
    flat = tmp_path / "flat.txt"
    flat.write_text("word" * 10_000)
    with pytest.raises(UserError, match="of 4 conversations 4 could not be used: 4 no end of a sentence at such a"):
        made(path=str(flat), epochs=9)


RECIPE = {
    "name": "x",
    "teacher": "embedded",
    "student": {"keep_attention": [0]},
    "data": {
        "text": [{"path": "embedded:text"}],
        "far": [{"path": "embedded:text", "made": "distant", "distances": [256, 1024]}],
    },
    "stages": {
        "last": {
            "objective": "forward_kl", "train": ["mixer"], "data": "far", "loss_on": "completion", "tokens": 4096,
            "sequence_length": 1024, "sequences_per_step": 1, "micro_batch": 1, "learning_rate": 0.001,
        }
    },
    "evaluation": {"tasks": {"facts": {"kind": "short_answer", "path": "embedded:facts"}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"made": None}, "go together"),
        ({"distances": None}, "go together"),
        ({"distances": [512, 512]}, "distances are [shortest, longest], not [512, 512]"),
        ({"messages": "m"}, "made of plain text"),
        ({"distances": [256, 2048]}, "stages.last: data 'far' has answers up to 2,048 tokens back (distances), and"),
    ],
)
def test_recipes_that_cannot_be(change, told):
    assert parse_recipe(RECIPE, "here").data["far"][0].gives_chat
    source = RECIPE["data"]["far"][0] | change
    with pytest.raises(UserError, match=re.escape(told)):
        parse_recipe(RECIPE | {"data": RECIPE["data"] | {"far": [source]}}, "here")
