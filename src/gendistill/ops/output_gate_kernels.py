"""The norm of each head and the output gate, as one Triton kernel each way.

As separate steps, they pass the layer's tensors through memory again, and torch.compile keeps the gate twice for the
backward pass.

Shapes: B sequences, T tokens in each, N = B * T tokens, H heads, D channels a head, C = H * D channels.
"""

import torch

from gendistill.ops.optional_triton import require_triton, tl, triton

# Tokens of a program, numbers of a tile for each thread, warps.
FORWARD = {"TOKENS": 64, "PER_THREAD": 8, "num_warps": 4}
BACKWARD = {"TOKENS": 128, "PER_THREAD": 4, "num_warps": 4}


def kernel_gated_norm(
    o: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, weight: torch.Tensor | None, eps: float, activation: str
) -> torch.Tensor:
    """As `output_gate.gated_norm`; the gradients, of first order only, are the same bits in every run.

    Everything is computed in float32 and rounded once, at the end.

    Args:
        o: [B, T, H, D], on a GPU; like all others of any float dtype.
        gate: [B, T, H * D].
        bias: [H * D].
        weight: [D] or None.
        activation: "silu" or "sigmoid".

    Returns:
        [B, T, H * D] of gate's dtype, contiguous.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    return _forward(o, gate, bias, weight, eps, activation == "silu")


@torch.library.custom_op("gendistill::gated_norm", mutates_args=())
def _forward(
    o: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, weight: torch.Tensor | None, eps: float, silu: bool
) -> torch.Tensor:
    y = _empty_like(gate)
    _launch(_forward_kernel, FORWARD, o, gate, bias, weight, (y,), eps, silu)
    return y


@torch.library.custom_op("gendistill::gated_norm_backward", mutates_args=())
def _backward(
    dy: torch.Tensor,
    o: torch.Tensor,
    gate: torch.Tensor,
    bias: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """do, dgate, and the gradients of bias and weight [programs, 2, C], float32, still to be summed over programs."""
    gradients = _empty_gradients(o, gate, weight)
    _launch(_backward_kernel, BACKWARD, o, gate, bias, weight, (dy, *gradients), eps, silu)
    return gradients


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _empty_gradients(
    o: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = BACKWARD["TOKENS"]
    # A sum for each program, not atomic additions to one: their order, and so the last bits, would differ between runs.
    programs = (o.shape[0] * o.shape[1] + tokens - 1) // tokens
    partials = (programs, 1 if weight is None else 2, gate.shape[2])
    return _empty_like(o), _empty_like(gate), o.new_empty(partials, dtype=torch.float32)


def _launch(kernel, settings, o, gate, bias, weight, tensors, eps, silu) -> None:
    rows, length, heads, size = o.shape  # B, T, H, D
    lanes, settings = triton.next_power_of_2(size), dict(settings)
    # As many tokens in a tile as give every thread its numbers of it.
    in_tile = settings["num_warps"] * 32 * settings.pop("PER_THREAD") // lanes
    settings["ROWS"] = min(max(in_tile, 1), settings["TOKENS"])
    grid = (heads, triton.cdiv(rows * length, settings["TOKENS"]))
    tensors = [None if tensor is None else tensor.contiguous() for tensor in (o, gate, bias, weight, *tensors)]
    shape = {"HEADS": heads, "D": size, "LANES": lanes}
    with torch.cuda.device_of(o):  # Triton launches on the current GPU, whichever has the tensors
        kernel[grid](*tensors, rows * length, eps, **shape, SILU=silu, **settings)


@_forward.register_fake
def _(o, gate, bias, weight, eps, silu):
    return _empty_like(gate)


@_backward.register_fake
def _(dy, o, gate, bias, weight, eps, silu):
    return _empty_gradients(o, gate, weight)


def _save(ctx, inputs, output):
    *tensors, ctx.eps, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dy):
    o, gate, bias, weight = ctx.saved_tensors
    do, dgate, partials = _backward(dy, o, gate, bias, weight, ctx.eps, ctx.silu)
    sums = partials.sum(0)  # [1 or 2, C]
    # The norm's weight is one for all heads, the bias is not.
    dweight = None if weight is None else sums[1].view(o.shape[2:]).sum(0).to(weight.dtype)
    return do, dgate, sums[0].to(bias.dtype), dweight, None, None


_forward.register_autograd(_gradients, setup_context=_save)


if triton is not None:
    # A program takes TOKENS tokens of one head in tiles of [ROWS, LANES], so that bias and weight, and the sums that
    # become their gradients, stay in registers; LANES is D rounded up to a power of two. While it works on a tile it
    # loads the next one.

    @triton.jit
    def _place(N, C: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
        """A tile's tokens [ROWS, 1]; channels [1, LANES]; where the program's numbers start; how many tokens it has."""
        t, c, first = tl.arange(0, ROWS)[:, None], tl.arange(0, LANES)[None, :], tl.program_id(1) * TOKENS
        return t, c, first.to(tl.int64) * C + tl.program_id(0) * D + c, tl.minimum(TOKENS, N - first)

    @triton.jit
    def _load(x, mask):
        return tl.load(x, mask=mask, other=0.0)

    @triton.jit
    def _load_parameters(bias, weight, c, D: tl.constexpr):
        """The head's bias and the norm's weight [1, LANES]; no norm has a weight of 1."""
        b = _load(bias + tl.program_id(0) * D + c, c < D).to(tl.float32)
        return b, 1.0 if weight is None else _load(weight + c, c < D).to(tl.float32)

    @triton.jit
    def _inverse_rms(x, eps, D: tl.constexpr):
        return tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / D + eps)  # [ROWS, 1]; lanes past D hold 0

    @triton.jit
    def _forward_kernel(
        o, gate, bias, weight, y, N, eps,
        HEADS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
        SILU: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        C: tl.constexpr = HEADS * D
        t, c, start, tokens = _place(N, C, D, LANES, ROWS, TOKENS)
        b, w = _load_parameters(bias, weight, c, D)
        at, exists = start + t * C, (t < tokens) & (c < D)
        next_o, next_gate = _load(o + at, exists), _load(gate + at, exists)
        for step in range(0, tokens, ROWS):
            x, z = next_o.to(tl.float32), next_gate.to(tl.float32) + b
            at, exists = start + (t + step + ROWS) * C, (t + step + ROWS < tokens) & (c < D)
            next_o, next_gate = _load(o + at, exists), _load(gate + at, exists)
            if weight is not None:
                x *= _inverse_rms(x, eps, D) * w
            x *= tl.sigmoid(z)
            if SILU:  # z * sigmoid(z)
                x *= z
            at, exists = start + (t + step) * C, (t + step < tokens) & (c < D)
            tl.store(y + at, x.to(y.dtype.element_ty), mask=exists)

    @triton.jit
    def _backward_kernel(
        o, gate, bias, weight, dy, do, dgate, partials, N, eps,
        HEADS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
        SILU: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        C: tl.constexpr = HEADS * D
        t, c, start, tokens = _place(N, C, D, LANES, ROWS, TOKENS)
        b, w = _load_parameters(bias, weight, c, D)
        bias_sum, weight_sum = tl.zeros([ROWS, LANES], tl.float32), tl.zeros([ROWS, LANES], tl.float32)
        at, exists = start + t * C, (t < tokens) & (c < D)
        next_o, next_gate, next_dy = _load(o + at, exists), _load(gate + at, exists), _load(dy + at, exists)
        for step in range(0, tokens, ROWS):
            x, z, d = next_o.to(tl.float32), next_gate.to(tl.float32) + b, next_dy.to(tl.float32)
            at, exists = start + (t + step + ROWS) * C, (t + step + ROWS < tokens) & (c < D)
            next_o, next_gate, next_dy = _load(o + at, exists), _load(gate + at, exists), _load(dy + at, exists)
            act = tl.sigmoid(z)
            slope = act * (1 - act)
            if SILU:  # the product rule on z * sigmoid(z)
                slope = act + z * slope
                act *= z
            inverse_rms = 1.0 if weight is None else _inverse_rms(x, eps, D)
            x *= inverse_rms  # normalised from here on
            dz, dx = d * x * w * slope, d * act * w  # dx of the normalised x, until it goes through the norm below
            if weight is not None:
                weight_sum += d * act * x  # [ROWS, LANES], summed over tokens at the end
                dx = inverse_rms * (dx - x * (tl.sum(dx * x, axis=1, keep_dims=True) / D))
            bias_sum += dz
            at, exists = start + (t + step) * C, (t + step < tokens) & (c < D)
            tl.store(do + at, dx.to(do.dtype.element_ty), mask=exists)
            tl.store(dgate + at, dz.to(dgate.dtype.element_ty), mask=exists)
        SUMS: tl.constexpr = 1 if weight is None else 2  # rows of this program's partial sums
        sums = partials + tl.program_id(1).to(tl.int64) * SUMS * C + tl.program_id(0) * D + c
        tl.store(sums, tl.sum(bias_sum, axis=0, keep_dims=True), mask=c < D)
        if weight is not None:
            tl.store(sums + C, tl.sum(weight_sum, axis=0, keep_dims=True), mask=c < D)
