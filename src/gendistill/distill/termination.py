"""SIGTERM in the middle of training: the step is finished and kept first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gendistill.distributed import processes
from gendistill.errors import Stopped

CODE = 128 + signal.SIGTERM


@contextmanager
def kept_waiting() -> Iterator[Callable[[], bool]]:
    """While the block runs, SIGTERM only makes the function that it gets return True; a second one ends the process.

    With many processes nothing is changed: they would have to agree on the step, and the first to be ended ends all.
    """
    if processes() > 1 or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = []

    def wait(*_) -> None:
        if asked:
            raise Stopped("stopped by a second SIGTERM; the same command resumes from the last checkpoint", CODE)
        asked.append(True)

    before = signal.signal(signal.SIGTERM, wait)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
