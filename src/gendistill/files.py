"""Files and folders that are whole or not there, after a loss of power too."""

import errno
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gendistill.errors import UserError

EMBEDDED = "embedded"  # begins the name of what is shipped in the package
SUMS = "SHA256SUMS"  # in sealed folders
HASH, CHECKSUM = "sha256", "crc32"  # the last values of a JSON file, and of a line, that are checked when they are read
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def located(path: str, folder: Path) -> str:
    """A path that may be relative to `folder`, as an absolute one; 'embedded:NAME' is no path and stays."""
    if path.startswith(f"{EMBEDDED}:"):
        return path
    return os.path.abspath(folder / os.path.expanduser(path))  # an absolute path wins over the folder


def located_model(name: str, folder: Path) -> str:
    """The absolute path of a model's folder, whether or not it is there; 'embedded' and hub ids stay as they are."""
    path = located(name, folder)
    if name == EMBEDDED:
        return name
    # The hub is asked for what can only be its own: a mistyped folder would come back as an error of the network.
    is_path = name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name)
    beside_folders = "/" in name and Path(path).parent.is_dir()
    return path if is_path or beside_folders or Path(path).is_dir() else name


@contextmanager
def folder_in_one_piece(final: Path) -> Iterator[Path]:
    """A folder to fill, which is sealed and takes its final name when the block ends well, and is gone otherwise.

    Raises:
        UserError: it cannot be written.
    """
    partial = final.with_name(final.name + ".partial")  # beside it: a rename is atomic within one file system only
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        make_folder(partial)
        yield partial
        seal(partial)
        put_in_place(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if _is_of_the_system(error):
            raise UserError(
                f"{final} could not be written ({error}). Free some space and run the same command again."
            ) from error
        raise


def _is_of_the_system(error: BaseException) -> bool:
    """Whether a file could not be written; Rust libraries have the system's error in words, tokenizers in no type."""
    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


def seal(folder: Path) -> None:
    """Writes the hashes of a folder's own files beside them, for `damage_of` and `sha256sum -c`.

    What it has sealed is on the disk itself, so that a loss of power cannot take it back.
    """
    # Half a file that a killed `write_atomically` left, of an earlier sealing say, is none of the folder's.
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS and p.suffix != ".partial")
    with ThreadPoolExecutor() as pool:  # hashing and the disk both work without the interpreter
        hashes = list(pool.map(file_sha256, files))
        list(pool.map(flush_to_disk, files))
    sums = "".join(f"{digest}  {path.name}\n" for digest, path in zip(hashes, files, strict=True))
    write_atomically(folder / SUMS, sums)
    flush_to_disk(folder)


def damage_of(folder: Path, only: str | None = None) -> str | None:
    """What of a sealed folder, or of `only` one file in it, is not as it was sealed, in words; None if all is."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sealed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        sealed = sealed if only is None else {only: sealed[only]}
    except (OSError, ValueError, KeyError):
        return f"{SUMS} is missing or damaged"
    if missing := [name for name in sealed if not (folder / name).is_file()]:
        return f"{', '.join(missing)} missing"
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(file_sha256, (folder / name for name in sealed))
        changed = [name for name, digest in zip(sealed, hashes, strict=True) if digest != sealed[name]]
    return f"{', '.join(changed)} changed since written" if changed else None


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it that are not there; once it returns, no loss of power takes them back."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)  # another process may be as fast
        flush_to_disk(path.parent)


def put_in_place(partial: Path, final: Path) -> None:
    """Gives a file or folder, whose content is on the disk itself, its final name; then that is on the disk too."""
    os.replace(partial, final)
    flush_to_disk(final.parent)


def flush_to_disk(path: Path) -> None:
    """Returns when a file's content, or a folder's list of files, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text under another name first, so that a killed write, or a loss of power, leaves the old file."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")  # said, since the system's own encoding may be another
        flush_to_disk(partial)  # a name may reach the disk before what it names
        put_in_place(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)  # on a full disk, what was written of it is in the way
        error.filename = error.filename or str(path)
        raise


def file_sha256(path: Path) -> str:
    """Hash of a file's content; about a second for each GB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    # Not splitlines(): replies may hold other line separators, which JSON leaves as they are.
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error})") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file that the project wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is missing or damaged ({error}). Delete {path.parent} and run again.") from None


def write_hashed_json(path: Path, values: dict[str, Any]) -> None:
    """Writes values as JSON, atomically, with their hash as the last of them: a byte that changes is noticed."""
    write_atomically(path, json.dumps(values | {HASH: _json_sha256(values)}, indent=1) + "\n")


def read_hashed_json(path: Path) -> dict[str, Any]:
    """What `write_hashed_json` wrote, without the hash; a file without one, as a person writes it, is taken as it is.

    Raises:
        UserError: it is missing, no JSON object, or not as it was written.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        expected = values.pop(HASH, None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: is missing or damaged ({error})") from None
    if expected not in (None, _json_sha256(values)):
        raise UserError(f"{path}: is damaged (changed since written)")
    return values


def _json_sha256(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def checked_line(record: dict[str, Any]) -> str:
    """A line of JSON with its checksum as the last value, for files to which a process that may be killed appends."""
    text = json.dumps(record, ensure_ascii=False)
    return f'{text[:-1]}, "{CHECKSUM}": "{zlib.crc32(text.encode()):08x}"}}\n'


def read_checked_line(line: bytes) -> dict[str, Any] | None:
    """What `checked_line` was given; None if the line is half written, or a byte of it has changed."""
    text, _, checksum = line.rpartition(b', "%s": ' % CHECKSUM.encode())
    text += b"}"
    return json.loads(text) if checksum == b'"%08x"}' % zlib.crc32(text) else None


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes records as JSON lines, atomically."""
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
