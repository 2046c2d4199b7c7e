"""What a program holds of memory and disk, by what /proc says of its processes, and by a look at its folder.

The memory that a control group counts is more exact; this is for machines where none can be made, and finds what the
kernel charges to nobody's resident memory: shared pages that no process has touched itself, and buffers of sockets.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gendistill.sandbox.processes import descendants
from gendistill.sandbox.task import FOLDER_BYTES, FOLDER_FILES

_SOCKET_BYTES = 212_992  # that one end may hold: net.core.wmem_default, which the filter lets nobody raise
_DISK_BLOCK = 512  # of `st_blocks`


def memory_bytes(limit: int) -> int:
    """Memory of all descendants of this process; pages that they share count once, if the sum would be over the limit.

    Of a process that this user may not look into (root without the capability SYS_PTRACE), what is resident counts.
    """
    private, shared = {}, {}  # by process; by device, inode and offset
    sockets, resident = set(), 0
    for process in descendants(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):
            _, pages, of_files = map(int, Path(f"/proc/{process}/statm").read_text().split()[:3])
            private[process] = (pages - of_files) * mmap.PAGESIZE
            try:
                shared |= _shared_mappings(process)
                sockets |= _sockets(process)
            except PermissionError:
                resident += of_files * mmap.PAGESIZE
    others = resident + sum(shared.values()) + len(sockets) * _SOCKET_BYTES
    if sum(private.values()) + others <= limit:
        return sum(private.values()) + others
    # Pages that a fork has not written to are each of its processes', so far.
    return sum(_share_of_private(process, most) for process, most in private.items()) + others


def _shared_mappings(process: int) -> dict[tuple[str, ...], int]:
    """Bytes of the mappings that others may share, touched or not: another process's pages may lie behind them."""
    found = {}
    for line in Path(f"/proc/{process}/maps").read_text(errors="replace").splitlines():
        addresses, rights, offset, device, inode, *_ = line.split(maxsplit=5)
        if rights[3] == "s":
            first, last = (int(address, 16) for address in addresses.split("-"))
            found[device, inode, offset] = last - first
    return found


def _sockets(process: int) -> set[str]:
    folder = f"/proc/{process}/fd"
    targets = set()
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # closed meanwhile
            targets.add(os.readlink(f"{folder}/{name}"))
    return {target for target in targets if target.startswith("socket:")}


def _share_of_private(process: int, most: int) -> int:
    """Bytes of private memory, of pages that n processes have one n-th each."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except PermissionError:
        return most
    except OSError:  # it has ended
        return 0
    return min(most, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:")))


def exceeds_disk(folder: str) -> bool:
    """Whether the files in a folder, and those that its processes have deleted and hold open, are over the limits."""
    used, count = _deleted_bytes(), 0
    try:
        for entry in _walk(folder):
            used += entry.stat(follow_symlinks=False).st_blocks * _DISK_BLOCK
            count += 1
            if used > FOLDER_BYTES or count > FOLDER_FILES:
                return True
    except FileNotFoundError:  # removed meanwhile; the next look will tell
        return False
    except OSError:  # nested so deeply that no path leads there
        return True
    return used > FOLDER_BYTES


def _walk(folder: str) -> Iterator[os.DirEntry]:
    with suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)


def _deleted_bytes() -> int:
    found = {}
    for process in descendants(os.getpid()):
        with suppress(OSError):
            for name in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    status = os.stat(f"/proc/{process}/fd/{name}")
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                        found[status.st_dev, status.st_ino] = status.st_blocks * _DISK_BLOCK
    return sum(found.values())
