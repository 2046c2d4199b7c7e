"""The short causal depthwise convolution before the recurrence."""

import torch
import torch.nn.functional as F

from gendistill.ops.convolution_kernels import kernel_convolution
from gendistill.ops.dispatch import takes_kernels


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
    if takes_kernels(x):
        return kernel_convolution(x, weight, bias, positions)
    return shifted_sum(x, weight, bias, positions)


def shifted_sum(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """`short_convolution` in plain PyTorch."""
    out = bias + x * weight[:, -1]
    for lag in range(1, weight.shape[1]):
        shifted = F.pad(x, (0, 0, lag, 0))[:, : x.shape[1]]
        if positions is not None:
            shifted = shifted * (positions >= lag)[..., None]
        out = out + shifted * weight[:, -1 - lag]
    return out
