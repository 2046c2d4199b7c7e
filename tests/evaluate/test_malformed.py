"""Records that cannot be items, and names of splits."""

import importlib.util
import json

import pytest

from gendistill.errors import MissingPackage, UserError
from gendistill.evaluate.items import load_counted, load_items
from gendistill.recipe.evaluation import make_task

GOOD = {"question": "Where is it?", "answer": "Rome"}
# A line of JSON each, none of which can be an item.
MALFORMED = {
    "an answer without a word": '{"question": "x", "answer": ["---"]}',
    "no such field": '{"query": "x", "answer": "y"}',
    "half a surrogate pair": r'{"question": "x \ud83d y", "answer": "z"}',
    "half a surrogate pair in an answer": r'{"question": "x", "answer": ["z", "q\udc00"]}',
    "no JSON": '{"question": ',
    "no record": "[1, 2]",
}


@pytest.mark.parametrize("bad", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_record_is_counted_shown_and_skipped(tmp_path, caplog, bad):
    path = tmp_path / "short.jsonl"
    good = [json.dumps(GOOD | {"answer": answer}) for answer in ("Rome", "Paris", "Oslo", "Bern")]
    path.write_text("\n".join([good[0], bad, *good[1:]]))
    task = make_task(kind="short_answer", path=str(path))
    loaded = load_counted("t", task, seed=0)
    assert ([item.id for item in loaded.items], loaded.malformed) == ([0, 2, 3, 4], 1)
    assert "skipped: " in caplog.text and "1 of 5 records skipped as malformed" in caplog.text
    with pytest.raises(UserError):  # none may be
        load_items("t", task.model_copy(update={"skip_malformed": 0}), seed=0)
    path.write_text("\n".join([bad, *good]))  # the first: the task's mistake
    with pytest.raises(UserError):
        load_items("t", task, seed=0)


def test_accepted_answers_without_a_word_are_left_out_and_counted(write_records, caplog):
    records = [GOOD | {"answer": answers} for answers in (["---", "Rome", "?"], ["Oslo"], ["...", "Bern"], ["Paris"])]
    loaded = load_counted("t", make_task(kind="short_answer", path=write_records("short.jsonl", records)), seed=0)
    assert [item.answers for item in loaded.items] == [("Rome",), ("Oslo",), ("Bern",), ("Paris",)]
    assert loaded.malformed == 0  # the records are sound
    assert "3 accepted answers without a word left out" in caplog.text
    assert all("---" not in item.candidates for item in loaded.items)


def test_a_number_that_python_does_not_convert_is_an_error_of_its_record(tmp_path):
    path = tmp_path / "sums.jsonl"
    records = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(6)]
    records.insert(3, {"question": "?", "answer": "9" * 1_000_000})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    loaded = load_counted("t", make_task(kind="last_number", path=str(path)), seed=0)
    assert len(loaded.items) + loaded.malformed == 7


@pytest.mark.parametrize(("bad", "allowed"), [(3, 2), (5, 100)])
def test_more_malformed_records_than_allowed_are_an_error(write_records, bad, allowed):
    path = write_records("short.jsonl", [GOOD] * 10 + [{"question": "x", "answer": "--"}] * bad)
    with pytest.raises(UserError, match=f"{bad} of {10 + bad} records are malformed; skip_malformed allows {allowed}"):
        load_items("t", make_task(kind="short_answer", path=path, skip_malformed=allowed), seed=0)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
@pytest.mark.parametrize("asked", ["val", "valid", "validation", "dev"])
def test_validation_splits_by_any_of_their_names(tmp_path, name, asked):
    lines = "".join(json.dumps({"question": word, "answer": word}) + "\n" for word in ("a b", "c d", "e f", "g h"))
    (tmp_path / f"{name}-00000.jsonl").write_text(lines)
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD))
    task = make_task(kind="short_answer", path=str(tmp_path), split=asked)
    assert len(load_items("t", task, seed=0)) == 4


def test_of_two_validation_splits_the_one_that_is_asked_for(tmp_path):
    for name, count in (("dev", 4), ("val", 5)):
        lines = [json.dumps({"question": f"w{n}", "answer": f"w{n}"}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    tasks = {name: make_task(kind="short_answer", path=str(tmp_path), split=name) for name in ("dev", "val")}
    assert [len(load_items("t", task, seed=0)) for task in tasks.values()] == [4, 5]


def test_a_missing_package_is_no_records_fault(write_records, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    record = {"question": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    needs = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "de"}]}
    task = make_task(kind="instructions", path=write_records("ifeval.jsonl", [record] * 30 + [record | needs]))
    with pytest.raises(MissingPackage, match=r"record 30 of .*langdetect.*pip install 'gendistill\[eval\]'"):
        load_items("t", task, seed=0)
