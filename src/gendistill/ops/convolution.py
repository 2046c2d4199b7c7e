"""From the projections of q, k and v to what the recurrence takes, a short causal depthwise convolution first."""

from typing import Literal

import torch
import torch.nn.functional as F

from gendistill.ops.convolution_kernels import kernel_convolved_heads
from gendistill.ops.dispatch import takes_kernels
from gendistill.ops.reference import l2_normalize

CONV_ACTIVATIONS = ("none", "silu")


def convolved_heads(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    heads: int,
    key_heads: int,
    activation: Literal["none", "silu"],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Convolves, activates, splits into heads, L2-normalises q and k, and repeats k and v for every query head.

    Args:
        x: [B, T, C] with C = (heads + 2 key_heads) D: q, k and v side by side, each head by head.
        weight: [C, W], the current token's tap last.
        bias: [C].
        positions: [B, T], position of each token in its document; None if each row is one document.
        heads: a multiple of key_heads; the copies of a head of k or v stand side by side.

    Returns:
        q, k, v: [B, T, heads, D] each, contiguous, of x's dtype.
    """
    if heads % key_heads or x.shape[-1] % (heads + 2 * key_heads):
        raise ValueError(f"{x.shape[-1]} channels are no {heads} heads of q and {key_heads} of k and of v")
    if activation not in CONV_ACTIVATIONS:
        raise ValueError(f"convolution activation '{activation}': choose one of {', '.join(CONV_ACTIVATIONS)}")
    by_device = kernel_convolved_heads if takes_kernels(x) else plain_convolved_heads
    return by_device(x, weight, bias, positions, heads, key_heads, activation == "silu")


def plain_convolved_heads(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor | None,
    heads: int,
    key_heads: int,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`convolved_heads` in plain PyTorch; the norm is in float32 at least."""
    y = short_convolution(x, weight, bias, positions)  # [B, T, C]
    y = F.silu(y) if silu else y
    # [B, T, heads or key heads, D] each.
    q, k, v = y.unflatten(-1, (heads + 2 * key_heads, -1)).split([heads, key_heads, key_heads], dim=2)
    # A sum of squares in bf16 loses small channels, and with a key too long the delta rule overwrites too much.
    q, k = (l2_normalize(part.to(torch.promote_types(part.dtype, torch.float32))) for part in (q, k))
    # Each copy beside its original, as grouped-query attention shares them: the recurrence knows no groups.
    k, v = (part.repeat_interleave(heads // key_heads, dim=2) for part in (k, v))
    return q.to(x.dtype), k.to(x.dtype), v.to(x.dtype)


def short_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """y[b, t, c] = bias[c] + sum over lag = 0 to min(W - 1, positions[b, t]) of weight[c, -1 - lag] * x[b, t - lag, c].

    Args:
        x: [B, T, C].
        weight: [C, W].
        bias: [C].
        positions: [B, T], position of each token in its document; None if each row is one document.

    Returns:
        [B, T, C].
    """
    out = bias + x * weight[:, -1]
    # Shifted copies and not F.conv1d: no transposes, and boundaries of documents cost a product with a mask.
    for lag in range(1, weight.shape[1]):
        shifted = F.pad(x, (0, 0, lag, 0))[:, : x.shape[1]]  # [B, T, C]; zeros before a row's first token
        if positions is not None:  # and before a document's first token
            shifted = shifted * (positions >= lag)[..., None]
        out = out + shifted * weight[:, -1 - lag]
    return out
