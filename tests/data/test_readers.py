"""Every form of file, in bounded pieces, and records that may not spoil the others."""

import csv
import gzip
import json
import subprocess
import sys
from datetime import datetime

import pyarrow
import pyarrow.parquet
import pytest

from gendistill.data import readers, unpacking
from gendistill.data.conversations import Skipped
from gendistill.data.sources import Document, read_documents, read_records
from gendistill.errors import UserError
from gendistill.recipe.data import Source

RECORDS = [{"text": 'één, "two"', "n": "1"}, {"text": "two\n\nlines\t", "n": ""}]


def packed(content: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(content)
    return pyarrow.compress(content, "zstd", asbytes=True) if suffix.endswith(".zst") else content


def written(form: str, folder) -> bytes:
    if form in (".csv", ".tsv"):
        with open(folder / "plain", "w", newline="") as file:
            table = csv.DictWriter(file, ["text", "n"], delimiter="," if form == ".csv" else "\t")
            table.writeheader()
            table.writerows(RECORDS)
        return (folder / "plain").read_bytes()
    if form == ".json":
        return json.dumps(RECORDS, indent=1).encode()
    return "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv", ".tsv"])
def test_each_form_holds_the_same_records(tmp_path, form, packing):
    path = tmp_path / f"a{form}{packing}"
    path.write_bytes(packed(written(form, tmp_path), packing))
    assert list(read_records(Source(path=str(path)))) == RECORDS


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        "\ufeff" + json.dumps(RECORDS, indent=2),
        json.dumps({"version": "1", "data": RECORDS, "notes": ["x"]}),
        json.dumps({"version": "1", "data": RECORDS}, indent=2),
        json.dumps({"examples": RECORDS}),
        "\n".join(map(json.dumps, RECORDS)),  # lines under another name
    ],
)
def test_what_a_json_file_may_be(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert list(read_records(Source(path=str(tmp_path / "a.json")))) == RECORDS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": [1], "b": [2]}', "an array of records, or an object with one such array"),
        ("a.json", "3", "an array of records"),
        ("a.json", "[{]", "not JSON"),
        ("a.json", "[]", "no records"),
        ("a.json", "", "no records"),
        ("a.csv", "text,text\nx,y\n", "names a field twice"),
        ("a.csv", "", "no records"),
        ("a.csv", b"text\n\xff\n", "not UTF-8"),
        ("a.jsonl.zst", "plain", "damaged zstd file after line 0"),
        ("a.csv.gz", "plain", "damaged gzip file"),
        ("a.txt.gz", "plain", "damaged gzip file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        list(read_documents(Source(path=str(tmp_path / name))))


def kinds(source: Source) -> list[type]:
    return [type(document) for document in read_documents(source)]


@pytest.mark.parametrize(
    "bad",
    [
        '{"text": "x", "id": ' + "7" * 5000 + "}",
        '{"text": "x", "id": [-' + "7" * 5000 + "]}",
        "[" * 200_000 + "]" * 200_000,
        '{"text": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001,
        '{"text": "\\ud800"}',
        '{"te\\ud800xt": "x"}',
        "3",
        '"text"',
        "NaN",
        '{"text": "x"',
        "\x00",
        '{"text": "' + "x" * 3000 + '"}',
    ],
    ids=lambda bad: bad[:20],
)
def test_one_record_is_one_error(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(readers, "RECORD_BYTES", 2000 if "xxx" in bad else 2**26)
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{bad}\n{{"text": "two"}}\n')
    documents = list(read_documents(Source(path=str(path))))
    assert [type(document) for document in documents] == [Document, UserError, Document]
    assert f"{path}:2" in str(documents[1])
    str(documents[1]).encode()  # can be shown


def test_an_integer_that_nobody_asked_for_spoils_no_json_file(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a", "id": ' + "7" * 5000 + '}, {"text": "b"}]')
    assert kinds(Source(path=str(tmp_path / "a.json"))) == [Document, Document]


@pytest.mark.parametrize("rows", ["one,1\ntwo\nthree,3\n", 'one,1\n"two"x,2\nthree,3\n', "one,1\ntwo,2,3\nthree,3\n"])
def test_one_row_of_a_table_is_one_error(tmp_path, rows):
    (tmp_path / "a.csv").write_text("text,n\n" + rows)
    documents = list(read_documents(Source(path=str(tmp_path / "a.csv"))))
    assert [type(document) for document in documents] == [Document, UserError, Document]
    assert "a.csv:3" in str(documents[1])


def test_a_quote_that_is_not_closed_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\none,1\n"two,2\nthree,3\n')
    assert kinds(Source(path=str(tmp_path / "a.csv"))) == [Document, UserError]


def test_parquet_columns_that_are_not_asked_for_are_not_read(tmp_path):
    odd = pyarrow.array([0, 2**62, -(2**62)], pyarrow.timestamp("us"))
    text = pyarrow.array(["a", "b", "c"])
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "when": odd, "in": text}), path)
    assert kinds(Source(path=str(path))) == [Document] * 3
    assert [record["text"] for record in read_records(Source(path=str(path)))] == ["a", "b", "c"]
    with pytest.raises(UserError, match="no field 'body'; the record has: text, in"):
        list(read_documents(Source(path=str(path), text="body")))


def test_a_parquet_value_that_cannot_be_read_is_one_error(tmp_path):
    struct = pyarrow.array([{"a": 0}, {"a": 2**62}], pyarrow.struct([("a", pyarrow.timestamp("us"))]))
    names = {"text": pyarrow.array(["a", "b"]), "meta": struct}
    pyarrow.parquet.write_table(pyarrow.table(names), tmp_path / "a.parquet")
    records = read_records(Source(path=str(tmp_path / "a.parquet")))
    assert next(records) == {"text": "a", "meta": {"a": datetime(1970, 1, 1)}}
    with pytest.raises(UserError, match="a value that cannot be read"):
        next(records)


def test_a_gzip_that_unpacks_without_end_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "RECORD_BYTES", 2**16)
    monkeypatch.setattr(readers, "JSON_BYTES", 2**22)
    for name in ("a.jsonl.gz", "a.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"0" * 2**24))
        with pytest.raises(UserError, match="more than|as one JSON value"):
            list(read_documents(Source(path=str(tmp_path / name))))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b'text\n"' + b"0" * 2**24))
    with pytest.raises(UserError, match="field larger than field limit"):
        list(read_documents(Source(path=str(tmp_path / "a.csv.gz"))))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("form", ["file", "line", "paragraph", ".jsonl", ".csv"])
@pytest.mark.parametrize("line", [b"\n", b"a\n", b"  \n\n"])
def test_short_and_blank_lines_without_end_stop_at_a_limit(tmp_path, monkeypatch, packing, form, line):
    monkeypatch.setattr(unpacking, "UNPACKED_BYTES", 2**16)
    monkeypatch.setattr(unpacking, "BLOCK", 2**14)
    path = tmp_path / f"a{form if form.startswith('.') else '.txt'}{packing}"
    path.write_bytes(packed(line * 2**18, packing))
    source = Source(path=str(path)) if form.startswith(".") else Source(path=str(path), documents=form)
    with pytest.raises(UserError, match="unpacks to more than 200 times its size"):
        for located in readers.read_file(path, source, ()):
            assert located


def test_what_text_unpacks_to_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "UNPACKED_BYTES", 2**10)
    text = "".join(f"line {n * n}\n" for n in range(20_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    found = list(read_documents(Source(path=str(tmp_path / "a.txt.gz"), documents="line")))
    assert len(found) == 20_000


TEXT = "\ufeffone\r\ntwo words\r\n\r\n  \nthree\n\n\nfour"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [("one\ntwo words\n\n  \nthree\n\n\nfour", "")]),
        ("paragraph", [("one\ntwo words", ":1"), ("three", ":5"), ("four", ":8")]),
        ("line", [("one", ":1"), ("two words", ":2"), ("three", ":5"), ("four", ":8")]),
    ],
)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_what_of_a_text_is_a_document(tmp_path, documents, expected, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(packed(TEXT.encode(), packing))
    read = list(read_documents(Source(path=str(path), documents=documents)))
    assert [(document.content, document.where.removeprefix(str(path))) for document in read] == expected
    assert all(document.begins and document.ends for document in read)


@pytest.mark.parametrize("documents", ["line", "paragraph"])
def test_a_line_that_is_not_utf8_is_one_error(tmp_path, documents):
    (tmp_path / "a.txt").write_bytes(b"one\n\n\xff\n\ntwo\n")
    assert kinds(Source(path=str(tmp_path / "a.txt"), documents=documents)) == [Document, UserError, Document]


@pytest.mark.parametrize("documents", ["file", "paragraph", "line"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("separator", [" ", "\u3002", "", "   "])
def test_a_long_text_goes_on_in_the_next_document(tmp_path, monkeypatch, documents, name, separator):
    monkeypatch.setattr(readers, "TEXT_CHARACTERS", 100)
    monkeypatch.setattr(readers, "CUT_WITHIN", 30)
    text = separator.join(f"word{number}" for number in range(200))
    (tmp_path / name).write_text(text if name == "a.txt" else json.dumps({"text": text}))
    read = list(read_documents(Source(path=str(tmp_path / name), documents=documents)))
    assert "".join(document.content for document in read) == text
    assert [document.ends for document in read] == [False] * (len(read) - 1) + [True]
    assert [document.begins for document in read] == [True] + [False] * (len(read) - 1)
    assert max(len(document.content) for document in read) <= 100
    assert all(len(document.content) >= 60 for document in read[:-1])
    if separator.isspace():
        assert all(document.content.startswith(separator) for document in read[1:])  # words stay whole


def test_long_paragraphs_go_on_line_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_CHARACTERS", 100)
    monkeypatch.setattr(readers, "CUT_WITHIN", 30)
    (tmp_path / "a.txt").write_text("word word word\n" * 50 + "\nlast\n")
    read = list(read_documents(Source(path=str(tmp_path / "a.txt"), documents="paragraph")))
    assert max(len(document.content) for document in read) <= 100
    assert [document.ends for document in read].count(True) == 2 and read[-1].content == "last"
    assert [document.begins for document in read[1:]] == [document.ends for document in read[:-1]]
    assert "".join(document.content for document in read[:-1]) == "\n".join(["word word word"] * 50)


def test_blank_texts_are_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": ""}\n{"text": " \\n"}\n')
    assert kinds(Source(path=str(tmp_path / "a.jsonl"))) == [Document, Skipped, Skipped]


def test_a_folder_gives_its_data_and_not_what_is_said_about_it(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}]))
    (tmp_path / "b.csv").write_text("text\nb\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "README.txt").write_text("about")
    assert [record["text"] for record in read_records(Source(path=str(tmp_path)))] == ["a", "b"]


@pytest.mark.parametrize(
    ("documents", "line"),
    [
        ("file", "some words of a line\\n"),
        ("file", "some words of no line "),
        ("file", "nothing"),
        ("paragraph", "some words of a line\\n"),
        ("line", "some words of a line that is longer than the others, since it is one document\\n"),
    ],
)
def test_the_memory_of_reading_does_not_grow_with_the_file(tmp_path, documents, line):
    program = f"""
import resource
from gendistill.data.sources import read_documents
from gendistill.recipe.data import Source

def read(megabytes):
    with open(r"{tmp_path}/a.txt", "w") as file:
        for _ in range(megabytes):
            file.write("{line}" * (2**20 // len("{line}")))
    source = Source(path=r"{tmp_path}/a.txt", documents="{documents}")
    size = sum(document.characters for document in read_documents(source))
    assert size > 0.9 * megabytes * 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

first = read(4)
print(read(20) - first)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4  # MiB
