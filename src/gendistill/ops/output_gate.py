"""Between the recurrence and the output projection: a norm of each head, and the output gate."""

from typing import Literal

import torch
import torch.nn.functional as F

from gendistill.ops.dispatch import takes_kernels
from gendistill.ops.output_gate_kernels import kernel_gated_norm

GATE_ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}  # the kernels have these two built in


def gated_norm(
    o: torch.Tensor,
    gate: torch.Tensor,
    bias: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    activation: Literal["silu", "sigmoid"],
) -> torch.Tensor:
    """norm(o) * activation(gate + bias).

    Args:
        o: [B, T, H, D].
        gate: [B, T, H * D], the product of the gate's projection, without its bias.
        bias: [H * D], that projection's.
        weight: [D] of an RMSNorm over the channels of a head; None for no norm.
        eps: the norm's.

    Returns:
        [B, T, H * D] of gate's dtype.
    """
    if activation not in GATE_ACTIVATIONS:
        raise ValueError(f"gate activation '{activation}': choose one of {', '.join(GATE_ACTIVATIONS)}")
    by_device = kernel_gated_norm if takes_kernels(o) else plain_gated_norm
    return by_device(o, gate, bias, weight, eps, activation)


def plain_gated_norm(
    o: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, weight: torch.Tensor | None, eps: float, activation: str
) -> torch.Tensor:
    """`gated_norm` in plain PyTorch; the norm is in float32 at least, its weight applied after rounding."""
    if weight is not None:
        x = o.to(torch.promote_types(o.dtype, torch.float32))  # [B, T, H, D]
        # Rounded before the weight is applied, as transformers' RMSNorm does it.
        o = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)).to(o.dtype)
    # The bias is added here and not in the projection: the kernel has it in registers anyway.
    return (o.flatten(-2) * GATE_ACTIVATIONS[activation](gate + bias)).to(gate.dtype)
