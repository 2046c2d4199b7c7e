"""One token's way through a short causal depthwise convolution.

Shapes: B rows, C channels, W taps.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.decode_convolution_kernels import Convolution, kernel_convolve_token
from gendistill.ops.dispatch import takes_kernels


def convolve_token(x: torch.Tensor, convolution: Convolution) -> torch.Tensor:
    """[B, C], in float32 at least, of x [B, at least C]; the convolution's state takes the token in."""
    if takes_kernels(x):
        return kernel_convolve_token(x, convolution)
    state, weight, bias, silu = convolution
    new = x[:, : len(bias), None].to(state.dtype)  # [B, C, 1]
    state.copy_(torch.cat([state[..., 1:], new], dim=-1))
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (state.to(wide) * weight).sum(-1) + bias
    return F.silu(y) if silu else y
