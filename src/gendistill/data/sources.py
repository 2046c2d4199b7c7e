"""Reads records from files, shipped data and the hub, and checks them field by field.

Every problem is a UserError that names the file and, where there is one, the line.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gendistill.errors import UserError
from gendistill.recipe import Source

EMBEDDED = "embedded:"
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
ROLES = ("system", "user", "assistant")

Message = dict[str, str]
Located = Iterator[tuple[str, Any]]


class Document(NamedTuple):
    """A checked record. `content` is plain text, or a conversation of {"role", "content"} ending with the assistant."""

    where: str  # "file:line" or the like, for error messages
    content: str | list[Message]


def read_records(source: Source, seed: int = 0) -> Iterator[dict]:
    """Yields the records of a source in their stored order.

    Args:
        source: where from.
        seed: for generated data ('embedded:NAME') only.

    Raises:
        UserError: the file is missing, of an unknown kind, empty or damaged, or a record is not a mapping.
    """
    for _, record in _located_records(source, seed):
        yield record


def read_documents(source: Source, seed: int = 0) -> Iterator[Document]:
    """Yields a source's texts, or its conversations if `source.is_chat`.

    Raises:
        UserError: as `read_records`; or a field is missing or of the wrong type, or a conversation is malformed.
    """
    for where, record in _located_records(source, seed):
        if source.messages is not None:
            content = _check_messages(_field(record, source.messages, list, where), where)
        elif source.prompt is not None:
            content = [
                {"role": "user", "content": _field(record, source.prompt, str, where)},
                {"role": "assistant", "content": _field(record, source.completion, str, where)},
            ]
        else:
            content = _field(record, source.text, str, where)
        yield Document(where, content)


def local_suffix(path: str) -> str | None:
    """The suffix that says how to read a file, or None if it is not one of SUFFIXES."""
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), None)


def _located_records(source: Source, seed: int) -> Located:
    empty = True
    for where, record in _open(source, seed):
        if not isinstance(record, dict):
            raise UserError(f"{where}: a record is an object with named fields, this is a {type(record).__name__}")
        empty = False
        yield where, record
    if empty:
        raise UserError(
            f"{source.label}: no records in it; give a file with data or take this source out of the recipe"
        )


def _open(source: Source, seed: int) -> Located:
    if source.hub is not None:
        return _numbered(source.label, _hub_records(source))
    if source.path.startswith(EMBEDDED):
        from gendistill import embedded

        return _numbered(source.path, embedded.records(source.path.removeprefix(EMBEDDED), seed=seed))
    path = Path(source.path)
    if not path.is_file():
        problem = "this is a folder, not a file" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {problem}. A source's path is a {', '.join(SUFFIXES)} file or '{EMBEDDED}NAME'.")
    suffix = local_suffix(path.name)
    if suffix == ".txt":
        return _read_text(path, source.text)
    if suffix == ".parquet":
        return _numbered(str(path), _read_parquet(path))
    if suffix is None:
        raise UserError(
            f"{path}: unknown kind of file; known: {', '.join(SUFFIXES)}. Convert it, or rename it if it is one"
        )
    return _read_json_lines(path)


def _numbered(label: str, records: Iterator[dict]) -> Located:
    for number, record in enumerate(records, 1):
        yield f"{label}: record {number}", record


def _read_text(path: Path, field: str) -> Located:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if text.strip():
        yield str(path), {field: text}


def _read_json_lines(path: Path) -> Located:
    opener = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _parse_json(line, f"{path}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: damaged gzip file after line {number} ({error}); fetch or compress it again"
        ) from None


def _parse_json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; each line is one JSON object"
        ) from None


def _read_parquet(path: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged or not a Parquet file ({error}); fetch or write it again") from None


def _hub_records(source: Source) -> Iterator[dict]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f'{source.label}: reading from the hub needs the datasets package: pip install "gendistill[hub]", '
            "or download the data and give its path"
        ) from None
    try:
        yield from datasets.load_dataset(source.hub, source.subset, split=source.split, streaming=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source.label} (subset {source.subset}, split {source.split}): cannot be read: {error}. Check the names "
            "and the network, or download the data and give its path"
        ) from None


def _field(record: dict, name: str, kind: type, where: str) -> Any:
    if name not in record:
        raise UserError(f"{where}: no field '{name}'; the record has: {', '.join(map(str, record)) or 'no fields'}")
    value = record[name]
    if not isinstance(value, kind):
        expected = {str: "a string", list: "a list"}[kind]
        raise UserError(f"{where}: field '{name}' should be {expected}, this is {_kind_name(value)}")
    if kind is str:
        _check_text(value, f"{where}: field '{name}'")
    return value


def _check_text(text: str, where: str) -> None:
    # JSON can spell half of a surrogate pair ("\ud83d"), which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half a surrogate pair at character {error.start}; write the text anew as UTF-8"
        ) from None


def _check_messages(messages: list, where: str) -> list[Message]:
    """Checks roles, contents and the order of turns; drops other keys."""
    checked = []
    for number, message in enumerate(messages, 1):
        turn = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{turn}: should be an object with 'role' and 'content', this is {_kind_name(message)}")
        role, content = _field(message, "role", str, turn), _field(message, "content", str, turn)
        if role not in ROLES:
            raise UserError(f"{turn}: unknown role '{role}'; roles are {', '.join(ROLES)}")
        if role == "assistant" and not any(earlier["role"] == "user" for earlier in checked):
            raise UserError(f"{turn}: the assistant speaks before the user; a reply needs a user's turn before it")
        checked.append({"role": role, "content": content})
    if not checked or checked[-1]["role"] != "assistant":
        last = f"the last turn is the {checked[-1]['role']}'s" if checked else "there are no messages"
        raise UserError(f"{where}: {last}; a conversation to learn from ends with the assistant's turn")
    return checked


def _kind_name(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
