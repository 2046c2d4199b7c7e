import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from gendistill.data.sources import read_documents, read_records
from gendistill.errors import UserError
from gendistill.recipe.data import Source

RECORDS = [{"text": "één", "n": 1}, {"text": "two\n\nlines", "n": 2}]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]


def write(path, content: str | bytes):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(records) -> str:
    return "\n".join(json.dumps(record) for record in records) + "\n"


@pytest.fixture
def stored(tmp_path):
    """The same records in each format."""
    write(tmp_path / "a.jsonl", "\ufeff" + lines(RECORDS) + "\n")
    write(tmp_path / "a.jsonl.gz", gzip.compress(lines(RECORDS).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_formats_hold_the_same_records(stored, name):
    assert list(read_records(Source(path=str(stored / name)))) == RECORDS


def test_text_file_is_one_document(tmp_path):
    path = write(tmp_path / "book.txt", "one\n\ntwo\n")
    assert list(read_records(Source(path=str(path), text="body"))) == [{"body": "one\n\ntwo\n"}]


def test_conversations_from_messages_and_from_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", lines([{"m": [TALK[0] | {"name": "x"}, TALK[1]], "q": "hi", "a": "ok"}]))
    for fields in ({"messages": "m"}, {"prompt": "q", "completion": "a"}):
        (document,) = read_documents(Source(path=str(path), **fields))
        assert document.content == TALK
        assert document.where == f"{path}:1"


def test_messages_of_a_parquet_file(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"m": TALK}]), tmp_path / "a.parquet")
    (document,) = read_documents(Source(path=str(tmp_path / "a.parquet"), messages="m"))
    assert document.content == TALK


def truncated_gzip() -> bytes:
    whole = gzip.compress(lines([{"text": str(number)} for number in range(1000)]).encode())
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.docx", "x", r"a\.docx: unknown kind of file; known: \.txt, \.jsonl, \.json, \.csv, \.tsv .*, \.parquet"),
        ("a.txt", " \n", r"a\.txt: no records"),
        ("a.txt", b"\xff\xfe", r"a\.txt: not UTF-8"),
        ("a.jsonl", "\n\n", r"a\.jsonl: no records"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y"\n', r"a\.jsonl:3: not JSON: .* at column \d+"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", '["text"]\n', r"a\.jsonl:1: a record is an object .* a list"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"body": "x", "id": 1}\n',
            r"a\.jsonl:2: no field 'text'; the record has: body, id",
        ),
        ("a.jsonl", '{"text": 3}\n', r"a\.jsonl:1: field 'text' should be a string, this is a int"),
        ("a.jsonl", '{"text": null}\n', r"a\.jsonl:1: field 'text' should be a string, this is null"),
        ("a.jsonl", '{"text": "ab\\ud83d"}\n', r"a\.jsonl:1: field 'text': half a surrogate pair at character 2"),
        ("a.jsonl.gz", truncated_gzip(), r"a\.jsonl\.gz: damaged gzip file after line \d+"),
        ("a.jsonl.gz", "plain", r"a\.jsonl\.gz: damaged gzip file after line 0"),
        ("a.parquet", "PAR1 not really", r"a\.parquet: damaged or not a Parquet file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        for document in read_documents(Source(path=str(path))):
            if isinstance(document, UserError):  # a later record, which the reader may skip
                raise document


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "'m' should be a list, this is a str"),
        ([], "there are no messages"),
        (["hi"], "message 1: should be an object"),
        ([TALK[0], {"role": "assistant"}], "message 2: no field 'content'; the record has: role"),
        ([{"role": "user", "content": 3}, TALK[1]], "message 1: field 'content' should be a string or a list"),
        ([{"role": "user", "content": ["hi"]}, TALK[1]], "message 1: field 'content': part 1: should be an object"),
        ([{"role": "human", "content": "hi"}, TALK[1]], "unknown role 'human'; roles are system, user, assistant"),
        ([TALK[1]], "the assistant speaks before the user"),
        ([*TALK, TALK[0]], "the last turn is the user's"),
    ],
)
def test_bad_conversations(tmp_path, messages, message):
    path = write(tmp_path / "a.jsonl", lines([{"m": messages}]))
    with pytest.raises(UserError, match=rf"a\.jsonl:1.*{message}"):
        list(read_documents(Source(path=str(path), messages="m")))


def test_what_a_path_may_be(tmp_path):
    def texts(path, split=None):
        return [record["text"] for record in read_records(Source(path=str(path), split=split))]

    write(tmp_path / "LICENSE_NOTE.txt", "not data")
    write(tmp_path / "b.jsonl", lines([{"text": "b"}]))
    write(tmp_path / "a.txt", "a")
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep/c.jsonl.gz", gzip.compress(lines([{"text": "c"}]).encode()))
    assert texts(tmp_path) == ["a", "b", "c"]
    assert texts(tmp_path / "*.jsonl") == ["b"]
    assert texts(tmp_path / "**/*.jsonl*") == ["b", "c"]
    assert texts(tmp_path / "deep") == ["c"]

    splits = tmp_path / "splits"
    (splits / "validation").mkdir(parents=True)
    write(splits / "train-00000-of-00002.jsonl", lines([{"text": "t0"}]))
    write(splits / "train-00001-of-00002.jsonl", lines([{"text": "t1"}]))
    write(splits / "test.jsonl.gz", gzip.compress(lines([{"text": "x"}]).encode()))
    write(splits / "validation/part.txt", "v")
    assert texts(splits, "train") == ["t0", "t1"]
    assert texts(splits, "test") == ["x"]
    assert texts(splits, "validation") == ["v"]
    with pytest.raises(UserError, match=r"holds the splits test, train, validation; say which one by split: NAME"):
        texts(splits)
    assert texts(splits, "dev") == ["v"]  # by another of its names
    with pytest.raises(UserError, match=r"no split 'extra'; it holds test, train, validation"):
        texts(splits, "extra")
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file, and no file matches"):
        texts(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file of a known kind in this folder"):
        texts(tmp_path / "empty")


def test_hub_without_the_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if not installed, wherever the test runs
    with pytest.raises(UserError, match=r'hub:some/set.*pip install "gendistill\[hub\]"'):
        list(read_records(Source(hub="some/set")))
