"""Folders of programs: made under a lock that ends with this process, removed however deep they are."""

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gendistill.sandbox.cgroup import PREFIX, remove_left_behind
from gendistill.sandbox.processes import end_processes_at_home

_NEW = "gendistill-new-"  # of folders that are not locked yet


@contextmanager
def program_folder() -> Iterator[str]:
    """A new folder, removed at the end; and removes those that killed processes have left."""
    clear_left_behind()
    new = tempfile.mkdtemp(prefix=_NEW)
    lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    folder = new.replace(_NEW, PREFIX)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(new, folder)  # under this name others may look for it, and find it locked
        yield folder
    finally:
        remove_folder(folder)
        os.close(lock)


def clear_left_behind() -> None:
    """Removes the folders of processes that are gone, and what is left of their programs."""
    with os.scandir(tempfile.gettempdir()) as entries:
        folders = [entry.path for entry in entries if entry.name.startswith(PREFIX)]
    for folder in folders:
        with suppress(OSError):  # of another user, or locked: somebody runs a program there
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_left_behind(os.path.basename(folder))
                end_processes_at_home(folder)
                remove_folder(folder)
            finally:
                os.close(descriptor)


def remove_folder(folder: str) -> None:
    """Removes a folder, or as much of it as this user may.

    Folders in it are moved up before they are emptied, so that no path and no recursion grows with their depth; by
    descriptors, so that no link leads out.
    """
    with suppress(OSError):
        top = _open_folder(folder, None)
        try:
            _empty(top)
        finally:
            os.close(top)
        os.rmdir(folder)


def _empty(top: int) -> None:
    moved = (f"{PREFIX}moved-{number}" for number in itertools.count())
    waiting = _sort(top)
    while waiting:
        name = waiting.pop()
        inner = _open_folder(name, top)
        try:
            for child in _sort(inner):
                os.close(_open_folder(child, inner))  # makes it one that may be moved
                above = next(moved)
                os.rename(child, above, src_dir_fd=inner, dst_dir_fd=top)
                waiting.append(above)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)


def _sort(folder: int) -> list[str]:
    """The folders in a folder; whatever else is in it is removed."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=folder)
    return folders


def _open_folder(name: str, parent: int | None) -> int:
    """A descriptor of a folder, which is made readable and writable; never of one that a link leads to."""
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        path = Path(f"/proc/self/fd/{place}")
        path.chmod(0o700)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(place)
