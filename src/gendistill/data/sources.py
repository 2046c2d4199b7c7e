"""Reads records from files, shipped data and the hub, and checks them field by field.

Every problem is a UserError that names the file and, where there is one, the line.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from gendistill.errors import UserError
from gendistill.recipe.data import Source

EMBEDDED = "embedded:"
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")  # what `_read_file` can read
ROLES = ("system", "user", "assistant")
ABOUT = re.compile(r"readme|licen[cs]e|notice", re.IGNORECASE)  # files of a folder that tell about its data
# At the beginning of a name, and as a word: train.jsonl and test-00000.parquet, but not training_notes.txt.
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![A-Za-z0-9])")

VALIDATION = {"val", "valid", "validation", "dev"}

Message = dict[str, str]
Located = Iterator[tuple[str, Any]]  # where, and the record or the UserError that says why it cannot be read


class Document(NamedTuple):
    """A checked record. `content` is plain text, or a conversation of {"role", "content"} ending with the assistant."""

    where: str  # "file:line" or the like, for error messages
    content: str | list[Message]

    @property
    def characters(self) -> int:
        """Of the text, or of all messages together."""
        if isinstance(self.content, str):
            return len(self.content)
        return sum(len(message["content"]) for message in self.content)


def read_records(source: Source, seed: int = 0) -> Iterator[dict]:
    """Yields the records of a source in their stored order.

    Args:
        source: where from.
        seed: for generated data ('embedded:NAME') only.

    Raises:
        UserError: a file is missing, of an unknown kind, empty or damaged, or a record is not a mapping.
    """
    for record in read_checked_records(source, seed):
        if isinstance(record, UserError):
            raise record
        yield record


def read_checked_records(source: Source, seed: int = 0) -> Iterator[dict | UserError]:
    """As `read_records`, but a record that cannot be read is yielded as the UserError that says why."""
    for _, record in _located_records(source, seed):
        yield record


def read_documents(source: Source, seed: int = 0) -> Iterator[Document | UserError]:
    """Yields a source's texts, or its conversations if `source.is_chat`.

    A record that cannot be read or is malformed is yielded as the UserError that says why, so that the reader can
    count and skip it.

    Raises:
        UserError: a file is missing, of an unknown kind, empty or damaged; or the first record is malformed, which is
            the recipe's mistake rather than the record's.
    """
    first = True  # a later one is yielded: only a mistake that begins with the first is surely the recipe's
    for where, record in _located_records(source, seed):
        document = _document(source, where, record)
        if first and isinstance(document, UserError):
            raise document
        first = False
        yield document


def _document(source: Source, where: str, record: dict | UserError) -> Document | UserError:
    if isinstance(record, UserError):
        return record
    try:
        if source.messages is not None:
            content = _check_messages(_field(record, source.messages, list, where), where)
        elif source.prompt is not None:
            content = [
                {"role": "user", "content": _field(record, source.prompt, str, where)},
                {"role": "assistant", "content": _field(record, source.completion, str, where)},
            ]
        else:
            content = _field(record, source.text, str, where)
    except UserError as error:
        return error
    return Document(where, content)


def local_files(source: Source) -> list[Path]:
    """The files behind a source's path, sorted: the file itself, what a pattern matches, or a folder's files.

    A folder that holds splits (train.jsonl, test-00000.parquet, validation/a.txt) gives those of `source.split`.

    Raises:
        UserError: there is no such file, no file of a known kind, or no such split; or the folder holds splits and the
            source names none.
    """
    path = Path(source.path)
    if path.is_file():
        return [path]  # asked for by name, whatever its suffix: `_read_file` says which are known
    if not path.is_dir():
        if found := sorted(Path(name) for name in glob(source.path, recursive=True) if _is_data(Path(name).name)):
            return found
        problem = "no such file, and no file matches it as a pattern"
        raise UserError(
            f"{path}: {problem}. A source's path is a {', '.join(SUFFIXES)} file, a folder or pattern of such files, "
            f"or '{EMBEDDED}NAME'."
        )
    # Sorted: the order of a folder differs between machines, and would give other rows.
    files = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file.name))
    if not files:
        raise UserError(f"{path}: no file of a known kind in this folder; known: {', '.join(SUFFIXES)}")
    splits = {file: _split_of(file.relative_to(path)) for file in files}
    named = sorted(filter(None, set(splits.values())))
    if source.split is None:
        if len(named) > 1:  # all of them together would train on the test set
            raise UserError(f"{path}: holds the splits {', '.join(named)}; say which one by split: NAME")
        return files
    # The name that is asked for, where it is there: a folder may hold both dev and val, of a set that has both.
    chosen = [file for file in files if splits[file] == source.split]
    chosen = chosen or [file for file in files if same_split(splits[file], source.split)]
    if not chosen:
        there = f"it holds {', '.join(named)}" if named else "no file or folder in it is named after a split"
        raise UserError(f"{path}: no split '{source.split}'; {there}")
    return chosen


def _is_data(name: str) -> bool:
    return local_suffix(name) is not None and not ABOUT.match(name)


def same_split(one: str | None, other: str | None) -> bool:
    """Whether two names are of one split: what one data set calls val, another calls validation, valid or dev."""
    return one == other or {one, other} <= VALIDATION


def _split_of(file: Path) -> str | None:
    """The split a file belongs to by its name (train.jsonl, train-00000-of-00002.parquet) or its folder's."""
    for name in (file.name, *reversed(file.parts[:-1])):  # the nearest folder first
        if match := SPLIT.match(name):
            return match[1]
    return None


def local_suffix(path: str) -> str | None:
    """The suffix that says how to read a file, or None if it is not one of SUFFIXES."""
    # Not Path.suffix, which of .jsonl.gz sees the end alone.
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), None)


def _located_records(source: Source, seed: int) -> Located:
    empty = True
    for where, record in _open(source, seed):
        if not isinstance(record, dict | UserError):
            kind = type(record).__name__
            record = UserError(f"{where}: a record is an object with named fields, this is a {kind}")
        empty = False  # a malformed record is one too: what is wrong with it says more than "no records"
        yield where, record
    if empty:
        raise UserError(
            f"{source.label}: no records in it; give a file with data or take this source out of the recipe"
        )


def _open(source: Source, seed: int) -> Located:
    if source.hub is not None:
        yield from _numbered(source.label, _hub_records(source))
    elif source.path is None:
        raise ValueError(f"{source.label}: is written by a run first, which then gives the path of its records")
    elif source.path.startswith(EMBEDDED):
        from gendistill import embedded  # here: most runs need none of it

        yield from _numbered(source.path, embedded.records(source.path.removeprefix(EMBEDDED), seed=seed))
    else:
        for file in local_files(source):
            yield from _read_file(file, source.text)


def _read_file(path: Path, text_field: str) -> Located:
    suffix = local_suffix(path.name)
    if suffix == ".txt":
        return _read_text(path, text_field)
    if suffix == ".parquet":
        return _numbered(str(path), _read_parquet(path))
    if suffix in (".jsonl", ".jsonl.gz"):
        return _read_json_lines(path)
    raise UserError(
        f"{path}: unknown kind of file; known: {', '.join(SUFFIXES)}. Convert it, or rename it if it is one"
    )


def _numbered(label: str, records: Iterator[dict]) -> Located:
    for number, record in enumerate(records, 1):
        yield f"{label}: record {number}", record


def _read_text(path: Path, field: str) -> Located:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without the mark that some editors put in front
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if text.strip():  # a whole file is one document
        yield str(path), {field: text}


def _read_json_lines(path: Path) -> Located:
    opener = gzip.open if path.name.endswith(".gz") else open  # in bytes: a line that is not UTF-8 spoils no other
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
    """The line's value, or the UserError that says what is wrong with it."""
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        return UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8")
    except json.JSONDecodeError as error:
        return UserError(f"{where}: not JSON: {error.msg} at column {error.colno}; each line is one JSON object")


def _read_parquet(path: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():  # a file may be larger than memory
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged or not a Parquet file ({error}); fetch or write it again") from None


def _hub_records(source: Source) -> Iterator[dict]:
    try:
        import datasets  # an extra of this package
    except ImportError:
        raise UserError(
            f'{source.label}: reading from the hub needs the datasets package: pip install "gendistill[hub]", '
            "or download the data and give its path"
        ) from None
    try:
        yield from datasets.load_dataset(source.hub, source.subset, split=source.split or "train", streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # the last for sets that are a script
        raise UserError(
            f"{source.label} (subset {source.subset}, split {source.split or 'train'}): cannot be read: {error}. Check "
            "the names and the network, or download the data and give its path"
        ) from None


def _field(record: dict, name: str, kind: type, where: str) -> Any:
    if name not in record:
        raise UserError(f"{where}: no field '{name}'; the record has: {', '.join(map(str, record)) or 'no fields'}")
    value = record[name]
    if not isinstance(value, kind):
        expected = {str: "a string", list: "a list"}[kind]
        raise UserError(f"{where}: field '{name}' should be {expected}, this is {_kind_name(value)}")
    if kind is str:  # what is in a list is checked message by message
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
        raise UserError(f"{where}: {last}; a conversation to train on ends with the assistant's turn")
    return checked


def _kind_name(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
