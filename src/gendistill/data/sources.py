"""Reads records from files, shipped data and the hub, and checks them field by field.

Every problem is a UserError that names the file and, where there is one, the line.
"""

import re
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import NamedTuple

from gendistill.data.conversations import EMPTY_TEXT, Message, Skipped, field, is_blank, read_conversation
from gendistill.data.readers import KNOWN, Located, cut_text, local_suffix, numbered, read_file
from gendistill.errors import UserError
from gendistill.recipe.data import Source

EMBEDDED = "embedded:"
# Files of a folder that tell about its data.
ABOUT = re.compile(
    r"readme|licen[cs]e|notice|(dataset_infos?|dataset_dict|state|config|metadata|stats|croissant)\.json", re.IGNORECASE
)
# At the beginning of a name, and as a word: train.jsonl and test-00000.parquet, but not training_notes.txt.
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![A-Za-z0-9])")

VALIDATION = {"val", "valid", "validation", "dev"}


class Document(NamedTuple):
    """A checked record.

    Attributes:
        where: "file:line" or the like, for error messages.
        content: plain text, or a conversation of {"role", "content"} ending with the assistant, see `Message`.
        begins: False for plain text that continues from the document before: it gets no start token.
        ends: False for plain text that continues in the next document: it gets no end token.
        ignored: what of the record is not used though it may be meant: fields that look like part of the prompt, keys
            of messages.
    """

    where: str
    content: str | list[Message]
    begins: bool = True
    ends: bool = True
    ignored: tuple[str, ...] = ()

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
    for located in _located_records(source, (), seed):
        yield located.record


def read_documents(source: Source, seed: int = 0) -> Iterator[Document | Skipped | UserError]:
    """Yields a source's texts, or its conversations if `source.is_chat`.

    A record that cannot be read or is malformed is yielded as the UserError that says why, and one that is not to be
    learnt (an empty reply, tool calls) as the reason, so that the reader can count and skip it. A text longer than
    `readers.TEXT_CHARACTERS` continues in further documents.

    Raises:
        UserError: a file is missing, of an unknown kind, empty or damaged; or the first record is malformed, which is
            the recipe's mistake rather than the record's.
    """
    first = True  # a later one is yielded: only a mistake that begins with the first is surely the recipe's
    for located in _located_records(source, source.fields, seed):
        for document in _documents(source, located):
            if first and isinstance(document, UserError):
                raise document
            first = False
            yield document


def _documents(source: Source, located: Located) -> Iterator[Document | Skipped | UserError]:
    """What one record gives: a document as a rule, several of a long text."""
    where, record, begins, ends = located
    if isinstance(record, UserError):
        yield record
        return
    try:
        if source.is_chat:
            read = read_conversation(record, source, where)
            yield read if isinstance(read, Skipped) else Document(where, read.messages, ignored=read.ignored)
            return
        text = field(record, source.text, str, where)
    except UserError as error:
        yield error
        return
    if not text or (begins and ends and is_blank(text)):
        yield Skipped(where, EMPTY_TEXT)
        return
    for part, is_last in cut_text(text):
        yield Document(where, part, begins, is_last and ends)
        begins = False


def local_files(source: Source) -> list[Path]:
    """The files behind a source's path, sorted: the file itself, what a pattern matches, or a folder's files.

    A folder that holds splits (train.jsonl, test-00000.parquet, validation/a.txt) gives those of `source.split`.

    Raises:
        UserError: there is no such file, no file of a known kind, or no such split; or the folder holds splits and the
            source names none.
    """
    path = Path(source.path)
    if path.is_file():
        return [path]  # asked for by name, whatever its suffix: `read_file` says which are known
    if not path.is_dir():
        if found := sorted(Path(name) for name in glob(source.path, recursive=True) if _is_data(Path(name).name)):
            return found
        problem = "no such file, and no file matches it as a pattern"
        raise UserError(
            f"{path}: {problem}. A source's path is a {KNOWN} file, a folder or pattern of such files, "
            f"or '{EMBEDDED}NAME'."
        )
    # Sorted: the order of a folder differs between machines, and would give other rows.
    files = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file.name))
    if not files:
        raise UserError(f"{path}: no file of a known kind in this folder; known: {KNOWN}")
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


def _located_records(source: Source, fields: Sequence[str], seed: int) -> Iterator[Located]:
    empty = True
    for located in _open(source, fields, seed):
        if not isinstance(located.record, dict | UserError):
            kind = type(located.record).__name__
            problem = UserError(f"{located.where}: a record is an object with named fields, this is a {kind}")
            located = located._replace(record=problem)
        empty = False  # a malformed record is one too: what is wrong with it says more than "no records"
        yield located
    if empty:
        raise UserError(
            f"{source.label}: no records in it; give a file with data or take this source out of the recipe"
        )


def _open(source: Source, fields: Sequence[str], seed: int) -> Iterator[Located]:
    if source.hub is not None:
        yield from numbered(source.label, _hub_records(source))
    elif source.path is None:
        raise ValueError(f"{source.label}: is written by a run first, which then gives the path of its records")
    elif source.path.startswith(EMBEDDED):
        from gendistill import embedded  # here: most runs need none of it

        yield from numbered(source.path, embedded.records(source.path.removeprefix(EMBEDDED), seed=seed))
    else:
        for file in local_files(source):
            yield from read_file(file, source, fields)


def _hub_records(source: Source) -> Iterator[dict]:
    try:
        import datasets  # an extra of this package
    except ImportError:
        raise UserError(
            f'{source.label}: reading from the hub needs the datasets package: pip install "gendistill[hub]", '
            "or download the data and give its path"
        ) from None
    try:
        split = source.split or "train"
        yield from datasets.load_dataset(
            source.hub, source.subset, split=split, streaming=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:  # the last for sets that are a script
        raise UserError(
            f"{source.label} (subset {source.subset}, split {source.split or 'train'}): cannot be read: {error}. Check "
            "the names and the network, or download the data and give its path"
        ) from None
