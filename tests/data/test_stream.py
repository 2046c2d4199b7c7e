"""What is left out of a source on the way to packed sequences: counted by its reason, shown, and kept."""

import json
import threading

import pytest

from gendistill.data import readers, stream
from gendistill.data.dataset import PackedDataset, prepare
from gendistill.data.encoding import Encoder
from gendistill.errors import UserError
from gendistill.recipe.data import Source

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = {"role": "user", "content": "hi"}


@pytest.fixture
def prepared(tmp_path, make_tokenizer):
    def run(records: list[dict] | str, name: str = "a.jsonl", **settings) -> PackedDataset:
        path = tmp_path / name
        path.write_text(records if isinstance(records, str) else "".join(json.dumps(each) + "\n" for each in records))
        chat = "prompt" in settings or "messages" in settings
        names = {name: settings.pop(name) for name in list(settings) if name in Source.model_fields}
        defaults = {
            "sequence_length": 64,
            "tokens": 64 * 4,
            "loss_on": "completion" if chat else "all",
            "seed": 0,
            "cache": tmp_path / "cache",
        }
        return prepare([Source(path=str(path), **names)], make_tokenizer(CHATML), **(defaults | settings))

    return run


def messages(reply: str, **more) -> dict:
    return {"m": [ASKED, {"role": "assistant", "content": reply} | more]}


def test_what_is_skipped_is_counted_by_reason_and_shown(prepared, caplog):
    records = [messages("ok")] * 20 + [messages("")] * 3 + [messages("x", tool_calls=[{"name": "y"}])] * 2
    data = prepared(records, messages="m", epochs=9)
    (counts,) = data.stats["sources"]
    passes = counts["read"] / len(records)
    assert counts["reasons"].keys() == {"empty reply", "tool calls"}
    assert counts["skipped"] == sum(counts["reasons"].values()) >= 5
    assert counts["reasons"]["empty reply"] == pytest.approx(3 * passes, abs=3)
    assert caplog.text.count("empty reply") == 2  # the first one, and the number of all of them
    assert "a.jsonl:21: empty reply" in caplog.text and "a.jsonl:24: tool calls" in caplog.text
    assert f"{counts['reasons']['empty reply']:,} empty reply" in caplog.text


def test_empty_replies_are_never_learnt(prepared, make_tokenizer):
    records = [{"q": f"say {number}", "a": str(number) if number % 3 else ""} for number in range(60)]
    data = prepared(records, prompt="q", completion="a", epochs=9)
    tokenizer = make_tokenizer()
    shown = tokenizer.decode(data[:]["input_ids"].flatten())
    learnt = [number for number in range(60) if f"say {number}<|im_end|>" in shown]
    assert learnt and all(number % 3 for number in learnt)


def test_what_is_not_used_is_told_once_and_kept(prepared, caplog):
    records = [{"q": "add them", "a": "ok", "input": f"{number} and 3" if number % 2 else ""} for number in range(40)]
    data = prepared(records, prompt="q", completion="a", epochs=9)
    (counts,) = data.stats["sources"]
    assert 0 < counts["ignored"]["field 'input'"] < counts["read"]
    assert caplog.text.count("looks like part of the prompt and is not used") == 1
    assert "a.jsonl:2: field 'input'" in caplog.text
    caplog.clear()
    used = prepared(records, prompt="q", completion="a", input="input", epochs=9)
    assert used.key != data.key and not used.stats["sources"][0]["ignored"] and "input" not in caplog.text


def test_a_key_of_a_message_is_told(prepared, caplog):
    data = prepared([messages("ok", loss=False)] * 20, messages="m", epochs=9)
    assert data.stats["sources"][0]["ignored"]["message key 'loss'"] > 0
    assert "message key 'loss' is not known and passed over" in caplog.text


def test_few_records_that_can_be_learnt_are_learnt(prepared):
    records = [messages("")] * 30 + [messages("ok")] * 5
    data = prepared(records, messages="m", epochs=100)
    assert data.stats["sources"][0]["reasons"]["empty reply"] > 30


def test_a_source_of_nothing_else_is_refused(prepared, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_RECORDS", 1000)
    with pytest.raises(UserError, match="none of its 5000 records can be trained on: 5,000 empty reply"):
        prepared([messages("")] * 5000, messages="m")
    with pytest.raises(UserError, match="1000 of 1000 documents were skipped: 1,000 empty text"):  # read no further
        prepared([{"text": ""}] * 5000)


def test_tokens_of_a_text_that_was_divided(prepared, monkeypatch, make_tokenizer):
    """All of its tokens, in any order, and one end of text."""
    text = "".join(f"word{number} " for number in range(400))
    tokenizer = make_tokenizer()
    tokens = len(tokenizer.encode(text)) + 1
    text += "x" * (-tokens % 64)
    expected = [*tokenizer.encode(text), tokenizer.eos_token_id]
    monkeypatch.setattr(readers, "TEXT_CHARACTERS", 300)
    monkeypatch.setattr(readers, "CUT_WITHIN", 30)
    data = prepared(text, "a.txt", tokens=len(expected))
    assert sorted(data[:]["input_ids"].flatten()) == sorted(expected)


def test_documents_by_line(prepared):
    text = "".join(f"line {number}\n" for number in range(40))
    data = prepared(text, "a.txt", documents="line", epochs=9)
    assert data.stats["documents"] > 20
    with pytest.raises(ValueError, match="documents"):
        Source(path="a.txt", documents="page")


def test_the_next_records_are_read_while_the_tokenizer_works(prepared, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_DOCUMENTS", 10)
    read, encode, begun = stream.read_documents, Encoder.texts, threading.Event()

    def watched(*arguments):
        for number, document in enumerate(read(*arguments)):
            if number == 10:  # the first of the second window
                begun.set()
            yield document

    def waiting(encoder, documents):
        assert begun.wait(timeout=10)
        return encode(encoder, documents)

    monkeypatch.setattr(stream, "read_documents", watched)
    monkeypatch.setattr(Encoder, "texts", waiting)
    assert len(prepared([{"text": f"some words {number}"} for number in range(100)])) == 4


def test_settings_that_are_not_given_are_not_in_the_key(prepared):
    records = [{"text": "abc"}] * 100
    assert prepared(records).key == prepared(records, documents="file", input=None).key
