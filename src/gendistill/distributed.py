"""Many processes as one: process groups, started by torchrun."""

import atexit
import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gendistill.errors import UserError

T = TypeVar("T")
P = ParamSpec("P")
PATIENCE = timedelta(days=7)  # of processes that wait while the first one converts or evaluates; torchrun sees deaths
SECONDS_TO_END = 5  # in which torchrun ends the others once the first process has ended


def start(device: str) -> None:
    """Joins the processes that torchrun started, if it did."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before anything is put on "cuda"
        store, own_rank, together = next(rendezvous("env://"))
        # torchrun keeps one store over its restarts (pytorch#135712): addresses of the dead are not to be found in it.
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
        # gloo beside nccl: checkpoints and barriers go over the CPU.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=together, timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)  # left to the interpreter's end, its threads can abort the process


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_rank_zero() -> bool:
    return rank() == 0


def barrier() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # over gloo: a barrier of NCCL would keep the GPUs busy


def on_rank_zero(do: Callable[[], T]) -> T | None:
    """What `do` returns on the first process; the others wait, and get None.

    If it raises there, the others go on waiting until torchrun ends them.
    """
    result = do() if is_rank_zero() else None
    barrier()  # after it the others may read what `do` has written
    return result


def as_rank_zero_says(do: Callable[[], T]) -> T:
    """What `do` returns on the first process, on all of them: for what all must agree on and one can find out."""
    if not dist.is_initialized():
        return do()
    said = [do() if is_rank_zero() else None]
    dist.broadcast_object_list(said, device=torch.device("cpu"))  # over gloo, as barriers
    return said[0]


def report_errors_once(do: Callable[P, T]) -> Callable[P, T]:
    """Where all processes come to the same UserError, it is printed once: the others hold it back until they are ended.

    One that is alone with its error does get to report it.
    """

    @wraps(do)
    def patient(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return do(*args, **kwargs)
        except UserError:
            if not is_rank_zero():
                time.sleep(SECONDS_TO_END)
            raise

    return patient
