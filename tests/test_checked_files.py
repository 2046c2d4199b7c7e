"""Files that are checked when they are read: whichever byte changes, nothing else is read for what was written."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from gendistill.errors import UserError
from gendistill.files import (
    SUMS,
    checked_line,
    damage_of,
    folder_in_one_piece,
    read_checked_line,
    read_hashed_json,
    seal,
    write_hashed_json,
)

RECORD = {"text": 'ä, "crc32": "', "numbers": [1, 2.5], "none": None}


def flipped(data):
    """The data with each of its bytes changed in turn, by one bit, by another, and by all."""
    for place in range(len(data)):
        for change in (1, 32, 255):
            yield data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


def test_a_line_with_a_changed_byte_is_no_line():
    line = checked_line(RECORD).encode()
    assert line.count(b"\n") == 1
    assert read_checked_line(line.removesuffix(b"\n")) == RECORD
    damaged = [*flipped(line[:-1]), *(line[:end] for end in range(len(line) - 1)), b"", b"{}", b'{"text": "x"}']
    assert [data for data in damaged if read_checked_line(data) is not None] == []


def test_json_with_a_changed_byte_is_refused_unless_it_says_the_same(tmp_path):
    path = tmp_path / "values.json"
    write_hashed_json(path, RECORD)
    assert read_hashed_json(path) == RECORD
    whole, refused = path.read_bytes(), 0
    for data in flipped(whole):
        path.write_bytes(data)
        try:
            read = read_hashed_json(path)
        except UserError:
            refused += 1
        else:  # the name of the hash, or a blank
            assert {name: read.get(name) for name in RECORD} == RECORD
    assert refused > 2 * len(whole)


@pytest.mark.parametrize("content", ["", "[]", "{", "3", "\xff"])
def test_what_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "values.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"values\.json: is missing or damaged"):
        read_hashed_json(tmp_path / "values.json")


def test_a_full_disk_under_the_tokenizer_is_one_clear_error(tmp_path):
    """tokenizers raises an Exception of no type of its own."""
    refused = pytest.raises(UserError, match=r"student could not be written \(No space left on device.*Free some space")
    with refused, folder_in_one_piece(tmp_path / "student") as partial:
        (partial / "tokenizer.json").symlink_to("/dev/full")
        Tokenizer(BPE()).save(str(partial / "tokenizer.json"))
    assert list(tmp_path.iterdir()) == []


def test_a_sealing_that_was_killed_does_not_spoil_the_next(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / f"{SUMS}.partial").write_text("half a li")
    seal(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [SUMS, "file"]
    assert damage_of(tmp_path) is None


def test_a_folder_is_sealed_without_what_lies_deeper(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/file").write_text("x")
    (tmp_path / "file").write_text("x")
    seal(tmp_path)
    assert (tmp_path / SUMS).read_text().count("\n") == 1 and damage_of(tmp_path) is None
