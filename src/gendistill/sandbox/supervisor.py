"""The supervisor: a process of its own, between the caller and the program.

`supervise` is its main function: a task and the group that its memory counts in come as a line of JSON, one
reply goes back.
"""

import json
import os
import selectors
import sys
import time
from contextlib import suppress
from pathlib import Path

from gendistill.sandbox.cgroup import has_killed
from gendistill.sandbox.isolation import unshare_processes, unused_user
from gendistill.sandbox.libc import PR_SET_CHILD_SUBREAPER, libc
from gendistill.sandbox.processes import end_descendants, reap
from gendistill.sandbox.program import CPU_TIME_STATUS, run_child
from gendistill.sandbox.task import FOLDER_BYTES, FOLDER_FILES, MEMORY_STATUS, MIB, OUTPUT_BYTES, PASSED_STATUS, Task
from gendistill.sandbox.usage import exceeds_disk, memory_bytes

# By exit status of the process that runs the tests, which no program shares. All else has failed.
_REASONS = {PASSED_STATUS: "passed", MEMORY_STATUS: "memory", CPU_TIME_STATUS: "timeout"}
POLL_SECONDS = 0.02  # between two looks at the program's memory and time
DISK_SECONDS = 0.1  # between two looks at its folder
_DISK = (
    f"The program's files passed the limit: {FOLDER_BYTES // MIB} MiB, {FOLDER_FILES} files, paths that can be read.\n"
)


def supervise() -> None:
    """Reads a task, replies with an outcome or a refusal."""
    fields, group = json.loads(sys.stdin.buffer.readline())
    try:
        reply = _watch(Task(*fields), group and Path(group))
    except OSError as error:  # something that isolation needs is missing here
        reply = {"refusal": str(error)}
    sys.stdout.write(json.dumps(reply))


def _watch(task: Task, group: Path | None) -> dict[str, str]:
    """Starts the program, follows it, ends its descendants; says how it ended and what it printed.

    Raises:
        OSError: the program could not be isolated, and has not been run.
    """
    user = unused_user() if os.getuid() == 0 else None
    Path(f"/proc/self/task/{os.getpid()}/children").read_text()  # without it no descendant would be found
    # Orphans come to this process, so that those that have left their parents and sessions are found at the end.
    libc("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if task.isolation == "namespaces":
        unshare_processes()
    pipes = {name: os.pipe() for name in ("refusal", "output", "error")}
    child = os.fork()
    if child == 0:
        run_child(task, {name: write for name, (_, write) in pipes.items()}, user)
    for _, write in pipes.values():  # or the pipes would never be at their end
        os.close(write)
    streams = {name: read for name, (read, _) in pipes.items()}
    try:
        with open(streams.pop("refusal")) as refusal:  # closes when the program starts
            if message := refusal.read():
                raise OSError(message)
        reason, texts = _follow(task, child, streams, group)
        if reason == "failed" and has_killed(group):  # since the last look
            reason = "memory"
    finally:
        end_descendants()
    for name, stream in streams.items():
        texts[name] += _rest(stream)
    if max(len(texts["output"]), len(texts["error"])) > OUTPUT_BYTES:
        reason = "output"
    output, error = (texts[name][:OUTPUT_BYTES].decode(errors="replace") for name in ("output", "error"))
    return {"reason": reason, "output": output, "error": error}


def _follow(task: Task, child: int, streams: dict[str, int], group: Path | None) -> tuple[str, dict[str, bytearray]]:
    """Reads what a program prints until it ends or passes a limit; one that ends by itself has "failed" so far."""
    deadline, next_look = time.monotonic() + task.seconds, 0.0
    texts = {name: bytearray() for name in streams}
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)  # readable only once the caller has closed it
        for name, stream in streams.items():
            os.set_blocking(stream, False)
            selector.register(stream, selectors.EVENT_READ, name)
        while True:
            for key, _ in selector.select(POLL_SECONDS):
                if key.data is None:  # nobody waits for the outcome any more
                    return "failed", texts
                if chunk := os.read(key.fd, OUTPUT_BYTES):
                    texts[key.data] += chunk
                else:  # at its end: it would be ready for ever, and this loop never rest
                    selector.unregister(key.fd)
            if (status := reap(child)) is not None:
                return _REASONS.get(status, "failed"), texts
            if max(map(len, texts.values())) > OUTPUT_BYTES:
                return "output", texts
            now = time.monotonic()
            if now > deadline:
                return "timeout", texts
            if has_killed(group) or memory_bytes(task.memory) > task.memory:
                return "memory", texts
            if task.isolation == "seccomp" and now > next_look:  # a /tmp in memory has a quota
                if exceeds_disk("."):
                    texts["error"] += _DISK.encode()
                    return "failed", texts
                next_look = time.monotonic() + DISK_SECONDS


def _rest(stream: int) -> bytes:
    """What a pipe still holds."""
    rest = b""
    with suppress(BlockingIOError):  # still open in a process that is about to die, and empty
        while chunk := os.read(stream, OUTPUT_BYTES):
            rest += chunk
    return rest
