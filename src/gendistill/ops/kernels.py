"""The recurrence on CUDA tensors by flash-linear-attention's kernels (fla-core)."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from gendistill.errors import UserError
from gendistill.ops.documents import Documents
from gendistill.ops.reference import l2_normalize


class Kernels(NamedTuple):
    """fla's functions for one kind of state update: many tokens with gradients, and one token without."""

    chunk: Callable
    step: Callable


def kernel_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
    bounded: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Same arguments and results as `recurrent_linear_attention`; one token without gradients takes the step kernel.

    The final state of packed documents is not kept (it would be one a document) and comes back as None.

    Args:
        bounded: g >= -5 everywhere, so that Kimi Delta Attention's products inside a chunk can use the tensor cores.

    Raises:
        UserError: fla-core is not installed.
    """
    per_channel = g.dim() == 4
    kernels = load_kernels()[beta is not None, per_channel]
    inputs = {"q": q, "k": k, "v": v, "g": g.float()}
    options = {}
    if beta is None:  # these kernels do not normalise
        inputs |= {"q": l2_normalize(q.float()).to(q.dtype), "k": l2_normalize(k.float()).to(k.dtype)}
    else:
        inputs["beta"] = beta.float()
        options["use_qk_l2norm_in_kernel"] = True
        if bounded and per_channel:
            options["safe_gate"] = True
    if documents is not None:
        packed = {name: x.flatten(0, 1).unsqueeze(0) for name, x in inputs.items()}
        o, _ = kernels.chunk(**packed, **options, cu_seqlens=documents.cu_seqlens)
        return o.view_as(v), None
    if q.shape[1] > 1 or torch.is_grad_enabled():
        return kernels.chunk(**inputs, **options, initial_state=initial_state, output_final_state=True)
    if beta is None and per_channel:
        inputs["gk"] = inputs.pop("g")
    options.pop("safe_gate", None)
    return kernels.step(**inputs, **options, initial_state=initial_state, output_final_state=True)


@cache
def load_kernels() -> dict[tuple[bool, bool], Kernels]:
    """fla's kernels by (delta rule, decay per channel). On Hopper they start with the launch settings shipped here.

    Autotuning would compile hundreds of candidates first: many minutes on a cold machine (results/gpu/cold_start.json).
    FLA_CACHE_MODE=disabled in the environment brings it back.

    Raises:
        UserError: fla-core is not installed.
    """
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
        os.environ.setdefault("FLA_CONFIG_DIR", str(Path(__file__).with_name("launch_settings")))
        os.environ.setdefault("FLA_CACHE_MODE", "full")
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
        from fla.ops.gla import chunk_gla, fused_recurrent_gla
        from fla.ops.kda import chunk_kda, fused_recurrent_kda
        from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
    except ImportError as error:
        raise UserError(
            f"CUDA tensors need the kernels of fla-core, which cannot be imported ({error}). "
            'Install them with: pip install "gendistill[gpu]"'
        ) from None
    return {
        (True, True): Kernels(chunk_kda, fused_recurrent_kda),
        (True, False): Kernels(chunk_gated_delta_rule, fused_recurrent_gated_delta_rule),
        (False, True): Kernels(chunk_gla, fused_recurrent_gla),
        (False, False): Kernels(chunk_simple_gla, fused_recurrent_simple_gla),
    }
