"""The gated delta rule on CUDA tensors by flash-linear-attention's kernels (fla-core)."""

import os
from functools import cache
from pathlib import Path

import torch

from gendistill.errors import UserError
from gendistill.ops.documents import Documents


def kernel_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `recurrent_gated_delta_rule`; one token without gradients takes the step kernel.

    The final state of packed documents is not kept (it would be one a document) and comes back as None.

    Raises:
        UserError: fla-core is not installed.
    """
    chunk_kda, fused_recurrent_kda = _kernels()
    arguments = {"use_qk_l2norm_in_kernel": True, "g": g.float(), "beta": beta.float()}
    if documents is not None:
        packed = [x.flatten(0, 1).unsqueeze(0) for x in (q, k, v, arguments["g"], arguments["beta"])]
        o, _ = chunk_kda(*packed, use_qk_l2norm_in_kernel=True, cu_seqlens=documents.cu_seqlens)
        return o.view_as(v), None
    step = q.shape[1] == 1 and not torch.is_grad_enabled()
    kernel = fused_recurrent_kda if step else chunk_kda
    return kernel(q=q, k=k, v=v, initial_state=initial_state, output_final_state=True, **arguments)


@cache
def _kernels():
    """fla's chunk and step kernels. On Hopper they start with the launch settings shipped here, tested but not tuned.

    Autotuning tries every setting of every kernel and compiles each, over eight minutes on a cold H100.
    FLA_CACHE_MODE=disabled in the environment brings it back.
    """
    if torch.cuda.get_device_capability() == (9, 0):
        os.environ.setdefault("FLA_CONFIG_DIR", str(Path(__file__).with_name("launch_settings")))
        os.environ.setdefault("FLA_CACHE_MODE", "full")
    try:
        from fla.ops.kda import chunk_kda, fused_recurrent_kda
    except ImportError as error:
        raise UserError(
            f"CUDA tensors need the kernels of fla-core, which cannot be imported ({error}). "
            'Install them with: pip install "gendistill[gpu]"'
        ) from None
    return chunk_kda, fused_recurrent_kda
