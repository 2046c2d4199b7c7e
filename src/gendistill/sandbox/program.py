"""Between fork and exec: the child that takes privileges from itself and becomes the program."""

import os
import signal
from pathlib import Path
from typing import NoReturn

from gendistill.sandbox.filter import filter_calls
from gendistill.sandbox.isolation import enter_own_root, guard_files, limit_resources
from gendistill.sandbox.libc import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, libc
from gendistill.sandbox.processes import reap
from gendistill.sandbox.task import Task

MEMORY_STATUS = 77  # of RUNNER after a MemoryError; no exit status that Python or a shell gives a meaning
CPU_TIME_STATUS = 128 + signal.SIGXCPU  # as `processes.reap` gives it

# Runs program.py as __main__. The token is read before and written after it, so that leaving early does not pass.
RUNNER = f"""
import os, sys, types
proof, verdict = map(int, sys.argv[1:])
def run():
    token = os.read(proof, 64)
    os.close(proof)
    # A fork of the program that reaches its last line, or streams put in place of its own, are no proof.
    me, streams = os.getpid(), [os.fstat(1), os.fstat(2)]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = ["program.py"]
    try:
        with open("program.py", encoding="utf-8", newline="") as file:
            source = file.read()
        exec(compile(source, "program.py", "exec", dont_inherit=True), main.__dict__)
        sys.__stdout__.flush()
        sys.__stderr__.flush()
        if not os.path.samestat(streams[0], os.fstat(1)) or not os.path.samestat(streams[1], os.fstat(2)):
            raise OSError("the program replaced its standard streams")
        os.getcwd()
    except MemoryError:
        os._exit({MEMORY_STATUS})
    except Exception as error:
        sys.excepthook(type(error), error.with_traceback(error.__traceback__.tb_next), None)
        os._exit(1)
    if os.getpid() == me:
        os.write(verdict, token)
    os._exit(0)
run()
"""


def run_child(task: Task, token: bytes, writers: dict[str, int], user: int | None) -> NoReturn:
    """What the supervisor's child does from its fork on: isolates itself and becomes the program.

    Args:
        token: what the program's last line must write to be believed.
        writers: ends of pipes to write to, by name: "refusal" if isolation fails, "output", "error", "verdict".
        user: the unused user id that root drops to; None for other users.
    """
    try:
        os.umask(0o022)  # the unused user must be able to read what root makes for it
        folder = os.getcwd()
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
        _become_program(task, token, writers, folder, user)
    except BaseException as error:  # never back into the supervisor's code, of which this is a copy
        os.write(writers["refusal"], f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def _become_program(task: Task, token: bytes, writers: dict[str, int], folder: str, user: int | None) -> NoReturn:
    """Gives up privileges, one after another, and executes the runner.

    The order matters: what needs root comes before the change of user, and the filter comes last, as it refuses calls
    that the steps before it need (making files in memory, changing another limit).
    """
    os.setsid()  # or it could signal the supervisor as one of its own process group
    stdin, proof = _in_memory(task.stdin.encode(errors="replace")), _in_memory(token)
    for number, stream in enumerate((stdin, writers["output"], writers["error"])):
        os.dup2(stream, number)
    for descriptor in (proof, writers["verdict"]):  # all others close with exec
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
    if task.isolation == "seccomp":
        guard_files(folder, task.packages, required=not alone)
    filter_calls(own_signals_only=not alone)
    # One thread: a pool of one a core would break the limit on processes.
    environment = {"HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    runner = [task.python, "-I", "-u", "-X", "utf8", "-c", RUNNER, str(proof), str(writers["verdict"])]
    os.execve(task.python, runner, environment)


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
