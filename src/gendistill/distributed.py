"""Many processes as one: process groups, started by torchrun."""

import atexit
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gendistill.errors import UserError

T = TypeVar("T")
P = ParamSpec("P")
PATIENCE = timedelta(days=7)  # of processes that wait while the first one converts or evaluates; torchrun sees deaths
MEETING = timedelta(minutes=10)  # in which all processes must have started
SECONDS_TO_END = 5  # in which torchrun ends the others once the first process has ended


def start(device: str) -> None:
    """Joins the processes that torchrun started, if it did.

    Raises:
        UserError: a process has no GPU of its own, torch has no NCCL, or not all processes come within MEETING.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    if device == "cuda":
        _take_gpu()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, own_rank, together = next(rendezvous("env://", timeout=MEETING))
    except dist.DistError as error:
        raise UserError(
            f"process {os.environ['RANK']} cannot reach the others at {address} ({str(error).splitlines()[0]}). Is "
            "that port open between the hosts, and free of other programs? torchrun's --rdzv-endpoint chooses another"
        ) from None
    # torchrun keeps one store over its restarts (pytorch#135712): addresses of the dead are not to be found in it.
    store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    _meet(store, own_rank, together)
    # gloo beside nccl: checkpoints and barriers go over the CPU.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=together, timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)  # left to the interpreter's end, its threads can abort the process


def _take_gpu() -> None:
    """Makes "cuda" mean this process's own GPU, before anything is put there."""
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if own >= there:
        raise UserError(
            f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on this host, which has {there} GPU(s); "
            f"start it with --nproc-per-node {there}"
        )
    if not dist.is_nccl_available():
        raise UserError(
            "this torch has no NCCL, by which GPUs exchange gradients: install a build of torch for CUDA on Linux, or "
            "start one process without torchrun"
        )
    torch.cuda.set_device(own)


def _meet(store: dist.Store, own_rank: int, together: int) -> None:
    """Returns when all processes are there: one that died at its start would be waited for as long as for a long step.

    Raises:
        UserError: some have not come within MEETING; says which.
    """
    store.set(f"here {own_rank}", "")
    # By the store, which torchrun keeps: a group cannot be made before all are there, and waits for PATIENCE.
    try:
        store.wait([f"here {other}" for other in range(together)], MEETING)
    except dist.DistError:
        missing = [other for other in range(together) if not store.check([f"here {other}"])]
        raise UserError(
            f"of {together} processes, {', '.join(map(str, missing))} did not come within {MEETING}. What each said "
            "before it ended stands in the output of its host; start all again when it is mended"
        ) from None


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_here() -> int:
    """Of the processes, those on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() and "LOCAL_WORLD_SIZE" in os.environ else 1


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


def check_equal(settings: Mapping[str, str]) -> None:
    """Raises UserError, in all processes, unless each setting is the same in all of them; names those that differ."""
    # All come to the same end, so that none continues and waits for the rest.
    first, *others = of_all_processes(settings)
    for other, own in enumerate(others, 1):
        if different := [name for name in first if own[name] != first[name]]:
            raise UserError(
                f"processes 0 and {other} differ in: {', '.join(different)}. Start all of them with the same command, "
                "and install the same versions on every host"
            )


def of_all_processes(own: T) -> list[T]:
    """What each process has, in their order, on all of them."""
    if not dist.is_initialized():
        return [own]
    parts: list = [None] * dist.get_world_size()  # written over
    dist.all_gather_object(parts, own)  # over gloo, as barriers
    return parts


@dataclass(frozen=True)
class Share:
    """One process's part of work that is dealt out to all of them in turn.

    Attributes:
        number: of the process, from 0.
        processes: that share the work.
    """

    number: int = 0
    processes: int = 1

    def of(self, things: Sequence[T]) -> Sequence[T]:
        # In turn, not in blocks: what is sorted by length is heavy at one end.
        return things[self.number :: self.processes]

    def of_all(self, own: Sequence[T]) -> list[T]:
        """What the processes made of their parts, in the order of the whole; all must call it."""
        if self.processes == 1:
            return list(own)
        parts = of_all_processes(own)
        whole: list = [None] * sum(map(len, parts))  # written over
        for number, part in enumerate(parts):
            whole[number :: self.processes] = part
        return whole


WHOLE = Share()


def dealt(tensors: Sequence[Tensor], do: Callable[[Tensor], Tensor], share: Share) -> list[Tensor]:
    """What `do` makes of each tensor, in their order and on all processes, each made by one of them.

    Args:
        do: gives a tensor of the shape and precision that it takes.
    """
    owners = [i % share.processes for i in range(len(tensors))]
    made = [
        do(x).contiguous() if owner == share.number else torch.empty_like(x)
        for x, owner in zip(tensors, owners, strict=True)
    ]
    if share.processes > 1:
        # All have made their own by now, so that none waits for another's arithmetic but at the end.
        for x, owner in zip(made, owners, strict=True):
            dist.broadcast(x, src=owner)
    return made


def own_share() -> Share:
    return Share(rank(), processes())


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
