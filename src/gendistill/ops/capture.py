"""How CUDA graphs are captured here."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def captured(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Iterator[None]:
    """What the block gives to the device is kept in the graph and not run.

    Args:
        pool: of another graph, to take memory from; None: one of its own.
    """
    # A graph that is garbage gives memory back when it is collected, and to do that during a capture ends the capture.
    collects = gc.isenabled()
    gc.disable()
    try:
        # Other threads may use the device meanwhile; by default an unsafe call of theirs would break the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()
