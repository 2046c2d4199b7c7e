"""From the projections of q, k and v to what the recurrence takes, as one Triton kernel each way.

As separate steps, each passes the largest tensors of a layer through memory again, and torch.compile keeps every
shifted copy of the convolution's input for the backward pass.

Shapes: B sequences, T tokens in each, H heads, D channels a head, C = (H + 2 key heads) * D channels, W taps.
"""

import torch

from gendistill.ops.optional_triton import require_triton, tl, triton

# Tokens of a program, neighbouring channels of a thread, warps.
FORWARD = {"TOKENS": 256, "PER_THREAD": 4, "num_warps": 4}
BACKWARD = {"TOKENS": 256, "PER_THREAD": 4, "num_warps": 4}


def kernel_convolved_heads(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor | None,
    heads: int,
    key_heads: int,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `convolution.convolved_heads`; the gradients, of first order only, are the same bits in every run.

    Everything is computed in float32 and rounded once, at the end.

    Args:
        x: [B, T, C], on a GPU.
        weight: [C, W] with W >= 1, of any float dtype, as bias.
        bias: [C].
        positions: [B, T] integers >= 0; None if each row is one document.
        silu: whether SiLU comes between the convolution and the norm.

    Returns:
        q, k, v: [B, T, H, D] of x's dtype, contiguous.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    taps = weight.t().contiguous()  # [W, C], so that channels load neighbouring numbers
    return _forward(x, taps, bias, positions, heads, key_heads, silu)


@torch.library.custom_op("gendistill::convolved_heads", mutates_args=())
def _forward(
    x: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor | None,
    heads: int,
    key_heads: int,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = _empty_heads(x, heads, key_heads)  # every number is written, so none is set before
    _launch(_forward_kernel, FORWARD, x, taps, bias, positions, (q, k, v), heads, key_heads, silu)
    return q, k, v


@torch.library.custom_op("gendistill::convolved_heads_backward", mutates_args=())
def _backward(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    x: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor | None,
    heads: int,
    key_heads: int,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx, and the gradients of taps [W, C] and bias one below the other, float32, still to be summed over programs."""
    dx, partials = torch.empty_like(x, memory_format=torch.contiguous_format), _empty_partials(x, taps)
    _launch(_backward_kernel, BACKWARD, x, taps, bias, positions, (dq, dk, dv, dx, partials), heads, key_heads, silu)
    return dx, partials


def _empty_heads(x: torch.Tensor, heads: int, key_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (*x.shape[:2], heads, x.shape[2] // (heads + 2 * key_heads))  # [B, T, H, D]: k and v have all heads, too
    return x.new_empty(shape), x.new_empty(shape), x.new_empty(shape)


def _empty_partials(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    (rows, length, channels), tokens = x.shape, BACKWARD["TOKENS"]
    # A sum for each program, not atomic additions to one: their order, and so the last bits, would differ between runs.
    programs = rows * ((length + tokens - 1) // tokens)
    return x.new_empty((programs, taps.shape[0] + 1, channels), dtype=torch.float32)


def _launch(kernel, settings, x, taps, bias, positions, tensors, heads, key_heads, silu) -> None:
    rows, length, channels = x.shape  # B, T, C
    size = channels // (heads + 2 * key_heads)
    lanes, settings = triton.next_power_of_2(size), dict(settings)
    # As many tokens side by side as give every thread its channels of a tile.
    walks = settings["num_warps"] * 32 * settings.pop("PER_THREAD") // lanes
    settings["WALKS"] = min(max(walks, 1), settings["TOKENS"])
    # The heads in front: programs that run together load neighbouring numbers of the same tokens.
    grid = (heads + 2 * key_heads, triton.cdiv(length, settings["TOKENS"]), rows)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in (x, taps, bias, positions, *tensors)]
    shape = {"HEADS": heads, "KEY_HEADS": key_heads, "D": size, "LANES": lanes, "W": taps.shape[0]}
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, whichever has the tensors
        kernel[grid](*tensors, length, **shape, SILU=silu, **settings)


@_forward.register_fake
def _(x, taps, bias, positions, heads, key_heads, silu):
    return _empty_heads(x, heads, key_heads)


@_backward.register_fake
def _(dq, dk, dv, x, taps, bias, positions, heads, key_heads, silu):
    return torch.empty_like(x, memory_format=torch.contiguous_format), _empty_partials(x, taps)


def _save(ctx, inputs, output):
    # The inputs alone: the way back computes the convolution again, which costs less than keeping its output.
    *tensors, ctx.heads, ctx.key_heads, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dq, dk, dv):
    x, taps, bias, positions = ctx.saved_tensors
    dx, partials = _backward(dq, dk, dv, x, taps, bias, positions, ctx.heads, ctx.key_heads, ctx.silu)
    gradients = partials.sum(0)  # [W + 1, C]: of each tap, then of the bias
    return dx, gradients[:-1].to(taps.dtype), gradients[-1].to(bias.dtype), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


if triton is not None:
    # A program takes TOKENS tokens of one head as WALKS stretches side by side and goes along them token by token, in
    # tiles of [WALKS, LANES]; LANES is D rounded up to a power of two. So the other tokens of a convolution are at hand
    # in registers: its inputs, and on the way back the gradient of its output, which is never in memory. A step loads
    # what the next one works on: there are too few warps to wait for memory otherwise.

    @triton.jit
    def _place(T, WALKS: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr):
        """Channels [1, LANES]; where row and program start; each walk's first token there [WALKS, 1]; its tokens."""
        c, walk = tl.arange(0, LANES)[None, :], tl.arange(0, WALKS)[:, None] * (TOKENS // WALKS)
        row, first = tl.program_id(2).to(tl.int64) * T, tl.program_id(1) * TOKENS
        return c, row, first, walk, tl.minimum(TOKENS // WALKS, T - first)

    @triton.jit
    def _load_parameters(taps, bias, c, inside, C: tl.constexpr, W: tl.constexpr):
        """The taps by lag, W times [1, LANES], and the bias [1, LANES]."""
        by_lag = ()
        for lag in tl.static_range(W):  # the current token's tap is the last in memory and the first here
            by_lag = by_lag + (tl.load(taps + (W - 1 - lag) * C + c, mask=inside, other=0.0).to(tl.float32),)
        return by_lag, tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)

    @triton.jit
    def _load_window(x, first, walk, T, inside, C: tl.constexpr, W: tl.constexpr):
        """The inputs of the W - 1 tokens before each walk, nearest first; zero outside the row."""
        window = ()
        for lag in tl.static_range(1, W):
            t = first + walk - lag
            exists = (t >= 0) & (t < T) & inside  # t < 0 is the sequence before, in memory
            window = window + (tl.load(x + (walk - lag) * C, mask=exists, other=0.0).to(tl.float32),)
        return window

    @triton.jit
    def _load_reach(positions, t, T):
        """A token's distance to its document's start, or more; without packing the convolution reads it for no lag."""
        return t if positions is None else tl.load(positions + t, mask=t < T, other=0).to(tl.int32)

    @triton.jit
    def _within(value, lag: tl.constexpr, reach, PACKED: tl.constexpr):
        # A lag of 0 is the token itself, which is in its own document.
        return tl.where(lag <= reach, value, 0.0) if PACKED and lag > 0 else value

    @triton.jit
    def _convolve(window, taps, bias, reach, PACKED: tl.constexpr, W: tl.constexpr):
        total = bias
        for lag in tl.static_range(W):
            total += taps[lag] * _within(window[lag], lag, reach, PACKED)
        return total

    @triton.jit
    def _inverse_norm(z):
        return tl.rsqrt(tl.sum(z * z, axis=1, keep_dims=True) + 1e-6)  # [WALKS, 1]; as `reference.l2_normalize`

    @triton.jit
    def _load_copies(dy, mask, D: tl.constexpr, COPIES: tl.constexpr):
        copies = ()  # of each query head that shares this head of k or v
        for copy in tl.static_range(COPIES):
            copies = copies + (tl.load(dy + copy * D, mask=mask, other=0.0),)
        return copies

    @triton.jit
    def _forward_head(
        x, taps, bias, positions, y, T, place,
        C: tl.constexpr, Y: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
        SILU: tl.constexpr, NORM: tl.constexpr, COPIES: tl.constexpr,
    ):  # fmt: skip
        """All pointers at the program's head; y [B, T, Y] takes COPIES side by side."""
        c, row, first, walk, steps = place
        PACKED: tl.constexpr = positions is not None
        inside = c < D
        taps, bias = _load_parameters(taps, bias, c, inside, C, W)
        x, y = x + (row + first) * C + c, y + (row + first) * Y + c
        positions = positions + row if PACKED else None
        window = _load_window(x, first, walk, T, inside, C, W)
        next_x = tl.load(x + walk * C, mask=(first + walk < T) & inside, other=0.0)
        next_reach = _load_reach(positions, first + walk, T)
        for step in range(steps):
            t = walk + step
            exists = (first + t < T) & inside
            window, reach = (next_x.to(tl.float32),) + window, next_reach  # W inputs, the current token's first
            next_x = tl.load(x + (t + 1) * C, mask=(first + t + 1 < T) & inside, other=0.0)
            next_reach = _load_reach(positions, first + t + 1, T)
            z = _convolve(window, taps, bias, reach, PACKED, W)  # [WALKS, LANES]
            window = window[: W - 1]
            if SILU:
                z *= tl.sigmoid(z)
            if NORM:
                z *= _inverse_norm(z)
            for copy in tl.static_range(COPIES):
                tl.store(y + t * Y + copy * D, z.to(y.dtype.element_ty), mask=exists)

    @triton.jit
    def _backward_head(
        x, taps, bias, positions, dy, dx, sums, T, place,
        C: tl.constexpr, Y: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
        SILU: tl.constexpr, NORM: tl.constexpr, COPIES: tl.constexpr,
    ):  # fmt: skip
        """Goes W - 1 tokens past its own, whose gradients reach back to them; dx[t] is whole at token t + W - 1."""
        c, row, first, walk, steps = place
        PACKED: tl.constexpr = positions is not None
        inside = c < D
        taps, bias = _load_parameters(taps, bias, c, inside, C, W)
        x, dx, dy = x + (row + first) * C + c, dx + (row + first) * C + c, dy + (row + first) * Y + c
        positions = positions + row if PACKED else None
        window = _load_window(x, first, walk, T, inside, C, W)
        zero = tl.zeros([walk.shape[0], c.shape[1]], tl.float32)
        # pending: dx of the last W - 1 tokens, which later tokens still add to.
        pending, taps_sums, bias_sum = (zero,) * (W - 1), (zero,) * W, zero
        exists = (first + walk < T) & inside
        next_x = tl.load(x + walk * C, mask=exists, other=0.0)
        next_reach = _load_reach(positions, first + walk, T)
        next_copies = _load_copies(dy + walk * Y, exists, D, COPIES)
        for step in range(steps + W - 1):
            t = walk + step
            window, reach, copies = (next_x.to(tl.float32),) + window, next_reach, next_copies
            exists = (first + t + 1 < T) & inside
            next_x = tl.load(x + (t + 1) * C, mask=exists, other=0.0)
            next_reach = _load_reach(positions, first + t + 1, T)
            next_copies = _load_copies(dy + (t + 1) * Y, exists, D, COPIES)
            u = _convolve(window, taps, bias, reach, PACKED, W)
            gradient = copies[0].to(tl.float32)  # of what all copies were made of
            for copy in tl.static_range(1, COPIES):
                gradient += copies[copy].to(tl.float32)
            z, slope = u, 1.0  # what the norm was given, and its slope in u
            if SILU:
                sigmoid = tl.sigmoid(u)
                z = u * sigmoid
                slope = sigmoid + z * (1 - sigmoid)
            if NORM:
                r = _inverse_norm(z)
                # Of z / ||z||: the part along z is taken out, for a length of 1 cannot change.
                gradient = r * gradient - z * (r * r * r * tl.sum(z * gradient, axis=1, keep_dims=True))
            gradient *= slope

            own = tl.where(step < steps, gradient, 0.0)  # parameters' sums leave out the next walk's tokens
            bias_sum += own
            pending, summed, taps_summed = (zero,) + pending, (), ()
            for lag in tl.static_range(W):
                summed = summed + (pending[lag] + taps[lag] * _within(gradient, lag, reach, PACKED),)
                taps_summed = taps_summed + (taps_sums[lag] + own * _within(window[lag], lag, reach, PACKED),)
            # Token t - (W - 1) is out of reach of all tokens that follow.
            whole = (step >= W - 1) & (first + t - (W - 1) < T) & inside
            tl.store(dx + (t - (W - 1)) * C, summed[W - 1].to(dx.dtype.element_ty), mask=whole)
            window, pending, taps_sums = window[: W - 1], summed[: W - 1], taps_summed
        for lag in tl.static_range(W):
            tl.store(sums + (W - 1 - lag) * C + c, tl.sum(taps_sums[lag], axis=0, keep_dims=True), mask=inside)
        tl.store(sums + W * C + c, tl.sum(bias_sum, axis=0, keep_dims=True), mask=inside)

    @triton.jit
    def _forward_kernel(
        x, taps, bias, positions, q, k, v, T,
        HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, W: tl.constexpr,
        SILU: tl.constexpr, TOKENS: tl.constexpr, WALKS: tl.constexpr,
    ):  # fmt: skip
        C: tl.constexpr = (HEADS + 2 * KEY_HEADS) * D
        Y: tl.constexpr = HEADS * D
        COPIES: tl.constexpr = HEADS // KEY_HEADS
        head = tl.program_id(0)
        place = _place(T, WALKS, TOKENS, LANES)
        x, taps, bias = x + head * D, taps + head * D, bias + head * D
        if head < HEADS:
            y = q + head * D
            _forward_head(x, taps, bias, positions, y, T, place, C, Y, D, W, SILU, True, 1)
        elif head < HEADS + KEY_HEADS:
            y = k + (head - HEADS) * COPIES * D
            _forward_head(x, taps, bias, positions, y, T, place, C, Y, D, W, SILU, True, COPIES)
        else:
            y = v + (head - HEADS - KEY_HEADS) * COPIES * D
            _forward_head(x, taps, bias, positions, y, T, place, C, Y, D, W, SILU, False, COPIES)

    @triton.jit
    def _backward_kernel(
        x, taps, bias, positions, dq, dk, dv, dx, partials, T,
        HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, W: tl.constexpr,
        SILU: tl.constexpr, TOKENS: tl.constexpr, WALKS: tl.constexpr,
    ):  # fmt: skip
        C: tl.constexpr = (HEADS + 2 * KEY_HEADS) * D
        Y: tl.constexpr = HEADS * D
        COPIES: tl.constexpr = HEADS // KEY_HEADS
        head = tl.program_id(0)
        place = _place(T, WALKS, TOKENS, LANES)
        x, taps, bias, dx = x + head * D, taps + head * D, bias + head * D, dx + head * D
        program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
        sums = partials + program * (W + 1) * C + head * D
        if head < HEADS:
            dy = dq + head * D
            _backward_head(x, taps, bias, positions, dy, dx, sums, T, place, C, Y, D, W, SILU, True, 1)
        elif head < HEADS + KEY_HEADS:
            dy = dk + (head - HEADS) * COPIES * D
            _backward_head(x, taps, bias, positions, dy, dx, sums, T, place, C, Y, D, W, SILU, True, COPIES)
        else:
            dy = dv + (head - HEADS - KEY_HEADS) * COPIES * D
            _backward_head(x, taps, bias, positions, dy, dx, sums, T, place, C, Y, D, W, SILU, False, COPIES)
