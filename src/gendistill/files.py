"""Files and folders that are whole or not there."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gendistill.errors import UserError


@contextmanager
def folder_in_one_piece(final: Path) -> Iterator[Path]:
    """A folder to fill, which takes its final name only when the block ends well."""
    partial = final.with_name(final.name + ".partial")  # beside it: a rename is atomic within one file system only
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{final} could not be written ({error}). Free some space and run the same command again."
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text under another name first, so that a killed write leaves the old file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")  # said, since the system's own encoding may be another
    os.replace(partial, path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    # Not splitlines(): replies may hold other line separators, which JSON leaves as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes records as JSON lines, atomically."""
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
