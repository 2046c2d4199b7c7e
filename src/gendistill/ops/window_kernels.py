"""Of windows: sinks added to what a flash kernel saw, and tokens put into a ring buffer, in one Triton kernel each.

Shapes: B sequences, T tokens, H query heads, G key heads, D channels of a head, S sinks, W the window.
"""

import torch

from gendistill.ops.optional_triton import require_triton, tl, triton

TOKENS = 64  # of a program
SINKS = 16  # the least columns that tensor cores take


def add_sinks(
    q: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    window: int,
    scale: float,
) -> None:
    """Makes of attention over a window attention over window and sinks, in place.

    Args:
        q: [B, H, T, D].
        o: [B, T, H, D], contiguous; written to.
        lse: [H, B * T] float32, the logarithm of the sum of exp(score) in the window.
        keys, values: [B, G, S, D] of the sinks; those that a query's window holds are left out.
        position: of the first query.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    batch, heads, length, width = q.shape
    groups, sinks = keys.shape[1:3]
    keys, values, lse = keys.contiguous(), values.contiguous(), lse.contiguous()
    _add_sinks[(triton.cdiv(length, TOKENS), batch * heads)](
        q, o, lse, keys, values, q.stride(0), q.stride(1), q.stride(2), batch, length, position, window, sinks, scale,
        HEADS=heads, GROUPS=groups, WIDTH=width, TOKENS=TOKENS, SINKS=max(SINKS, triton.next_power_of_2(sinks)),
        num_warps=4,
    )  # fmt: skip


def write_ring(
    keys: torch.Tensor,
    values: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    count: torch.Tensor,
    lengths: torch.Tensor | None,
    window: int,
    sinks: int,
) -> None:
    """Puts those of the tokens that follow into a ring buffer that it still holds behind the last of them.

    Args:
        keys, values: [B, G, at least S + W, D], contiguous; written to. See `Ring`.
        k, v: [B, G, T, D], of any strides but in the channels.
        count: [B] int64, tokens before.
        lengths: [B], how many of the tokens are no padding, which stands behind them; None for T.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    batch, groups, length, width = k.shape
    assert keys.is_contiguous() and values.is_contiguous() and k.stride(3) == v.stride(3) == 1
    with torch.cuda.device_of(k):  # Triton launches on the current GPU, whichever has the tensors
        _write_ring[(triton.cdiv(sinks + window, TOKENS), groups, batch)](
            keys, values, k, v, count, lengths, length, window, sinks, keys.shape[2], *k.stride()[:3], *v.stride()[:3],
            GROUPS=groups, WIDTH=width, LANES=triton.next_power_of_2(width), TOKENS=TOKENS, num_warps=4,
        )  # fmt: skip


if triton is not None:

    @triton.jit
    def _add_sinks(
        Q, OUT, LSE, KEYS, VALUES, q_batch, q_head, q_token, batch, length, position, window, sinks, scale,
        HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, SINKS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(1) // HEADS
        head = tl.program_id(1) % HEADS
        group = head // (HEADS // GROUPS)
        token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
        channel = tl.arange(0, WIDTH)
        sink = tl.arange(0, SINKS)
        inside = (token < length)[:, None]
        queries = Q + row.to(tl.int64) * q_batch + head * q_head + token.to(tl.int64)[:, None] * q_token + channel
        q = tl.load(queries, mask=inside, other=0.0)  # [TOKENS, D]
        place = ((row * GROUPS + group) * sinks + sink)[:, None] * WIDTH + channel
        there = sink < sinks
        k = tl.load(KEYS + place, mask=there[:, None], other=0.0)  # [SINKS, D]
        v = tl.load(VALUES + place, mask=there[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [TOKENS, SINKS]
        seen_apart = there[None, :] & (position + token[:, None] - sink[None, :] >= window)
        scores = tl.where(seen_apart, scores, -float("inf"))
        lse = tl.load(LSE + head.to(tl.int64) * batch * length + row * length + token, mask=token < length, other=0.0)
        largest = tl.maximum(lse, tl.max(scores, 1))
        of_window = tl.exp(lse - largest)
        weights = tl.exp(scores - largest[:, None])
        total = of_window + tl.sum(weights, 1)
        out = OUT + ((row * length + token).to(tl.int64)[:, None] * HEADS + head) * WIDTH + channel
        o = tl.load(out, mask=inside, other=0.0).to(tl.float32) * of_window[:, None]
        o += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        tl.store(out, (o / total[:, None]).to(OUT.dtype.element_ty), mask=inside)

    @triton.jit
    def _write_ring(
        KEYS, VALUES, K, V, COUNT, LENGTHS, length, window, sinks, places,
        k_batch, k_head, k_token, v_batch, v_head, v_token,
        GROUPS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, TOKENS: tl.constexpr,
    ):  # fmt: skip
        group, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
        place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]  # [TOKENS, 1]
        channel = tl.arange(0, LANES)[None, :]
        count = tl.load(COUNT + row)
        new = length if LENGTHS is None else tl.load(LENGTHS + row)
        last = count + new - 1
        # The last token that a place of the window belongs to; before the sinks' end there is none.
        behind = last - place
        token = last - tl.where(behind >= 0, behind % window, behind + window)
        position = tl.where(place < sinks, place, token)
        held = (place < sinks) | (position >= sinks)
        index = position - count  # among these tokens
        mask = held & (index >= 0) & (index < new) & (place < sinks + window) & (channel < WIDTH)
        target = ((row * GROUPS + group) * places + place) * WIDTH + channel
        of_k = K + row * k_batch + group * k_head + index * k_token + channel
        of_v = V + row * v_batch + group * v_head + index * v_token + channel
        tl.store(KEYS + target, tl.load(of_k, mask=mask, other=0.0), mask=mask)
        tl.store(VALUES + target, tl.load(of_v, mask=mask, other=0.0), mask=mask)
