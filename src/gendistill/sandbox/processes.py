"""Finds, reaps and kills the descendants of this process."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def reap(child: int | None) -> int | None:
    """Reaps every child that has ended; the exit status of `child` if it is among them (128 + n: ended by signal n)."""
    found = None
    with suppress(ChildProcessError):  # no children at all
        while (dead := os.waitpid(-1, os.WNOHANG))[0]:
            if dead[0] == child:
                code = os.waitstatus_to_exitcode(dead[1])
                found = code if code >= 0 else 128 - code  # a signal n comes as -n
    return found


def descendants(process: int | str) -> Iterator[int]:
    """Children of a process, their children, and so on. One that ends meanwhile is passed over."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{process}/task"):  # the kernel lists children by the thread that forked them
            for child in Path(f"/proc/{process}/task/{thread}/children").read_text().split():
                yield int(child)
                yield from descendants(child)


def end_descendants() -> None:
    """Kills until nobody is left: a process may fork while its siblings are being killed."""
    while living := list(descendants(os.getpid())):
        for process in living:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        reap(None)  # a dead child stays in /proc until it is reaped, and the loop would never end


def end_processes_at_home(folder: str) -> None:
    """Kills the processes that were started with this folder as their HOME, whosever children they are."""
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it has ended, or is another user's
            if f"HOME={folder}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                os.kill(int(process), signal.SIGKILL)
