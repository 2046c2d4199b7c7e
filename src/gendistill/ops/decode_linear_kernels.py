"""A few rows times a weight matrix in one Triton kernel, norm before and activation, addition or a short convolution
behind it included.

A program has a few of the outputs and reads their rows of the weight, which nobody else reads; as much of them as it
can hold before the kernel in front has ended, so that memory never rests.

Shapes: B rows, N inputs, M outputs, C channels of a convolution.
"""

import torch

from gendistill.ops.decode_convolution_kernels import Convolution
from gendistill.ops.optional_triton import overlap, require_triton, tl, triton

PROGRAMS = 396  # wanted at least: three for each of an H100's 132 multiprocessors
TILE = 4096  # numbers of the weight that a program reads at a time
LONGEST_TILE = 4096  # inputs
# Beyond, products of tensor cores are faster: a row more costs this kernel 0.4 ms a step of the 0.6B shape, and 8 rows
# at 32,768 tokens took 5.06 ms by it (results/gpu/decode_profile.txt) where cuBLAS had taken 3.37.
MOST_ROWS = 2
SETTINGS = {"num_warps": 4, "num_stages": 2}
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
    return _launch(x, weight, bias, norm, up, residual, None, None)[0]


def kernel_decode_linear_and_gates(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: tuple[torch.Tensor, float] | None,
    convolution: Convolution,
    gates: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `decode_linear.decode_linear_and_gates`, on a GPU, by one launch.

    Raises:
        UserError: Triton is not installed.
    """
    return _launch(x, weight, bias, norm, None, None, convolution, gates)


def _launch(x, weight, bias, norm, up, residual, convolution: Convolution | None, gates: torch.Tensor | None):
    """[B, M]; [B, C] and [B, outputs of `gates`] float32, or None."""
    require_triton()
    outputs, inputs = weight.shape
    y = x.new_empty(len(x), outputs)
    each, tile = tile_of(outputs, inputs)
    programs = -(-outputs // each)
    norm_weight, eps = norm or (None, 0.0)
    up_weight, up_bias = up or (None, None)
    conv_state, conv_weight, conv_bias, silu = convolution or (None, None, None, False)
    convolved = products = None  # in float32: rounded by who reads them
    channels, taps, of_gates = 0, 1, 0
    if convolution is not None:
        (channels, taps), of_gates = conv_weight.shape, len(gates)
        convolved = x.new_empty(len(x), channels, dtype=torch.float32)
        products = x.new_empty(len(x), of_gates, dtype=torch.float32)
    _row[(programs + -(-of_gates // each),)](
        x.contiguous(), weight, bias, norm_weight, up_weight, up_bias, residual, y, inputs, outputs, eps,
        conv_state, conv_weight, conv_bias, convolved, channels, gates, products, of_gates, programs,
        ROWS=len(x), OUTPUTS=each, INPUTS=tile, TAPS=taps, TAPS_PADDED=triton.next_power_of_2(taps), SILU=silu,
        **SETTINGS, **overlap(),
    )  # fmt: skip
    return y, convolved, products


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
    from gendistill.ops.decode_convolution_kernels import convolve_inputs

    @triton.jit
    def _row(
        X, WEIGHT, BIAS, NORM, UP, UP_BIAS, RESIDUAL, Y, inputs, outputs, eps,
        CONV_STATE, CONV_WEIGHT, CONV_BIAS, CONVOLVED, channels, GATES, PRODUCTS, of_gates, programs,
        ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, TAPS: tl.constexpr,
        TAPS_PADDED: tl.constexpr, SILU: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        source = WEIGHT
        count = outputs
        is_gate = False
        if GATES is not None:  # behind the programs of the weight are those of the gates
            is_gate = tl.program_id(0) >= programs
            if is_gate:
                output -= programs * OUTPUTS
                source = GATES
                count = of_gates
        there = output < count
        lane = tl.arange(0, INPUTS)
        rows = output.to(tl.int64)[:, None] * inputs
        mask = there[:, None] & (lane < inputs)[None, :]
        weight = tl.load(source + rows + lane, mask=mask, other=0.0)  # [OUTPUTS, INPUTS]
        up = weight
        if UP is not None:
            up = tl.load(UP + rows + lane, mask=mask, other=0.0)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        for row in tl.static_range(ROWS):
            start_of_row = X + row * inputs
            root = 1.0
            if NORM is not None:
                squares = tl.zeros([INPUTS], tl.float32)
                for start in range(0, inputs, INPUTS):
                    x = tl.load(start_of_row + start + lane, mask=start + lane < inputs, other=0.0).to(tl.float32)
                    squares += x * x
                root = tl.rsqrt(tl.sum(squares, 0) / inputs + eps)
            x = _normed(start_of_row, NORM, root, lane, inputs)
            total = weight.to(tl.float32) * x
            total_up = total
            if UP is not None:
                total_up = up.to(tl.float32) * x
            for start in range(INPUTS, inputs, INPUTS):
                column = start + lane
                mask = there[:, None] & (column < inputs)[None, :]
                x = _normed(start_of_row, NORM, root, column, inputs)
                total += tl.load(source + rows + column, mask=mask, other=0.0).to(tl.float32) * x
                if UP is not None:
                    total_up += tl.load(UP + rows + column, mask=mask, other=0.0).to(tl.float32) * x
            y = tl.sum(total, 1)
            if BIAS is not None:
                y += tl.load(BIAS + output, mask=there & (is_gate == 0), other=0.0).to(tl.float32)
            if UP is not None:
                factor = tl.sum(total_up, 1)
                if UP_BIAS is not None:
                    factor += tl.load(UP_BIAS + output, mask=there, other=0.0).to(tl.float32)
                y = y / (1.0 + tl.exp(-y)) * factor
            if RESIDUAL is not None:
                y += tl.load(RESIDUAL + row * outputs + output, mask=there, other=0.0).to(tl.float32)
            own = there  # outputs of the first weight
            if GATES is not None:
                tl.store(PRODUCTS + row * of_gates + output, y, mask=there & is_gate)
                own = there & (is_gate == 0)
            y = y.to(Y.dtype.element_ty)
            tl.store(Y + row * outputs + output, y, mask=own)
            if GATES is not None:
                # Each channel is an output, and each output is one program's.
                of_q_k_v = own & (output < channels)
                state = CONV_STATE + (row * channels + output) * TAPS
                mixed = convolve_inputs(state, CONV_WEIGHT, CONV_BIAS, y, output, of_q_k_v, TAPS, TAPS_PADDED, SILU)
                tl.store(CONVOLVED + row * channels + output, mixed, mask=of_q_k_v)

    @triton.jit
    def _normed(X, NORM, root, column, inputs):
        """Inputs in float32, rounded before the norm's weight is applied and after."""
        x = tl.load(X + column, mask=column < inputs, other=0.0)
        if NORM is not None:
            x = (x.to(tl.float32) * root).to(X.dtype.element_ty)
            x = x * tl.load(NORM + column, mask=column < inputs, other=0.0)
        return x.to(tl.float32)

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
