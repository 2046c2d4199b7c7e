"""Short causal depthwise convolution of packed documents as two Triton kernels, one opaque op to torch.compile.

As a sum of shifted inputs, torch.compile keeps every shifted copy for the backward pass, and reads them all again.

Shapes: B rows, T tokens a row, C channels, W taps.
"""

import torch

from gendistill.errors import UserError

try:
    import triton
    import triton.language as tl
except ImportError:  # machines without a GPU have none, and must still import this module
    triton = None

# Tokens x channels of a program, its warps and registers: the fastest of 33 on an H100 (results/gpu/convolution.txt).
TILE = {"TOKENS": 64, "CHANNELS": 64, "num_warps": 4, "maxnreg": 128}


def kernel_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """As `convolution.short_convolution`; the gradients, of first order only, are the same bits in every run.

    Args:
        x: [B, T, C], on a GPU.
        weight: [C, W] with W >= 1, of any float dtype, as bias.
        bias: [C].
        positions: [B, T] integers >= 0; None if each row is one document.

    Returns:
        [B, T, C] of x's dtype, contiguous.

    Raises:
        UserError: Triton is not installed.
    """
    if triton is None:
        raise UserError('CUDA tensors need Triton, which is not installed: pip install "gendistill[gpu]"')
    return _forward(x, weight.t().contiguous(), bias, positions)  # [W, C], so that channels load neighbouring numbers


@torch.library.custom_op("gendistill::short_convolution", mutates_args=())
def _forward(x: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(_forward_kernel, x, taps, positions, bias, y)
    return y


@torch.library.custom_op("gendistill::short_convolution_backward", mutates_args=())
def _backward(
    dy: torch.Tensor, x: torch.Tensor, taps: torch.Tensor, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx, and the gradients of taps [W, C] and bias one below the other, float32, still to be summed over programs."""
    dx, partials = torch.empty_like(x, memory_format=torch.contiguous_format), _empty_partials(x, taps)
    _launch(_backward_kernel, x, taps, positions, dy, dx, partials)
    return dx, partials


def _empty_partials(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    (rows, length, channels), tokens = x.shape, TILE["TOKENS"]
    programs = rows * ((length + tokens - 1) // tokens)
    return x.new_empty((programs, taps.shape[0] + 1, channels), dtype=torch.float32)


def _launch(kernel, x: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    rows, length, channels = x.shape
    grid = (triton.cdiv(channels, TILE["CHANNELS"]), triton.cdiv(length, TILE["TOKENS"]), rows)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in (x, *tensors)]
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, whichever has the tensors
        kernel[grid](*tensors, length, channels, W=tensors[1].shape[0], **TILE)


@_forward.register_fake
def _(x, taps, bias, positions):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(dy, x, taps, positions):
    return torch.empty_like(x, memory_format=torch.contiguous_format), _empty_partials(x, taps)


def _save(ctx, inputs, output):
    x, taps, bias, positions = inputs
    ctx.save_for_backward(x, taps, positions)
    ctx.bias_dtype = bias.dtype


def _gradients(ctx, dy):
    x, taps, positions = ctx.saved_tensors
    dx, partials = _backward(dy, x, taps, positions)
    gradients = partials.sum(0)
    return dx, gradients[:-1].to(taps.dtype), gradients[-1].to(ctx.bias_dtype), None


_forward.register_autograd(_gradients, setup_context=_save)


if triton is not None:

    @triton.jit
    def _place(T, C, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
        """A program's channels and tokens, where its row and tile start (int64), and offsets in the tile (int32)."""
        c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
        first, token = tl.program_id(1) * TOKENS, tl.arange(0, TOKENS)
        row = tl.program_id(2).to(tl.int64) * T
        return c, first + token, row, (row + first) * C, token[:, None] * C + c[None, :]

    @triton.jit
    def _reach(positions, row, t, T):
        """The longest lag whose tap counts at token t: as far back as its document and its row go; -1 past the end."""
        reach = t
        if positions is not None:
            reach = tl.minimum(t, tl.load(positions + row + t, mask=t < T, other=0).to(tl.int32))
        return tl.where(t < T, reach, -1)

    @triton.jit
    def _forward_kernel(
        x, taps, positions, bias, y, T, C, W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
    ):
        c, t, row, tile, at = _place(T, C, TOKENS, CHANNELS)
        reach = _reach(positions, row, t, T)
        total = tl.zeros([TOKENS, CHANNELS], tl.float32) + tl.load(bias + c, mask=c < C).to(tl.float32)[None, :]
        for lag in tl.static_range(W):  # x comes from memory once; the other taps find it in the cache
            counts = (lag <= reach)[:, None] & (c < C)[None, :]
            tap = tl.load(x + tile + at - lag * C, mask=counts, other=0.0).to(tl.float32)
            total += tap * tl.load(taps + (W - 1 - lag) * C + c, mask=c < C).to(tl.float32)[None, :]
        tl.store(y + tile + at, total.to(y.dtype.element_ty), mask=(t < T)[:, None] & (c < C)[None, :])

    @triton.jit
    def _backward_kernel(
        x, taps, positions, dy, dx, partials, T, C, W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
    ):
        """Takes each product where its input was: x[t] met dy[t + lag], so that dy alone is read shifted."""
        c, t, row, tile, at = _place(T, C, TOKENS, CHANNELS)
        inside = (t < T)[:, None] & (c < C)[None, :]
        program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
        sums = partials + program * (W + 1) * C + c
        x_tile = tl.load(x + tile + at, mask=inside, other=0.0)
        total = tl.zeros([TOKENS, CHANNELS], tl.float32)
        for lag in tl.static_range(W):
            counts = (lag <= _reach(positions, row, t + lag, T))[:, None] & (c < C)[None, :]
            tap = tl.load(dy + tile + at + lag * C, mask=counts, other=0.0).to(tl.float32)
            total += tap * tl.load(taps + (W - 1 - lag) * C + c, mask=c < C).to(tl.float32)[None, :]
            tl.store(sums + (W - 1 - lag) * C, tl.sum(tap * x_tile.to(tl.float32), axis=0), mask=c < C)
            if lag == 0:
                tl.store(sums + W * C, tl.sum(tap, axis=0), mask=c < C)
        tl.store(dx + tile + at, total.to(dx.dtype.element_ty), mask=inside)
