"""The short convolution of a piece of prompts, as one Triton kernel.

It continues from the inputs of the piece before, and leaves the last ones for the next.

Shapes: B sequences, T tokens in each, H query heads, G key heads, D channels of a head, C = (H + 2 G) D channels, W
taps.
"""

import torch

from gendistill.ops.optional_triton import tl, triton

SETTING = {"TOKENS": 64, "num_warps": 8}  # tokens of a program


def convolved_piece(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    state: torch.Tensor,
    extends: bool,
    lengths: torch.Tensor | None,
    heads: int,
    key_heads: int,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Convolves, activates, splits into heads and L2-normalises q and k. No gradients.

    Args:
        x: [B, T, C], q, k and v side by side, each head by head.
        weight: [C, W], the current token's tap last.
        bias: [C].
        state: [B, C, W], the last inputs of the tokens before if it `extends` them; written.
        lengths: [B], tokens of each row, padding behind them; None for T.

    Returns:
        q [B, T, H, D], k and v [B, T, G, D].
    """
    B, T, C = x.shape
    size = C // (heads + 2 * key_heads)
    assert all(tensor.is_contiguous() for tensor in (x, weight, bias, state))
    q, k, v = (x.new_empty(B, T, count, size) for count in (heads, key_heads, key_heads))
    # The heads in front: programs that run together load neighbouring numbers of the same tokens.
    grid = (heads + 2 * key_heads, triton.cdiv(T, SETTING["TOKENS"]), B)
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, whichever has the tensors
        _kernel[grid](
            x, weight, bias, state, lengths, q, k, v, T, H=heads, G=key_heads, D=size, W=weight.shape[1], SILU=silu,
            EXTENDS=extends, **SETTING,
        )  # fmt: skip
    return q, k, v


if triton is not None:
    from gendistill.ops.prefill_tokens import count_of, sigmoid

    @triton.jit
    def _input(x, state, t, T, C: tl.constexpr, W: tl.constexpr, EXTENDS: tl.constexpr):
        """Of tokens t, which before the first are those of `state`, or 0."""
        value = tl.load(x + t * C, mask=(t >= 0) & (t < T), other=0.0)
        if EXTENDS and tl.program_id(1) == 0:  # no other has such tokens
            value += tl.load(state + (W + t), mask=t < 0, other=0.0)
        return value

    @triton.jit
    def _normed(z):
        return z * tl.rsqrt(tl.sum(z * z, axis=1, keep_dims=True) + 1e-6)  # as `reference.l2_normalize`

    @triton.jit(do_not_specialize=["T"])
    def _kernel(
        x, weight, bias, state, lengths, q, k, v, T,
        H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, W: tl.constexpr, SILU: tl.constexpr,
        EXTENDS: tl.constexpr, TOKENS: tl.constexpr,
    ):  # fmt: skip
        """TOKENS tokens of one head of q, k or v."""
        C: tl.constexpr = (H + 2 * G) * D
        head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
        c = tl.arange(0, D)[None, :]
        i = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[:, None]
        x += row * T * C + head * D + c
        state += (row * C + head * D + c) * W
        weight += (head * D + c) * W
        z = tl.load(bias + head * D + c).to(tl.float32)
        for lag in tl.static_range(W):
            value = _input(x, state, i - lag, T, C, W, EXTENDS).to(tl.float32)
            z += tl.load(weight + (W - 1 - lag)).to(tl.float32) * value
        if SILU:
            z *= sigmoid(z)
        if head < H:
            z = _normed(z)
            tl.store(q + ((row * T + i) * H + head) * D + c, z.to(q.dtype.element_ty), mask=i < T)
        elif head < H + G:
            z = _normed(z)
            tl.store(k + ((row * T + i) * G + head - H) * D + c, z.to(k.dtype.element_ty), mask=i < T)
        else:
            tl.store(v + ((row * T + i) * G + head - H - G) * D + c, z.to(v.dtype.element_ty), mask=i < T)
        if tl.program_id(1) == 0:
            first = count_of(row, T, lengths) - W + tl.zeros([1, 1], tl.int32)
            last = ()
            for place in tl.static_range(W):
                last = last + (_input(x, state, first + place, T, C, W, EXTENDS),)
            tl.debug_barrier()  # all have read what stood there
            for place in tl.static_range(W):
                tl.store(state + place, last[place])
