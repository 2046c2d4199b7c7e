"""The forms in which people store conversations, and what of them is not learnt and is said so."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from gendistill.data.conversations import Skipped
from gendistill.data.sources import Document, read_documents
from gendistill.errors import UserError
from gendistill.recipe.data import Source

USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}
SYSTEM = {"role": "system", "content": "be short"}


@pytest.fixture
def read(tmp_path):
    def run(*records: dict, **fields) -> list[Document | Skipped | UserError]:
        path = tmp_path / "a.jsonl"
        # The first is sound: a mistake in it would be the recipe's.
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return list(read_documents(Source(path=str(path), **fields)))

    return run


def shared(*said: tuple[str, str]) -> dict:
    return {"c": [{"from": speaker, "value": text} for speaker, text in said]}


def parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


FORMS = [
    ({"messages": "m"}, {"m": [SYSTEM, USER, REPLY]}, [SYSTEM, USER, REPLY]),
    ({"messages": "c"}, shared(("system", "be short"), ("human", "hi"), ("gpt", "ok")), [SYSTEM, USER, REPLY]),
    ({"messages": "c"}, shared(("user", "hi"), ("assistant", "ok")), [USER, REPLY]),
    ({"messages": "m"}, {"m": [{"role": "developer", "content": "be short"}, USER, REPLY]}, [SYSTEM, USER, REPLY]),
    (
        {"messages": "m"},
        {"m": [USER | {"content": parts("h", "i")}, REPLY | {"content": parts("ok")}]},
        [USER, REPLY],
    ),
    ({"messages": "m.list"}, {"m": {"list": [USER, REPLY]}}, [USER, REPLY]),
    ({"messages": "m.list"}, {"m.list": [USER, REPLY]}, [USER, REPLY]),
    ({"prompt": "a.q", "completion": "a.b.r"}, {"a": {"q": "hi", "b": {"r": "ok"}}}, [USER, REPLY]),
    ({"prompt": "p", "completion": "c"}, {"p": [SYSTEM, USER], "c": [REPLY]}, [SYSTEM, USER, REPLY]),
    ({"prompt": "p", "completion": "c"}, {"p": [USER], "c": "ok"}, [USER, REPLY]),
    ({"prompt": "p", "completion": "c"}, {"p": "hi", "c": [REPLY]}, [USER, REPLY]),
    (
        {"prompt": "p", "completion": "c"},  # what stands in a prompt is not learnt
        {"p": [USER, REPLY, USER], "c": [REPLY]},
        [USER, REPLY | {"weight": 0}, USER, REPLY],
    ),
    (
        {"prompt": "p", "input": "i", "completion": "c"},
        {"p": "a", "i": "b", "c": "ok"},
        [USER | {"content": "a\n\nb"}, REPLY],
    ),
    ({"prompt": "p", "input": "i", "completion": "c"}, {"p": "hi", "i": "", "c": "ok"}, [USER, REPLY]),
    ({"prompt": "p", "input": "i", "completion": "c"}, {"p": "hi", "i": None, "c": "ok"}, [USER, REPLY]),
    ({"prompt": "p", "input": "i", "completion": "c"}, {"p": "hi", "c": "ok"}, [USER, REPLY]),
    (
        {"messages": "m"},
        {"m": [USER, REPLY | {"weight": 0}, USER, REPLY | {"weight": 1.0}]},
        [USER, REPLY | {"weight": 0}, USER, REPLY | {"weight": 1}],
    ),
    ({"messages": "m"}, {"m": [USER, REPLY | {"content": "", "weight": 0}, USER, REPLY]}, None),  # teaches nothing
]


@pytest.mark.parametrize(("fields", "record", "expected"), FORMS)
def test_forms(read, fields, record, expected):
    (document,) = read(record, **fields)
    assert isinstance(document, Document) and not document.ignored
    assert expected is None or document.content == expected


@pytest.mark.parametrize(("fields", "record", "expected"), FORMS)
def test_forms_in_parquet(tmp_path, fields, record, expected):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    (document,) = read_documents(Source(path=str(tmp_path / "a.parquet"), **fields))
    assert isinstance(document, Document) and not document.ignored
    assert expected is None or document.content == expected


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
PICTURE = {"type": "image_url", "image_url": {"url": "http://x"}}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER, REPLY | {"content": ""}], "empty reply"),
        ([USER, REPLY | {"content": " \n\t\u3000"}], "empty reply"),
        ([USER, REPLY | {"content": None}], "empty reply"),
        ([USER, REPLY | {"content": "\u200b\ufeff \u200d"}], "empty reply"),
        ([USER, REPLY | {"content": []}], "empty reply"),
        ([USER, REPLY | {"content": parts("", " ")}], "empty reply"),
        ([USER, REPLY | {"content": ""}, USER, REPLY], "empty reply"),
        ([USER, CALL], "tool calls"),
        ([USER, CALL | {"content": "I add."}, {"role": "tool", "content": "4"}, REPLY], "tool calls"),
        ([USER, REPLY | {"function_call": {"name": "add"}}], "tool calls"),
        ([USER, {"role": "tool", "content": "4"}, REPLY], "tool calls"),
        ([USER, REPLY | {"content": [{"type": "tool_use", "name": "add"}]}], "tool calls"),
        ([{"from": "human", "value": "hi"}, {"from": "function_call", "value": "{}"}], "tool calls"),
        ([USER | {"content": [*parts("what is it?"), PICTURE]}, REPLY], "parts other than text"),
        ([USER | {"content": [{"type": "input_audio", "input_audio": {}}]}, REPLY], "parts other than text"),
        ([USER, REPLY | {"weight": 0}], "every reply has weight 0"),
    ],
)
def test_what_is_not_learnt(read, messages, reason):
    (skipped,) = read({"m": messages}, messages="m")
    assert isinstance(skipped, Skipped) and skipped.reason == reason


@pytest.mark.parametrize("completion", ["", "  \n", "\u200b", None, []])
def test_a_completion_that_is_empty(read, completion):
    documents = read({"q": "hi", "a": "ok"}, {"q": "hi", "a": completion}, prompt="q", completion="a")
    assert isinstance(documents[0], Document) and documents[1][1:] == ("empty reply",)


@pytest.mark.parametrize("weight", [0.5, 2, -1, "0", "1", [1]])
def test_other_weights_are_errors(read, weight):
    sound = {"m": [USER, REPLY]}
    _, error = read(sound, {"m": [USER, REPLY | {"weight": weight}]}, messages="m")
    assert "weight is" in str(error) and "message 2" in str(error)


def test_keys_that_are_not_known_are_told(read):
    turn = REPLY | {"name": "x", "train": False, "tool_calls": [], "function_call": None, "audio": None}
    (document,) = read({"m": [USER | {"name": "y"}, turn]}, messages="m")
    assert document.ignored == ("message key 'name'", "message key 'train'")
    assert document.content == [USER, REPLY]


LONG = "It was a long day. " * 40


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ({"input": "Anna has 96 shells."}, True),
        ({"context": "x"}, True),
        ({"source_passage": "x"}, True),
        ({"systemPrompt": "be short"}, True),
        ({"history": [["a", "b"]]}, True),
        ({"whatever": LONG}, True),
        ({"source": LONG}, True),
        ({"answer_choices": ["a", "b"]}, True),
        ({"input": ""}, False),
        ({"input": "  "}, False),
        ({"input": None}, False),
        ({"context": []}, False),
        ({"input_tokens": 17, "prompt_id": "x17", "source": "web", "id": "3"}, False),
        ({"rejected_response": LONG}, False),
        ({"text": f"{LONG} how many\n ok"}, False),  # alpaca's rendered record
        ({"question": "how many"}, False),  # what is used already
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_what_looks_like_part_of_the_prompt_and_is_not_used(read, beside, told, chat):
    fields = {"messages": "m"} if chat else {"prompt": "q", "completion": "a"}
    used = {"m": [USER | {"content": "how many"}, REPLY]} if chat else {"q": "how many", "a": "ok"}
    (document,) = read(used | beside, **fields)
    assert document.ignored == ((f"field '{next(iter(beside))}'",) if told else ())


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        ({"q": "hi"}, {"prompt": "q", "completion": "a"}, "no field 'a'; the record has: q"),
        ({"q": "hi", "a": 3}, {"prompt": "q", "completion": "a"}, "should be a string or a list"),
        ({"a": {"b": 3}}, {"text": "a.b"}, "field 'a.b' should be a string"),
        ({"a": {"c": 3}}, {"text": "a.b"}, "no field 'a.b'; the record has: a"),
        ({"a": "b"}, {"text": "a.b"}, "no field 'a.b'"),
        ({"p": [USER], "c": "ok", "i": "x"}, {"prompt": "p", "completion": "c", "input": "i"}, "goes below a prompt"),
        (shared(("human", "hi"), ("martian", "ok")), {"messages": "c"}, "unknown role 'martian'; roles are .*gpt"),
        ({"m": [USER, REPLY | {"content": [{"text": "x"}]}]}, {"messages": "m"}, "part 1: no field 'type'"),
        ({"p": [], "c": [REPLY]}, {"prompt": "p", "completion": "c"}, "the assistant speaks before the user"),
    ],
)
def test_malformed(read, record, fields, message):
    with pytest.raises(UserError, match=message):
        read(record, **fields)


def test_input_needs_a_prompt():
    with pytest.raises(ValueError, match="'input' goes below a 'prompt'"):
        Source(path="a.jsonl", input="input")
