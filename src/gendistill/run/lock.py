"""One process at a time in a run folder: two would rewrite each other's metrics and checkpoints."""

import fcntl
import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import TextIO

from gendistill.errors import UserError

LOCK = "lock"
# Open for as long as the process lives. Record locks (POSIX), not flock's: forked children do not inherit them, so that
# none can outlive its parent and hold the folder; but to close any file on the lock would give it back.
_held: dict[Path, TextIO] = {}


def lock_folder(root: Path) -> None:
    """Takes a folder for this process until it ends, however it ends.

    Raises:
        UserError: another process has it; says which.
    """
    path = (root / LOCK).absolute()
    if _is_held(path):
        return
    file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115  kept below
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both
        holder = _read(file)
        file.close()
        raise UserError(
            f"{root}: another process works there: {holder}. Wait for its end or stop it, or give another --output."
        ) from None
    file.truncate(0)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    started = datetime.now().isoformat(" ", "seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {started}: {command}\n")
    file.flush()
    _held[path] = file


def holder_of(root: Path) -> str | None:
    """Which process works in a folder, in words; None if none does, or it is this one."""
    path = (root / LOCK).absolute()
    if _is_held(path) or not path.exists():
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back when the file is closed
        except (BlockingIOError, PermissionError):
            return _read(file)
    return None


def _is_held(path: Path) -> bool:
    """Whether this process has the lock, on the file that is there now: the folder may have been deleted since."""
    file = _held.get(path)
    return file is not None and path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "it has only just begun"
