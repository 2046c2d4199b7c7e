"""A few rows times a weight matrix in one Triton kernel, norm before and activation or addition behind it included.

A program has a few of the outputs and reads their rows of the weight, which nobody else reads; as much of them as it
can hold before the kernel in front has ended, so that memory never rests.

Shapes: B rows, N inputs, M outputs.
"""

import torch

from gendistill.ops.optional_triton import overlap, require_triton, tl, triton

PROGRAMS = 396  # wanted at least: three for each of an H100's 132 multiprocessors
TILE = 4096  # numbers of the weight that a program reads at a time
LONGEST_TILE = 4096  # inputs
# Beyond, products of tensor cores are faster: a row more costs this kernel 0.4 ms a step of the 0.6B shape, and 8 rows
# at 32,768 tokens took 5.06 ms by it (results/gpu/decode_profile.txt) where cuBLAS had taken 3.37.
MOST_ROWS = 2
# By rows. The fewer threads, the more programs fit beside those that are ending (results/gpu/decode_trials.txt).
WARPS = {1: 2, 2: 4}
# A thread's at most, for one row; by whether a program has one weight or two. Left alone the compiler takes more, and
# fewer programs find room, and load their weights, beside those of a launch before: 2 to 10 % of a step.
REGISTERS = {1: 120, 2: 168}
GATED = 1024  # numbers of a program


def kernel_decode_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: tuple[torch.Tensor, float] | None,
    up: tuple[torch.Tensor, torch.Tensor | None] | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """As `decode_linear.decode_linear`, on a GPU; weights are contiguous. See `can_take`.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    outputs, inputs = weight.shape
    y = x.new_empty(len(x), outputs)
    each, tile = tile_of(outputs, inputs)
    norm_weight, eps = norm or (None, 0.0)
    up_weight, up_bias = up or (None, None)
    registers = REGISTERS[1 if up is None else 2] if len(x) == 1 else None
    _row[(-(-outputs // each),)](
        x.contiguous(), weight, bias, norm_weight, up_weight, up_bias, residual, y, inputs, outputs, eps,
        ROWS=len(x), OUTPUTS=each, INPUTS=tile, num_warps=WARPS[len(x)], num_stages=2,
        maxnreg=registers, **overlap(),
    )  # fmt: skip
    return y


def can_take(rows: int, inputs: int) -> bool:
    """Whether the kernel is for so many rows: several share what a program holds of the weight, which must be all."""
    return rows == 1 or (rows <= MOST_ROWS and inputs <= LONGEST_TILE)


def kernel_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `decode_linear.rms_norm`, on a GPU; x is contiguous."""
    require_triton()
    y = torch.empty_like(x)
    width = x.shape[-1]
    _norm[(x.numel() // width,)](x, weight, y, width, eps, WIDTH=triton.next_power_of_2(width), num_warps=4)
    return y


def kernel_gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, contiguous both, on a GPU."""
    require_triton()
    y = torch.empty_like(gate)
    _gated[(-(-gate.numel() // GATED),)](gate, up, y, gate.numel(), SIZE=GATED, num_warps=4)
    return y


def tile_of(outputs: int, inputs: int) -> tuple[int, int]:
    """Outputs of a program, and inputs that it reads at a time: powers of two, all inputs if that is not too much."""
    tile = min(triton.next_power_of_2(inputs), LONGEST_TILE)
    each = max(1, TILE // tile)
    while each > 1 and outputs // each < PROGRAMS:
        each //= 2
    return each, tile


if triton is not None:

    @triton.jit
    def _row(
        X, WEIGHT, BIAS, NORM, UP, UP_BIAS, RESIDUAL, Y, inputs, outputs, eps,
        ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        there = output < outputs
        lane = tl.arange(0, INPUTS)
        rows = output.to(tl.int64)[:, None] * inputs
        mask = there[:, None] & (lane < inputs)[None, :]
        weight = tl.load(WEIGHT + rows + lane, mask=mask, other=0.0)  # [OUTPUTS, INPUTS]
        up = weight
        if UP is not None:
            up = tl.load(UP + rows + lane, mask=mask, other=0.0)
        # Before the wait whatever is a weight: behind it each load takes about as long as a launch.
        norm = lane
        if NORM is not None:
            norm = tl.load(NORM + lane, mask=lane < inputs, other=0.0)
        bias = tl.zeros([OUTPUTS], tl.float32)
        up_bias = bias
        if BIAS is not None:
            bias = tl.load(BIAS + output, mask=there, other=0.0).to(tl.float32)
        if UP_BIAS is not None:
            up_bias = tl.load(UP_BIAS + output, mask=there, other=0.0).to(tl.float32)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        for row in tl.static_range(ROWS):
            start_of_row = X + row * inputs
            residual = tl.zeros([OUTPUTS], tl.float32)
            if RESIDUAL is not None:
                residual = tl.load(RESIDUAL + row * outputs + output, mask=there, other=0.0).to(tl.float32)
            x = tl.load(start_of_row + lane, mask=lane < inputs, other=0.0)
            root = 1.0
            if NORM is not None:
                squares = x.to(tl.float32) * x.to(tl.float32)
                for start in range(INPUTS, inputs, INPUTS):
                    more = tl.load(start_of_row + start + lane, mask=start + lane < inputs, other=0.0).to(tl.float32)
                    squares += more * more
                root = tl.rsqrt(tl.sum(squares, 0) / inputs + eps)
                x = _normed(x, norm, root)
            total = weight.to(tl.float32) * x.to(tl.float32)
            total_up = total
            if UP is not None:
                total_up = up.to(tl.float32) * x.to(tl.float32)
            for start in range(INPUTS, inputs, INPUTS):
                column = start + lane
                x = tl.load(start_of_row + column, mask=column < inputs, other=0.0)
                if NORM is not None:
                    x = _normed(x, tl.load(NORM + column, mask=column < inputs, other=0.0), root)
                mask = there[:, None] & (column < inputs)[None, :]
                total += tl.load(WEIGHT + rows + column, mask=mask, other=0.0).to(tl.float32) * x.to(tl.float32)
                if UP is not None:
                    total_up += tl.load(UP + rows + column, mask=mask, other=0.0).to(tl.float32) * x.to(tl.float32)
            y = tl.sum(total, 1) + bias
            if UP is not None:
                y = y / (1.0 + tl.exp(-y)) * (tl.sum(total_up, 1) + up_bias)
            tl.store(Y + row * outputs + output, (y + residual).to(Y.dtype.element_ty), mask=there)

    @triton.jit
    def _normed(x, weight, root):
        """Rounded before the norm's weight is applied and after."""
        return (x.to(tl.float32) * root).to(x.dtype) * weight

    @triton.jit
    def _norm(X, WEIGHT, Y, width, eps, WIDTH: tl.constexpr):
        row = tl.program_id(0)
        channel = tl.arange(0, WIDTH)
        inside = channel < width
        start = row.to(tl.int64) * width
        x = tl.load(X + start + channel, mask=inside, other=0.0).to(tl.float32)
        y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps)
        y = tl.load(WEIGHT + channel, mask=inside, other=0.0) * y.to(X.dtype.element_ty)
        tl.store(Y + start + channel, y.to(Y.dtype.element_ty), mask=inside)

    @triton.jit
    def _gated(GATE, UP, Y, size, SIZE: tl.constexpr):
        index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
        inside = index < size
        gate = tl.load(GATE + index, mask=inside, other=0.0).to(tl.float32)
        y = (gate / (1.0 + tl.exp(-gate))).to(GATE.dtype.element_ty) * tl.load(UP + index, mask=inside, other=0.0)
        tl.store(Y + index, y.to(Y.dtype.element_ty), mask=inside)
