"""Between fork and exec: the child that takes privileges from itself and becomes the program."""

import marshal
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from gendistill.sandbox.filter import filter_calls
from gendistill.sandbox.isolation import enter_own_root, guard_files, limit_resources
from gendistill.sandbox.libc import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, libc
from gendistill.sandbox.processes import reap
from gendistill.sandbox.task import Task

CPU_TIME_STATUS = 128 + signal.SIGXCPU  # as `processes.reap` gives it
_MODULES = ("task", "channel", "sides", "runner")  # of what runs in there, in the order of their imports
# Takes the modules' code from a descriptor: the program's Python knows neither this package nor where it lies.
_START = """
import marshal, sys, types
codes, tests, *flags = map(int, sys.argv[1:])
with open(codes, "rb") as file:
    codes = marshal.load(file)
for name, code in codes.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(code, module.__dict__)
for name in codes:
    del sys.modules[name]
module.main(tests, *flags)
"""


def run_child(task: Task, writers: dict[str, int], user: int | None) -> NoReturn:
    """What the supervisor's child does from its fork on: isolates itself and becomes the program.

    Args:
        writers: ends of pipes to write to, by name: "refusal" if isolation fails, "output", "error".
        user: the unused user id that root drops to; None for other users.
    """
    try:
        os.umask(0o022)  # the unused user must be able to read what root makes for it
        with suppress(OSError):
            # Out of memory, the kernel ends this process before the supervisor, which is in the same group.
            Path("/proc/self/oom_score_adj").write_text("1000")
        folder = os.getcwd()
        codes = _codes()  # while their files are there
        if task.isolation == "namespaces":
            enter_own_root(folder, task.packages)
            folder = "/tmp"
            # The first process of a namespace cannot be ended by most signals, so the program is its second.
            program = os.fork()
            if program:
                os.close(writers["refusal"])  # it closes in the program with exec, which tells that the program runs
                _run_init(program)
        # "replace": half a surrogate pair becomes a question mark, and the program fails by itself.
        Path("program.py").write_bytes(task.code.encode(errors="replace"))
        if user is not None:
            os.chown(folder, user, user)
        _become_program(task, codes, writers, folder, user)
    except BaseException as error:  # never back into the supervisor's code, of which this is a copy
        os.write(writers["refusal"], f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def _become_program(task: Task, codes: bytes, writers: dict[str, int], folder: str, user: int | None) -> NoReturn:
    """Gives up privileges, one after another, and executes the runner.

    The order matters: what needs root comes before the change of user, and the filter comes last, as it refuses calls
    that the steps before it need (making files in memory, changing another limit).
    """
    os.setsid()  # or it could signal the supervisor as one of its own process group
    stdin = _in_memory(task.stdin.encode(errors="replace"))
    # The tests are no file: the program must not read what is expected of it.
    runner, tests = _in_memory(codes), _in_memory(task.tests.encode(errors="replace"))
    for number, stream in enumerate((stdin, writers["output"], writers["error"])):
        os.dup2(stream, number)
    for descriptor in (runner, tests):  # all others close with exec
        os.set_inheritable(descriptor, True)
    limit_resources(task)
    if user is not None:
        os.setgroups([])  # groups first: an ordinary user may no longer change them
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no setuid program helps; Landlock and the filter ask for it
    # Otherwise other processes of this user lie within reach, and files with their modes and times.
    alone = task.isolation == "namespaces" or user is not None
    guarded = task.isolation == "namespaces" or guard_files(folder, task.packages, required=not alone)
    filter_calls(no_signals=not alone)
    # One thread: a pool of one a core would break the limit on processes.
    environment = {"HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    arguments = map(str, (runner, tests, int(not guarded), int(task.isolation == "seccomp")))
    os.execve(task.python, [task.python, "-I", "-u", "-X", "utf8", "-c", _START, *arguments], environment)


def _codes() -> bytes:
    """Compiled code of the modules that run in isolation, by their names."""
    codes = {}
    for name in _MODULES:
        loader = type(__loader__)(f"gendistill.sandbox.{name}", str(Path(__file__).with_name(f"{name}.py")))
        codes[loader.name] = loader.get_code(loader.name)  # from __pycache__, if it can
    return marshal.dumps(codes)


def _run_init(program: int) -> NoReturn:
    """First process of the namespace: reaps orphans and ends, and with it all others, when the program does."""
    libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # it dies with the supervisor
    while (status := reap(program)) is None:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # blocks until somebody ends, and leaves it to `reap`
    os._exit(status)


def _in_memory(content: bytes) -> int:
    """A descriptor that holds `content` to read."""
    descriptor = os.memfd_create("content")  # in memory: no file of the program's, and its end is its content's
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
