"""Reads the records of one file, whatever its form, in bounded pieces: no file and no record is too large for memory.

What is wrong with one record takes its place as a UserError; what is wrong with the file is raised.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gendistill.data.unpacking import BLOCK, DAMAGED, damaged, opened
from gendistill.errors import UserError
from gendistill.recipe.data import Source

FORMS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES = (*(form + packed for form in FORMS for packed in COMPRESSIONS), ".parquet")  # what `read_file` can read
KNOWN = f"{', '.join(FORMS)} (each also with .gz or .zst behind it), .parquet"
# A longer text continues in another document: only so much is tokenised at a time.
TEXT_CHARACTERS = 500_000
CUT_WITHIN = 10_000  # characters before the bound in which a blank is looked for
# Bytes of one record: a file without line breaks, or one that unpacks without end, would fill the memory.
RECORD_BYTES = 2**26
JSON_BYTES = 2**30  # of a .json, which has to be held whole
INTEGER_DIGITS = 4000  # Python reads no integer of more than 4,300


class Located(NamedTuple):
    """A record and where it stands.

    Attributes:
        where: "file:line" or the like, for error messages.
        record: or the UserError that says why it cannot be read.
        begins: False where its text continues from the one before.
        ends: False where its text continues in the next one.
    """

    where: str
    record: Any
    begins: bool = True
    ends: bool = True


def local_suffix(path: str) -> str | None:
    """The suffix that says how to read a file, or None if it is not one of SUFFIXES."""
    # Not Path.suffix, which of .jsonl.gz sees the end alone.
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), None)


def read_file(path: Path, source: Source, fields: Sequence[str]) -> Iterator[Located]:
    """Yields the records of a file in their order; of a .txt, its documents as records of the source's text field.

    Args:
        path: where it lies.
        source: what it belongs to.
        fields: those that are wanted, where a file can be read by field; none for all.

    Raises:
        UserError: the file is of an unknown kind or damaged.
    """
    suffix = local_suffix(path.name)
    if suffix is None:
        raise UserError(f"{path}: unknown kind of file; known: {KNOWN}. Convert it, or rename it if it is one")
    if suffix == ".parquet":
        return numbered(str(path), _read_parquet(path, source, fields))
    form = "." + suffix.split(".")[1]
    readers: dict[str, Callable[[Path, Source], Iterator[Located]]] = {
        ".txt": _read_text,
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".csv": _read_table,
        ".tsv": _read_table,
    }
    return readers[form](path, source)


def numbered(label: str, records: Iterable[Any]) -> Iterator[Located]:
    """Records with their numbers, from 1, for where they stand."""
    for number, record in enumerate(records, 1):
        yield Located(f"{label}: record {number}", record)


def cut_text(text: str) -> Iterator[tuple[str, bool]]:
    """A text in parts of TEXT_CHARACTERS at most, cut before a blank where there is one, each with "is the last"."""
    while len(text) > TEXT_CHARACTERS:
        cut = _cut_before_blank(text)
        yield text[:cut], False
        text = text[cut:]
    yield text, True


def _cut_before_blank(text: str) -> int:
    """Where to cut a text that is too long: tokenizers take a blank with the word behind it."""
    start = TEXT_CHARACTERS - CUT_WITHIN
    tail = text[start:TEXT_CHARACTERS]
    last = max(tail.rfind(" "), tail.rfind("\n"), tail.rfind("\u3002") + 1)  # Chinese has no blanks
    while last > 0 and tail[last - 1].isspace():  # a run of blanks stays together
        last -= 1
    return start + last if last > 0 else TEXT_CHARACTERS


def _lines(path: Path) -> Iterator[tuple[int, bytes | UserError]]:
    """The numbers and bytes of the lines that are not blank; for one of more than RECORD_BYTES the error."""
    number = 0
    with opened(path) as file:  # in bytes: a line that is not UTF-8 spoils no other
        try:
            while line := file.readline(RECORD_BYTES):
                number += 1
                if len(line) == RECORD_BYTES and not line.endswith(b"\n"):
                    _skip_line(file, path, number)
                    yield number, _too_long(path, number)
                elif not line.isspace():
                    yield number, line
        except DAMAGED as error:
            raise damaged(path, error, f" after line {number}") from None


def _skip_line(file: BinaryIO, path: Path, number: int) -> None:
    """Reads on to the line's end, but not for ever."""
    for _ in range(JSON_BYTES // BLOCK):
        rest = file.readline(BLOCK)
        if not rest or rest.endswith(b"\n"):
            return
    raise _too_long(path, number)


def _too_long(path: Path, number: int) -> UserError:
    return UserError(
        f"{path}:{number}: a line of more than {RECORD_BYTES // 2**20} MiB; is it what its name says? Write one "
        "record a line, and divide what is longer"
    )


def _decoded(line: bytes | UserError, where: str) -> str | UserError:
    if isinstance(line, UserError):
        return line
    try:
        # A file may begin with the mark that some editors put in front.
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8")


def _read_text(path: Path, source: Source) -> Iterator[Located]:
    kinds: dict[str, Callable[[Path], Iterator[Located]]] = {
        "file": _read_whole,
        "line": _read_lines,
        "paragraph": _read_paragraphs,
    }
    for located in kinds[source.documents](path):
        text = located.record
        yield located if isinstance(text, UserError) else located._replace(record={source.text: text})


def _read_whole(path: Path) -> Iterator[Located]:
    """The file as one document, in as many parts as it takes."""
    text, blank, begins = "", True, True
    try:
        with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as characters:
            while more := characters.read(TEXT_CHARACTERS):
                blank = blank and more.isspace()
                *parts, (text, _) = cut_text(text + more)
                for part, _ in parts:
                    yield Located(str(path), part, begins, ends=False)
                    begins = False
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start} of a block); save it as UTF-8"
        ) from None
    if not blank:
        yield Located(str(path), text, begins)


def _read_lines(path: Path) -> Iterator[Located]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        yield Located(where, _decoded(line, where))


def _read_paragraphs(path: Path) -> Iterator[Located]:
    """Runs of lines without a blank one between them; a run that is too long continues in another document."""
    paragraph, size, first, last, begins = [], 0, 0, 0, True
    for number, line in _lines(path):
        goes_on = number == last + 1  # blank lines are not given, but are counted
        if paragraph and (not goes_on or size > TEXT_CHARACTERS):
            yield Located(f"{path}:{first}", "\n".join(paragraph), begins, ends=not goes_on)
            begins = not goes_on
            paragraph = [""] if goes_on else []  # the line break between the two
            first, size = number, 0
        last = number
        text = _decoded(line, f"{path}:{number}")
        if isinstance(text, UserError):
            yield Located(f"{path}:{number}", text)
            continue
        first = first if paragraph else number
        paragraph.append(text)
        size += len(text)
    if paragraph:
        yield Located(f"{path}:{first}", "\n".join(paragraph), begins)


def _read_json_lines(path: Path, source: Source) -> Iterator[Located]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        yield Located(where, line if isinstance(line, UserError) else _parse_json(line, where))


def _parse_json(content: bytes, where: str, parse_int: Callable[[str], Any] | None = None) -> Any:
    """The value of a line or a file, or the UserError that says what is wrong with it."""
    try:
        return json.loads(content, parse_int=parse_int)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
    except json.JSONDecodeError as error:
        # Of a record without its end the error lies behind the line break, in a second line.
        problem = f"not JSON: {error.msg} at column {error.colno} of line {error.lineno}; each record is a JSON object"
    except RecursionError:
        problem = "JSON that is nested too deeply to be read; flatten it"
    except ValueError as error:  # a number of thousands of digits
        problem = f"JSON that cannot be read: {error}"
    return UserError(f"{where}: {problem}")


def _read_json(path: Path, source: Source) -> Iterator[Located]:
    """One array of records, an object with one such array in it ({"data": [...]}), or JSON lines under another name."""
    with opened(path) as file:
        first = file.readline(RECORD_BYTES)
        more = bool(first) and bool(file.read(1))
    # Not an array that stands on one line: that begins with a bracket.
    if more and first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and isinstance(_parse_json(first, ""), dict):
        yield from _read_json_lines(path, source)
        return
    with opened(path) as file:
        content = file.read(JSON_BYTES + 1)
    if len(content) > JSON_BYTES:
        raise UserError(f"{path}: more than {JSON_BYTES // 2**30} GiB as one JSON value; write it as .jsonl")
    value = _parse_json(content, str(path), _short_integer) if content.strip() else []
    if isinstance(value, UserError):
        raise value
    yield from numbered(str(path), _records_of(value, path))


def _short_integer(digits: str) -> int | None:
    """An integer; null for one that Python refuses, which would spoil all records of the file."""
    return int(digits) if len(digits) < INTEGER_DIGITS else None


def _records_of(value: Any, path: Path) -> list:
    if isinstance(value, list):
        return value
    lists = {name: held for name, held in value.items() if isinstance(held, list)} if isinstance(value, dict) else {}
    if "data" in lists:
        return lists["data"]
    if len(lists) == 1:  # whatever it is called
        return next(iter(lists.values()))
    held = f"an object with the lists {', '.join(lists) or '(none)'}" if isinstance(value, dict) else "neither"
    raise UserError(
        f"{path}: a .json is an array of records, or an object with one such array, called data if there are several; "
        f"this is {held}"
    )


def _read_table(path: Path, source: Source) -> Iterator[Located]:
    """A .csv or .tsv whose first row names the fields; every value is a string."""
    delimiter = "\t" if ".tsv" in path.name else ","
    csv.field_size_limit(RECORD_BYTES)  # the module's own is 128 KiB
    try:
        with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as characters:
            lines = iter(lambda: characters.readline(RECORD_BYTES), "")
            # strict: a quote that is not closed would swallow all records behind it.
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            names = _header(rows, path)
            while True:
                where = f"{path}:{rows.line_num + 1}"
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Located(where, UserError(f"{where}: not a row of a table: {error}"))
                    continue
                if row:  # else a blank line
                    yield Located(where, _row(names, row, where))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start} of a block); save it as UTF-8"
        ) from None


def _header(rows: Iterator[list[str]], path: Path) -> list[str]:
    try:
        names = next(rows, [])
    except csv.Error as error:
        raise UserError(f"{path}: its first row, which names the fields, cannot be read: {error}") from None
    if len(set(names)) < len(names):
        raise UserError(
            f"{path}: its first row names a field twice: {', '.join(names)}; the first row names the fields"
        )
    return names


def _row(names: list[str], row: list[str], where: str) -> dict[str, str] | UserError:
    if len(row) != len(names):
        return UserError(f"{where}: {len(row)} values for {len(names)} fields; quote values that hold the delimiter")
    return dict(zip(names, row, strict=True))


def _read_parquet(path: Path, source: Source, fields: Sequence[str]) -> Iterator[dict | UserError]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow, source, fields)
            for batch in file.iter_batches(columns=columns):  # a file may be larger than memory
                yield from _batch_records(batch, path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged or not a Parquet file ({error}); fetch or write it again") from None


def _columns(schema, source: Source, fields: Sequence[str]) -> list[str]:
    """Those that are read: a value of another could not be turned into Python's (a date after the year 9999)."""
    from pyarrow import types

    held = set(schema.names)
    used = [name if name in held else name.split(".")[0] for name in fields]
    if not used or not held.issuperset(used):  # then an error will name all fields that there are
        return [field.name for field in schema if not types.is_temporal(field.type)]
    # Of conversations also text that may be part of the prompt, so that it is not left out unseen.
    texts = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
    return list(dict.fromkeys(used + texts)) if source.is_chat else list(dict.fromkeys(used))


def _batch_records(batch, path: Path) -> list[dict | UserError]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # of one record, as a rule: bytes that are no UTF-8
        return [_batch_record(batch, row, path) for row in range(batch.num_rows)]


def _batch_record(batch, row: int, path: Path) -> dict | UserError:
    try:
        return batch.slice(row, 1).to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return UserError(f"{path}: a record holds a value that cannot be read: {error}")
