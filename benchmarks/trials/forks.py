"""The command line in forks of one process that has imported everything: a start takes milliseconds, not seconds."""

import importlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120  # seconds for one command; undisturbed ones take ten at most


class Child:
    """A command in a process of its own; what it prints goes to a file."""

    def __init__(self, arguments: list[str], output: Path):
        self.output = output
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, output)

    def has_ended(self) -> bool:
        """Whether it has, without waiting."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def send(self, number: int) -> None:
        os.kill(self.pid, number)  # not waited for yet, so the number is still its own

    def wait(self) -> int:
        """The exit status, as shells report it."""
        deadline = time.monotonic() + PATIENCE
        while not self.has_ended():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a command took more than {PATIENCE} s: {self.output.read_text()[-2000:]}")
            time.sleep(0.002)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status if status >= 0 else 128 - status

    @property
    def printed(self) -> str:
        return self.output.read_text(errors="replace")


def _become(arguments: list[str], output: Path) -> None:
    """The child: never returns."""
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored in what runs behind them
        sys.argv = ["gendistill", *arguments]
        from gendistill.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter itself would end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def preload(use: Callable[[], None]) -> None:
    """Imports into this process what `use` imports, and computes nothing: threads would not survive a fork."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            use()
        finally:
            with os.fdopen(writing, "w") as pipe:
                pipe.write("\n".join(sys.modules))
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        names = pipe.read().split("\n")
    os.waitpid(pid, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if not name.startswith("__"):
                try:
                    importlib.import_module(name)
                except Exception:  # made by another module on its way, or for another system: the child imports it
                    continue
