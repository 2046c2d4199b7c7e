"""One token's way through a short causal convolution, as a part of Triton kernels.

Shapes: B rows, C channels, W taps.
"""

from typing import NamedTuple

import torch

from gendistill.ops.optional_triton import tl, triton


class Convolution(NamedTuple):
    """A causal depthwise convolution and what it has seen.

    Attributes:
        state: [B, C, W], the last inputs; a step shifts it by its own.
        weight: [C, W], the current token's tap last.
        bias: [C].
        silu: whether SiLU follows.
    """

    state: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    silu: bool


if triton is not None:

    @triton.jit
    def convolve_inputs(
        state, WEIGHT, BIAS, new, channel, there, TAPS: tl.constexpr, TAPS_PADDED: tl.constexpr, SILU: tl.constexpr
    ):
        """What a convolution makes of the inputs `new` of some channels, float32.

        Args:
            state: of each channel, where its last inputs stand; takes the new one in.
            channel: its number.
            there: whether there is such a channel.
        """
        tap = tl.arange(0, TAPS_PADDED)[None, :]
        earlier = there[:, None] & (tap < TAPS - 1)
        past = tl.load(state[:, None] + tap + 1, mask=earlier, other=0.0)  # [channels, TAPS_PADDED]
        weight = tl.load(WEIGHT + channel[:, None] * TAPS + tap, mask=earlier, other=0.0)
        y = tl.load(BIAS + channel, mask=there, other=0.0).to(tl.float32)
        y += tl.load(WEIGHT + channel * TAPS + TAPS - 1, mask=there, other=0.0).to(tl.float32) * new.to(tl.float32)
        y += tl.sum(past.to(tl.float32) * weight.to(tl.float32), 1)
        tl.debug_barrier()  # a thread stores where another one loads
        tl.store(state[:, None] + tap, past, mask=earlier)
        tl.store(state + TAPS - 1, new, mask=there)
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        return y
