"""The short convolution of a decoding step as a Triton kernel, and as the end of another one.

Shapes: B rows, C channels, W taps.
"""

from typing import NamedTuple

import torch

from gendistill.ops.optional_triton import overlap, require_triton, tl, triton

CHANNELS = 128  # of a program, one for each of its threads


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


def kernel_convolve_token(x: torch.Tensor, convolution: Convolution) -> torch.Tensor:
    """As `decode_convolution.convolve_token`, on a GPU.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    state, weight, bias, silu = convolution
    channels, taps = weight.shape
    y = x.new_empty(len(x), channels, dtype=torch.float32)  # rounded by who reads it, behind its norm
    _convolve[(len(x), triton.cdiv(channels, CHANNELS))](
        x, x.stride(0), state, weight, bias, y, channels, CHANNELS=CHANNELS, TAPS=taps,
        TAPS_PADDED=triton.next_power_of_2(taps), SILU=silu, num_warps=4, **overlap(),
    )  # fmt: skip
    return y


if triton is not None:

    @triton.jit
    def _convolve(
        X, row_stride, STATE, WEIGHT, BIAS, Y, channels,
        CHANNELS: tl.constexpr, TAPS: tl.constexpr, TAPS_PADDED: tl.constexpr, SILU: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        row = tl.program_id(0)
        channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        there = channel < channels
        new = tl.load(X + row * row_stride + channel, mask=there, other=0.0)
        place = row * channels + channel
        y = convolve_inputs(STATE + place * TAPS, WEIGHT, BIAS, new, channel, there, TAPS, TAPS_PADDED, SILU)
        tl.store(Y + place, y, mask=there)

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
