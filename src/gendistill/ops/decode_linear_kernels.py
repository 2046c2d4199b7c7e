"""A row times a weight matrix in one Triton kernel, norm before and activation or addition behind it included.

A program has a few of the outputs and goes along their rows of the weight, which nobody else reads.

Shapes: N inputs, M outputs.
"""

import torch

from gendistill.ops.optional_triton import require_triton, tl, triton

PROGRAMS = 528  # wanted: four for each of an H100's 132 multiprocessors
INPUTS = 512  # that a program reads at a time
SETTINGS = {"num_warps": 4, "num_stages": 4}
GATED = 1024  # numbers of a program


def kernel_decode_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: tuple[torch.Tensor, float] | None,
    up: tuple[torch.Tensor, torch.Tensor | None] | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """As `decode_linear.decode_linear` of one row [1, N], on a GPU; weights are contiguous.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    outputs, inputs = weight.shape
    y = x.new_empty(1, outputs)
    each = outputs_of_a_program(outputs)
    norm_weight, eps = norm or (None, 0.0)
    up_weight, up_bias = up or (None, None)
    _row[(-(-outputs // each),)](
        x.contiguous(), weight, bias, norm_weight, up_weight, up_bias, residual, y, inputs, outputs, eps,
        OUTPUTS=each, INPUTS=min(INPUTS, triton.next_power_of_2(inputs)), **SETTINGS,
    )  # fmt: skip
    return y


def kernel_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `decode_linear.rms_norm` of [B, N], on a GPU."""
    require_triton()
    y = torch.empty_like(x)
    rows, width = x.shape
    _norm[(rows,)](x, weight, y, width, eps, WIDTH=triton.next_power_of_2(width), num_warps=4)
    return y


def kernel_gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, [B, M] each, on a GPU."""
    require_triton()
    y = torch.empty_like(gate)
    _gated[(-(-gate.numel() // GATED),)](gate, up, y, gate.numel(), SIZE=GATED, num_warps=4)
    return y


def outputs_of_a_program(outputs: int) -> int:
    """A power of two of 2 to 16 with which there are about as many programs as wanted."""
    each = 2
    while each < 16 and outputs // (2 * each) >= PROGRAMS:
        each *= 2
    return each


if triton is not None:

    @triton.jit
    def _row(
        X, WEIGHT, BIAS, NORM, UP, UP_BIAS, RESIDUAL, Y, inputs, outputs, eps,
        OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    ):  # fmt: skip
        output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        there = output < outputs
        lane = tl.arange(0, INPUTS)
        root = 1.0
        if NORM is not None:
            squares = tl.zeros([INPUTS], tl.float32)
            for start in range(0, inputs, INPUTS):
                x = tl.load(X + start + lane, mask=start + lane < inputs, other=0.0).to(tl.float32)
                squares += x * x
            root = tl.rsqrt(tl.sum(squares, 0) / inputs + eps)
        rows = output.to(tl.int64)[:, None] * inputs
        total = tl.zeros([OUTPUTS, INPUTS], tl.float32)
        total_up = tl.zeros([OUTPUTS, INPUTS], tl.float32)
        for start in range(0, inputs, INPUTS):
            column = start + lane
            inside = column < inputs
            x = tl.load(X + column, mask=inside, other=0.0)
            if NORM is not None:  # rounded before the weight is applied, and after
                x = (x.to(tl.float32) * root).to(X.dtype.element_ty)
                x = x * tl.load(NORM + column, mask=inside, other=0.0)
            x = x.to(tl.float32)
            mask = there[:, None] & inside[None, :]
            total += tl.load(WEIGHT + rows + column, mask=mask, other=0.0).to(tl.float32) * x
            if UP is not None:
                total_up += tl.load(UP + rows + column, mask=mask, other=0.0).to(tl.float32) * x
        y = tl.sum(total, 1)
        if BIAS is not None:
            y += tl.load(BIAS + output, mask=there, other=0.0).to(tl.float32)
        if UP is not None:
            factor = tl.sum(total_up, 1)
            if UP_BIAS is not None:
                factor += tl.load(UP_BIAS + output, mask=there, other=0.0).to(tl.float32)
            y = y / (1.0 + tl.exp(-y)) * factor
        if RESIDUAL is not None:
            y += tl.load(RESIDUAL + output, mask=there, other=0.0).to(tl.float32)
        tl.store(Y + output, y.to(Y.dtype.element_ty), mask=there)

    @triton.jit
    def _norm(X, WEIGHT, Y, width, eps, WIDTH: tl.constexpr):
        row = tl.program_id(0)
        channel = tl.arange(0, WIDTH)
        inside = channel < width
        x = tl.load(X + row * width + channel, mask=inside, other=0.0).to(tl.float32)
        y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps)
        y = tl.load(WEIGHT + channel, mask=inside, other=0.0) * y.to(X.dtype.element_ty)
        tl.store(Y + row * width + channel, y.to(Y.dtype.element_ty), mask=inside)

    @triton.jit
    def _gated(GATE, UP, Y, size, SIZE: tl.constexpr):
        index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        inside = index < size
        gate = tl.load(GATE + index, mask=inside, other=0.0).to(tl.float32)
        y = (gate / (1.0 + tl.exp(-gate))).to(GATE.dtype.element_ty) * tl.load(UP + index, mask=inside, other=0.0)
        tl.store(Y + index, y.to(Y.dtype.element_ty), mask=inside)
