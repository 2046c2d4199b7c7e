"""The embedded teacher writes sets of records: with prompts of every kind, killed in the middle, refused."""

import json

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from gendistill.data.chat import render_prompts
from gendistill.data.dataset import prepare
from gendistill.embedded import records, teacher_folder
from gendistill.errors import UserError
from gendistill.evaluate.kinds.shared.numbers import last_number
from gendistill.files import damage_of
from gendistill.inference.generation import generate
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.recipe.data import Source, Synthesis
from gendistill.recipe.evaluation import make_task
from gendistill.synthesize import run
from gendistill.synthesize.run import synthesize

CHOICE = dict(kind="multiple_choice", path="embedded:choice", records=8)
FACTS = dict(kind="short_answer", path="embedded:facts", records=8)
SUMS = dict(kind="last_number", path="embedded:arithmetic", records=6)
TASKS = {"facts": make_task(kind="short_answer", path="embedded:facts")}


@pytest.fixture(scope="module")
def teacher():
    return load_model(str(teacher_folder()), torch.float32, "cpu").eval(), load_tokenizer("embedded", 2048)


@pytest.fixture
def write(teacher, tmp_path):
    def make(prompts, tasks=None, folder="set", **settings):
        synthesis = Synthesis(prompts=prompts, **({"max_new_tokens": 48, "batch_size": 8} | settings))
        place = tmp_path / folder
        stats = synthesize(
            *teacher, synthesis, tasks or {}, seed=0, folder=place, teacher="embedded", console=Console(quiet=True)
        )
        return stats, place

    return make


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_say_what_was_prompted_and_how_they_came_about(write):
    stats, folder = write([CHOICE, SUMS], margin=0.05)
    kept = lines(folder / "records.jsonl")
    assert len(kept) == stats["kept"] > 0
    assert stats["replies"] == stats["kept"] + len(lines(folder / "rejected.jsonl")) == 8 * 4 + 6
    assert len(set(stats["letters"].values())) == 1  # each kept question stands at all four letters
    for record in kept:
        user, assistant = record["messages"]
        assert (user["content"], assistant["content"]) == (record["prompt"], record["completion"])
        assert {"id", "kind", "source", "record", "rotation", "sample", "teacher", "seed", "temperature"} <= set(record)
        assert record["correct"] and record["reference"]
    choices = [record for record in kept if record["kind"] == "multiple_choice"]
    assert all(record["completion"][0] == record["reference"] and record["margin"] >= 0.05 for record in choices)
    sums = [record for record in kept if record["kind"] == "last_number"]
    assert sums and all(last_number(record["reference"]) == record["answer"] for record in sums)


def test_shots_stand_before_a_question_and_are_not_learnt(write, teacher):
    _, folder = write([SUMS | dict(shots=2), CHOICE | dict(shots=1)])
    kept = lines(folder / "records.jsonl")
    assert {record["kind"] for record in kept} == {"last_number", "multiple_choice"}
    before = {}
    for record in kept:
        *shots, user, reply = record["messages"]
        assert (user["content"], reply) == (record["prompt"], {"role": "assistant", "content": record["completion"]})
        assert len(shots) == (4 if record["kind"] == "last_number" else 2)
        assert [turn.get("weight", 1) for turn in shots] == [1, 0] * (len(shots) // 2)
        assert record["prompt"] not in [turn["content"] for turn in shots]
        before.setdefault((record["source"], record["record"]), []).append([turn["content"] for turn in shots])
    assert all(each == group[0] for group in before.values() for each in group)  # under all rotations the same
    assert len({str(group[0]) for group in before.values()}) > 1
    # The teacher saw them: its reply is the one to the whole conversation.
    model, tokenizer = teacher
    turns = [{key: turn[key] for key in ("role", "content")} for turn in kept[0]["messages"]]
    (prompt,) = render_prompts(tokenizer, [turns[:-1]])
    (reply,) = generate(model, tokenizer, [prompt.ids], 48)
    assert reply.text == turns[-1]["content"]


def test_a_prompt_with_an_evaluation_item_among_its_shots_is_left_out(write, tmp_path):
    planted = "How many apples are left of the forty-one that grew in the garden behind the old mill this year?"
    others = [f"What is {n} + {n}?" for n in range(10, 13)]
    paths = {"asked": [planted, *others], "tested": [planted, "How many pears are left of those that grew there?"]}
    for name, questions in paths.items():
        lines = [json.dumps(dict(question=each, answer=f"#### {n}")) for n, each in enumerate(questions)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sums = dict(kind="last_number", path=str(tmp_path / "asked.jsonl"))
    tasks = {"tested": make_task(kind="last_number", path=str(tmp_path / "tested.jsonl"))}
    with pytest.raises(UserError, match="none of 4 prompts is left: {'duplicate': 0, 'overlap': 4}"):
        write([sums | dict(shots=3)], tasks)  # each shows all the others
    with pytest.raises(UserError, match="4 shots are asked for, and there are 4 questions with answers"):
        write([sums | dict(shots=4)])
    with pytest.raises(ValidationError, match="shots are for questions with known answers .*, not for instruction"):
        write([dict(kind="instruction", path="x", shots=1)])


def test_every_data_set_of_the_axis_comes_from_the_same_prompts(write, teacher, tmp_path):
    _, folder = write([SUMS, CHOICE])
    path = str(folder / "records.jsonl")
    written = Source(path=path, messages="messages", epochs=99)
    truth = Source(path=path, prompt="prompt", completion="reference", epochs=99)
    plain = Source(path="embedded:text")
    menu = {"teacher-written": [written], "ground truth": [truth], "mixed": [written, plain]}
    for name, sources in menu.items():
        loss_on = "all" if name == "mixed" else "completion"
        settings = dict(sequence_length=128, tokens=1280, loss_on=loss_on, seed=0, cache=tmp_path / "cache")
        assert prepare(sources, teacher[1], **settings).stats["loss_tokens"] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_killed_and_gone_on_gives_the_same_records(write, monkeypatch, temperature):
    sampling = {"temperature": temperature, "samples": 2 if temperature else 1}
    write([FACTS, SUMS], folder="whole", **sampling)
    generate, finished = run._generate_batch, []

    def killed(*arguments):
        if len(finished) == 1:
            raise KeyboardInterrupt
        finished.append(generate(*arguments))
        return finished[-1]

    with monkeypatch.context() as patch:
        patch.setattr(run, "_generate_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            write([FACTS, SUMS], folder="parts", **sampling)
    _, parts = write([FACTS, SUMS], folder="parts", **sampling)
    whole = parts.parent / "whole"
    for name in ("replies.jsonl", "records.jsonl", "rejected.jsonl"):
        assert (parts / name).read_text() == (whole / name).read_text()


def test_a_damaged_reply_is_written_again(write):
    _, folder = write([FACTS])
    whole = {name: (folder / name).read_bytes() for name in ("replies.jsonl", "records.jsonl")}
    for change in (1, 255):
        data = bytearray(whole["replies.jsonl"])
        data[data.index(b'"reply": "') + 11] ^= change
        (folder / "replies.jsonl").write_bytes(data)
        (folder / "stats.json").unlink()
        write([FACTS])
        assert {name: (folder / name).read_bytes() for name in whole} == whole
        assert damage_of(folder) is None


def test_half_a_line_of_a_killed_run_is_cut_off(write):
    _, folder = write([FACTS])
    whole = (folder / "replies.jsonl").read_text()
    (folder / "replies.jsonl").write_text(whole[: len(whole) // 2])
    (folder / "stats.json").unlink()
    write([FACTS])
    assert (folder / "replies.jsonl").read_text() == whole


def test_a_planted_evaluation_item_is_left_out(write, tmp_path):
    planted = list(records("facts"))[3]["question"]
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        json.dumps({"prompt": planted.upper()}) + "\n" + json.dumps({"prompt": "What do you know about bread?"}) + "\n"
    )
    stats, folder = write([dict(kind="instruction", path=str(asked))], tasks=TASKS, min_new_tokens=1)
    assert stats["left_out"] == {"duplicate": 0, "overlap": 1}
    everything = (folder / "replies.jsonl").read_text().casefold()
    assert planted.casefold() not in everything and stats["replies"] == 1
    with pytest.raises(UserError, match="none of 8 prompts is left: {'duplicate': 0, 'overlap': 8}"):
        write([FACTS], tasks=TASKS, folder="all")


def test_continuations_are_plain_text_that_goes_on_from_its_start(write):
    prompts = [dict(kind="continuation", path="embedded:text", records=5, prompt_tokens=6)]
    _, folder = write(prompts, temperature=1.0, max_new_tokens=12, min_new_tokens=4)
    for record in lines(folder / "records.jsonl"):
        assert record["text"].startswith(record["reference"][:10])


def test_samples_differ_and_equal_ones_are_kept_once(write):
    stats, folder = write([dict(FACTS, records=3)], samples=4, temperature=2.5, known_answer=False)
    replies = lines(folder / "replies.jsonl")
    assert stats["replies"] == 12 and len({reply["reply"] for reply in replies}) > 3
    kept = [(record["prompt"], record["completion"]) for record in lines(folder / "records.jsonl")]
    assert len(kept) == len(set(kept))


def test_refuses(write, tmp_path):
    with pytest.raises(UserError, match=r"Lower max_new_tokens or leave that prompt out"):
        write([FACTS], max_new_tokens=100_000)
    with pytest.raises(UserError, match=r"no reply passed the checks: \d+ too_short"):
        write([FACTS], min_new_tokens=47, folder="short")
    write([FACTS], folder="one")
    with pytest.raises(UserError, match=r"holds replies made with other prompts, settings\. Delete the folder"):
        write([SUMS], folder="one", max_new_tokens=40)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": " "}\n')
    with pytest.raises(UserError, match=r"record 0: field 'prompt' should be a text, it is ' '"):
        write([dict(kind="instruction", path=str(empty))])
    with pytest.raises(UserError, match=r"record 0: no field 'ask'; it has: prompt"):
        write([dict(kind="instruction", path=str(empty), prompt="ask")])
    with pytest.raises(UserError, match=r"embedded:text: 10000000 records are asked for, there are 20000"):
        write([dict(kind="continuation", path="embedded:text", records=10_000_000)])
