"""A control group for the memory of one program, where this process may make one: it misses nothing.

Version 1 of the hierarchy and version 2; in both the kernel kills a process of the group that is over its limit.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
PREFIX = "gendistill-program-"  # of groups and of folders: a program's have the same name
# Files of limits and the one that counts kills, by the hierarchy's version. Swap where the kernel counts it.
_LIMITS = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max",)}
_KILLS = {1: "memory.oom_control", 2: "memory.events"}
REMOVAL_SECONDS = 1


def make_group(name: str, memory: int) -> Path | None:
    """A new group of that name with that limit in bytes; None if this process may make none."""
    for version, parent in _parents():
        group = parent / name
        with suppress(OSError):
            group.mkdir()
            try:
                required, *others = _LIMITS[version]
                _write(group / required, memory)
                for other in others:
                    with suppress(OSError):
                        _write(group / other, memory)
                if version == 2:
                    with suppress(OSError):
                        _write(group / "memory.swap.max", 0)
                return group
            except OSError:
                group.rmdir()
    return None


def enter_group(group: Path | None, process: int) -> None:
    """Puts a process into the group, with all that it will start."""
    if group is not None:
        with suppress(OSError):  # without it the supervisor's own count remains
            _write(group / "cgroup.procs", process)


def has_killed(group: Path | None) -> bool:
    """Whether the kernel ended a process of the group because of its memory."""
    if group is None:
        return False
    file = next(group / name for name in _KILLS.values() if (group / name).exists())
    counts = dict(line.split() for line in file.read_text().splitlines())
    return int(counts.get("oom_kill", 0)) > 0


def remove_group(group: Path | None) -> None:
    """Ends the processes that are left in a group, and removes it."""
    deadline = time.monotonic() + REMOVAL_SECONDS  # a process that has been killed takes a moment to leave
    while group is not None and group.exists() and time.monotonic() < deadline:
        with suppress(OSError):
            for process in (group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            group.rmdir()
            return
        time.sleep(0.005)


def remove_left_behind(name: str) -> None:
    """As `remove_group`, for a group that a process which is gone has made under this name."""
    for _, parent in _parents():
        remove_group(parent / name)


def _parents() -> Iterator[tuple[int, Path]]:
    """Where groups may be made, with the version: below this process's own group; in version 2 beside it too."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield 1, _ROOT / "memory" / path.lstrip("/")
            elif not controllers:
                # A group with processes of its own may have none below that limit memory.
                own = _ROOT / path.lstrip("/")
                yield from ((2, parent) for parent in (own, own.parent) if parent.is_relative_to(_ROOT))


def _write(file: Path, value: int) -> None:
    with open(file, "r+") as stream:  # "r+": a file that is not there is an error, not a new one
        stream.write(str(value))
