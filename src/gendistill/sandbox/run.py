"""Runs programs through a supervisor each, and finds out how this machine can isolate them."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from gendistill.errors import UserError
from gendistill.sandbox.cgroup import enter_group, has_killed, make_group, remove_group
from gendistill.sandbox.folders import program_folder
from gendistill.sandbox.task import MIB, Isolation, Task

GRACE_SECONDS = 30  # beyond a program's own time, after which a supervisor that does not reply is killed


class Outcome(NamedTuple):
    """What became of a program: what it printed is cut at `task.OUTPUT_BYTES` bytes a stream."""

    ok: bool
    reason: Literal["passed", "failed", "timeout", "memory", "output"]
    output: str
    error: str


def run_python(code: str, tests: str = "", *, seconds: float = 5, memory: int = 512 * MIB, stdin: str = "") -> Outcome:
    """Runs a Python program in isolation, and tests of it in a process that the program does not share.

    It passes if its last line is reached and then that of its tests, both without an exception. A program that exits
    before its last line fails, whatever its exit status; so does one that closes its standard streams or deletes its
    folder. A program cannot make tests pass but by what its functions return: `gendistill.sandbox` says how the tests
    reach these, and what that leaves to the program. Without `tests` the program itself says that it reached its last
    line, and one that means to can say so falsely.

    Args:
        code: the source, run as `__main__` by this Python with its installed packages, in an empty folder.
        tests: source that uses names of the program and raises if it is wrong, run in the same folder.
        seconds: wall time, the start of the interpreter included.
        memory: bytes of address space a process, and of resident memory over all the program's processes.
        stdin: what standard input holds.

    Raises:
        UserError: this machine offers no isolation; the program has not been run.
    """
    return run_task(Task(code, stdin, seconds, memory, check_isolation(), tests=tests))


def run_many(
    codes: Iterable[str],
    tests: Iterable[str] | None = None,
    *,
    workers: int | None = None,
    seconds: float = 5,
    memory: int = 512 * MIB,
) -> list[Outcome]:
    """Outcomes of many programs, each with its tests, in order, `workers` at a time (default: one a usable core).

    More workers than cores make programs wait for each other, and the wall time of each runs on meanwhile.
    """
    check_isolation()  # once, not in every thread
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        run = functools.partial(run_python, seconds=seconds, memory=memory)
        return list(pool.map(run, codes) if tests is None else pool.map(run, codes, tests))


@functools.cache
def check_isolation() -> Isolation:
    """The first way of isolating in which an empty program passes.

    Raises:
        UserError: there is none on this machine.
    """
    refusals = []
    for isolation in get_args(Isolation):  # the stronger one first
        try:
            outcome = run_task(Task("", "", 20, 512 * MIB, isolation))
        except UserError as refusal:
            refusals.append(f"{isolation}: {refusal}")
            continue
        if outcome.ok:
            return isolation
        refusals.append(f"{isolation}: an empty program ended as {outcome.reason}. {outcome.error.strip()}")
    raise UserError(
        f"Programs written by a model cannot be isolated on this machine, so none is run ({'; '.join(refusals)}). "
        "Needed is Linux on x86-64 or aarch64 with one of: namespaces (a container with the capability SYS_ADMIN, or "
        "user namespaces allowed); Landlock (Linux 6.2 or newer); or to be root, with a Python outside root's home."
    )


def run_task(task: Task) -> Outcome:
    """Runs a program in the way of isolating that its task names.

    Raises:
        UserError: that way is not possible on this machine; the program has not been run.
    """
    if sys.platform != "linux":
        raise UserError(f"Programs can be isolated on Linux only, and this is {sys.platform}.")
    if task.isolation not in get_args(Isolation):  # nothing would be given up for a name that no step knows
        raise ValueError(f"unknown isolation '{task.isolation}'; known: {', '.join(get_args(Isolation))}")
    with program_folder() as folder:
        group = make_group(os.path.basename(folder), task.memory)
        try:
            reply = _ask_supervisor(task, folder, group)
        finally:
            remove_group(group)
    if "refusal" in reply:
        raise UserError(reply["refusal"])
    return Outcome(reply["reason"] == "passed", **reply)


def _ask_supervisor(task: Task, folder: str, group: Path | None) -> dict[str, str]:
    """The supervisor's reply: `reason`, `output` and `error` of an outcome, or a `refusal` alone."""
    source = str(Path(__file__).parents[2])  # the folder of the package: the supervisor's Python knows no site-packages
    start = f"import sys; sys.path.insert(0, {source!r}); "
    start += "from gendistill.sandbox.supervisor import supervise; supervise()"
    # The supervisor ends everything when its standard input closes: also if this process is killed.
    with subprocess.Popen(
        [task.python, "-I", "-S", "-c", start],  # -I, -S: neither environment nor site-packages; and a fast start
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=folder,
        start_new_session=True,  # an interrupt at the terminal goes to this process alone
    ) as supervisor:
        guard = threading.Timer(task.seconds + GRACE_SECONDS, supervisor.kill)
        guard.start()
        try:
            enter_group(group, supervisor.pid)  # which waits for the kernel, while that Python starts
            with suppress(BrokenPipeError):  # it has ended already; its reply says why
                supervisor.stdin.write(json.dumps([task, group and str(group)]).encode() + b"\n")
                supervisor.stdin.flush()
            reply = supervisor.stdout.read()
        finally:
            guard.cancel()
    if not reply and has_killed(group):  # it was the largest of the group
        return {"reason": "memory", "output": "", "error": ""}
    return json.loads(reply or '{"reason": "failed", "output": "", "error": "The supervisor was killed."}')
