"""Many processes as one: started by torchrun, sharded by torch's FSDP2.

Every process holds a share of each decoder layer, teacher's and student's, and takes an equal share of a step's rows.
Embedding, head, final norm and the decay gates' float32 parameters stay whole on each: the loss needs the head whole,
and FSDP would round the gates.
"""

import atexit
import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous

from gendistill.distill.optimizer import DECAY_GATE
from gendistill.errors import UserError
from gendistill.recipe import Stage

T = TypeVar("T")
P = ParamSpec("P")
PATIENCE = timedelta(days=7)  # of processes that wait while the first one converts or evaluates; torchrun sees deaths
FIRST_WORD = 5  # seconds in which torchrun ends the others once the first process has ended


def start(device: str) -> None:
    """Joins the processes that torchrun started, if it did."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, own_rank, together = next(rendezvous("env://"))
        # torchrun keeps one store over its restarts (pytorch#135712): addresses of the dead are not to be found in it.
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=together, timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)  # left to the interpreter's end, its threads can abort the process


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # over gloo: a barrier of NCCL would keep the GPUs busy


def first_alone(do: Callable[[], T]) -> T | None:
    """What `do` returns on the first process; the others wait, and get None.

    If it raises there, the others go on waiting until torchrun ends them.
    """
    result = do() if is_first() else None
    wait_for_all()
    return result


def first_to_complain(do: Callable[P, T]) -> Callable[P, T]:
    """Where all processes come to the same UserError, it is printed once: the others hold it back until they are ended.

    One that is alone with its error does get to say it.
    """

    @wraps(do)
    def patient(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return do(*args, **kwargs)
        except UserError:
            if not is_first():
                time.sleep(FIRST_WORD)
            raise

    return patient


def check_divisible(name: str, stage: Stage) -> None:
    """Raises UserError if a step's rows cannot be dealt out evenly."""
    if stage.sequences_per_step % processes():
        raise UserError(
            f"stages.{name}: sequences_per_step {stage.sequences_per_step} cannot be dealt out to {processes()} "
            "processes; start a number of processes that divides it"
        )


def shard(model: nn.Module, *, compares: str, dtype: torch.dtype, device: str) -> None:
    """Shards a teacher or student over all processes, in units that the objective calls.

    Args:
        compares: the stage's pass. Alignment of mixers calls each by itself, so each is a unit.
        dtype: of the arithmetic; a float32 student keeps its shards in float32 and rounds what it gathers.
    """
    mesh = dist.init_device_mesh(device, (processes(),))
    layers = model.model.layers
    alone = [layer.linear_attn for layer in layers if hasattr(layer, "linear_attn")] if compares == "mixer" else []
    body = model.model
    whole = {
        p for name, p in model.named_parameters() if not name.startswith("model.layers.") or name.endswith(DECAY_GATE)
    }
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.promote_types(dtype, torch.float32)
    )
    options = {"mesh": mesh, "mp_policy": policy, "ignored_params": whole}
    for unit in (*alone, *layers):
        fully_shard(unit, **options)
    if compares == "end_to_end":
        fully_shard(body, **options)  # so that layers are gathered ahead of their turn
