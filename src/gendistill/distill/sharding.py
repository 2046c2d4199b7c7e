"""Layers of teacher and student sharded over all processes by torch's FSDP2.

Every process holds a share of each decoder layer, teacher's and student's, and an equal share of a step's sequences.
Layers are gathered for each pass through them, or once a step (ZeRO stages 3 and 2, arXiv 1910.02054).
Embedding, head, final norm and the decay gates' float32 parameters stay whole on each: the loss needs the head whole,
and FSDP would round the gates.
"""

from typing import get_args

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from gendistill.compute import Compute
from gendistill.distributed import processes
from gendistill.errors import UserError
from gendistill.models.modeling import describe
from gendistill.names import Pass, look_up
from gendistill.recipe.stage import Stage


def check_divisible(name: str, stage: Stage, processes: int) -> None:
    """Raises UserError if a step's sequences cannot be dealt out evenly."""
    if stage.sequences_per_step % processes:
        raise UserError(
            f"stages.{name}: sequences_per_step {stage.sequences_per_step} cannot be dealt out to {processes} "
            "processes; start a number of processes that divides it"
        )


def shard(model: nn.Module, *, compares: Pass, compute: Compute) -> None:
    """Shards a teacher or student over all processes, or over those of a host, in units that the objective calls.

    Args:
        compares: the stage's pass. Alignment of mixers calls each by itself, so each is a unit.
        compute: whose strategy is "hybrid", "zero2" or "fsdp". A float32 student keeps its shards in float32 and rounds
            what it gathers.
    """
    dtype = compute.dtype
    # Of two dimensions FSDP shards over the last, and has replicas over the first. torchrun numbers host by host.
    meshes = {"fsdp": (processes(),), "zero2": (processes(),), "hybrid": (compute.hosts, processes() // compute.hosts)}
    shape = look_up(meshes, compute.strategy, "way of sharding")
    mesh = dist.init_device_mesh(compute.device, shape, mesh_dim_names=("hosts", "processes")[-len(shape) :])
    layers = model.model.layers
    match compares:
        case "mixer":
            mixers = [layer.linear_attn for layer in layers if hasattr(layer, "linear_attn")]
            units = [*mixers, *layers]  # inner ones first, as FSDP wants it
        case "block":
            units = [*layers]
        case "end_to_end":
            units = [*layers, model.model]  # the body, so that layers are gathered ahead of their turn
        case _:
            raise ValueError(f"unknown pass '{compares}'; known: {', '.join(get_args(Pass))}")
    whole = {
        p
        for name, p in model.named_parameters()
        if not name.startswith("model.layers.") or describe(name).stays_float32
    }
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,  # None: as they are
        reduce_dtype=torch.promote_types(dtype, torch.float32),  # sums over processes lose nothing
    )
    frees = False if compute.gathers_once else None  # None: behind each pass, all but the outermost unit
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=whole, reshard_after_forward=frees)


def free_after_backward(model: nn.Module, frees: bool) -> None:
    """Whether what is gathered of a sharded model is freed behind the next backward pass: before its weights change."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_backward(frees, recurse=False)
