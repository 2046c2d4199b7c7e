"""Products of one token with a weight matrix, with what stands before and behind them in a decoder layer.

With so few rows a product takes as long as reading its weights; on CUDA a few rows have a kernel that comes near
that, and spares the launches of norm, activation and addition.

Shapes: B rows, N inputs, M outputs.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.decode_linear_kernels import can_take, kernel_decode_linear, kernel_gated, kernel_rms_norm
from gendistill.ops.dispatch import takes_kernels


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension as transformers' Llama has it: rounded before the weight is applied."""
    y = x.float()
    return weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def decode_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    up: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """norm(x) @ weight^T + bias + residual, or of a gated MLP, silu(gate) * up.

    Args:
        x: [B, N].
        weight: [M, N]; with `up` the gate's.
        bias: [M].
        norm: weight [N] and eps of an RMSNorm of x; None for no norm.
        up: weight [M, N] and bias of the projection that the gate multiplies.
        residual: [B, M], added.

    Returns:
        [B, M].
    """
    if takes_kernels(x) and can_take(*x.shape):
        return kernel_decode_linear(x, weight, bias, norm, up, residual)
    x = x if norm is None else normed(x, *norm)
    y = F.linear(x, weight, bias)
    y = y if up is None else gated(y, F.linear(x, *up))
    return y if residual is None else residual + y


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm`, by a kernel on CUDA."""
    return kernel_rms_norm(x, weight, eps) if takes_kernels(x) else rms_norm(x, weight, eps)


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    return kernel_gated(gate, up) if takes_kernels(gate) else F.silu(gate) * up
