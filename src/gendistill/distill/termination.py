"""SIGTERM in the middle of training: the step is finished and kept first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from gendistill.errors import Stopped

CODE = 128 + signal.SIGTERM


@contextmanager
def kept_waiting() -> Iterator[Callable[[], bool]]:
    """While the block runs, SIGTERM only makes the function that it gets return True; a second one ends the process.

    With many processes a second one changes nothing: torchrun passes on to them what a scheduler sent them already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = []

    def wait(*_) -> None:
        if asked and not dist.is_initialized():
            raise Stopped("stopped by a second SIGTERM; the same command resumes from the last checkpoint", CODE)
        asked.append(True)

    before = signal.signal(signal.SIGTERM, wait)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
