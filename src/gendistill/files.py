"""Files and folders that are whole or not there."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gendistill.errors import UserError

EMBEDDED = "embedded"  # begins the name of what is shipped in the package
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def located(path: str, folder: Path) -> str:
    """A path that may be relative to `folder`, as an absolute one; 'embedded:NAME' is no path and stays."""
    if path.startswith(f"{EMBEDDED}:"):
        return path
    return os.path.abspath(folder / os.path.expanduser(path))  # an absolute path wins over the folder


def located_model(name: str, folder: Path) -> str:
    """The absolute path of a model's folder, or the name as it is: 'embedded', a hub id.

    Raises:
        UserError: the name is that of a folder and of no hub id, and there is no such folder.
    """
    path = Path(located(name, folder))
    if name == EMBEDDED or path.is_dir():
        return name if name == EMBEDDED else str(path)
    # The hub is asked for what can only be its own: a mistyped folder would come back as an error of the network.
    is_path = name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name)
    if is_path or ("/" in name and (folder / name).parent.is_dir()):
        raise UserError(f"model '{name}': no such folder ({path}). Give 'embedded', a Hugging Face folder, or a hub id")
    return name


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


def file_sha256(path: Path) -> str:
    """Hash of a file's content; about a second for each GB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    # Not splitlines(): replies may hold other line separators, which JSON leaves as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes records as JSON lines, atomically."""
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
