"""From the projections of q, k and v to what attention takes: norms of q and k, RoPE, heads apart.

Shapes: B rows, T tokens, H query heads, G key heads, D channels of a head, C = (H + 2 G) D.
"""

import torch

from gendistill.ops.decode_linear import rms_norm
from gendistill.ops.dispatch import takes_kernels
from gendistill.ops.optional_triton import require_triton, tl, triton


def rope_heads(
    qkv: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor],
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    heads: int,
    key_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normed and turned q and k, and v.

    Args:
        qkv: [B, T, C], q, k and v side by side, each head by head.
        rope: cosines and sines [T, D], in the half-rotation convention of transformers' Llama.
        norms: weights [D] of the RMSNorms of q and k; None for none.

    Returns:
        q [B, H, T, D], k and v [B, G, T, D], whose memory is laid out by token.
    """
    if takes_kernels(qkv):
        q, k = _by_kernel(qkv, rope, norms, eps, heads, key_heads)
        v = qkv.unflatten(-1, (heads + 2 * key_heads, -1))[:, :, heads + key_heads :]
    else:
        q, k, v = qkv.unflatten(-1, (heads + 2 * key_heads, -1)).split([heads, key_heads, key_heads], dim=2)
        if norms is not None:
            q, k = (rms_norm(x, weight, eps) for x, weight in zip((q, k), norms, strict=True))
        cos, sin = (part[:, None] for part in rope)  # [T, 1, D]
        q, k = (x * cos + turned(x) * sin for x in (q, k))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def turned(x: torch.Tensor) -> torch.Tensor:
    """(-second half, first half) of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _by_kernel(qkv, rope, norms, eps: float, heads: int, key_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, T, H, D] and k [B, T, G, D], contiguous."""
    require_triton()
    batch, length, channels = qkv.shape
    width = channels // (heads + 2 * key_heads)
    q = qkv.new_empty(batch, length, heads, width)
    k = qkv.new_empty(batch, length, key_heads, width)
    q_norm, k_norm = norms or (None, None)
    _rope[(batch * length,)](
        qkv.contiguous(), *(part.contiguous() for part in rope), q_norm, k_norm, q, k, length, eps,
        HEADS=heads, KEY_HEADS=key_heads, LANES=triton.next_power_of_2(heads + key_heads), WIDTH=width, num_warps=4,
    )  # fmt: skip
    return q, k


if triton is not None:

    @triton.jit
    def _rope(
        QKV, COS, SIN, Q_NORM, K_NORM, Q, K, length, eps,
        HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
    ):  # fmt: skip
        token = tl.program_id(0).to(tl.int64)
        half: tl.constexpr = WIDTH // 2
        head = tl.arange(0, LANES)[:, None]
        lane = tl.arange(0, half)[None, :]
        is_q = head < HEADS
        there = head < HEADS + KEY_HEADS
        place = QKV + token * (HEADS + 2 * KEY_HEADS) * WIDTH + head * WIDTH + lane
        # RoPE turns a channel of the first half with that of the second.
        first = tl.load(place, mask=there, other=0.0).to(tl.float32)  # [LANES, D / 2]
        second = tl.load(place + half, mask=there, other=0.0).to(tl.float32)
        if Q_NORM is not None:
            kind = QKV.dtype.element_ty
            root = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / WIDTH + eps)[:, None]
            weight = tl.where(is_q, tl.load(Q_NORM + lane), tl.load(K_NORM + lane))
            first = (weight * (first * root).to(kind)).to(tl.float32)
            weight = tl.where(is_q, tl.load(Q_NORM + half + lane), tl.load(K_NORM + half + lane))
            second = (weight * (second * root).to(kind)).to(tl.float32)
        angle = (token % length) * WIDTH + lane
        cos_1, sin_1 = tl.load(COS + angle).to(tl.float32), tl.load(SIN + angle).to(tl.float32)
        cos_2, sin_2 = tl.load(COS + angle + half).to(tl.float32), tl.load(SIN + angle + half).to(tl.float32)
        new_first = (first * cos_1 - second * sin_1).to(Q.dtype.element_ty)
        new_second = (second * cos_2 + first * sin_2).to(Q.dtype.element_ty)
        of_q = Q + (token * HEADS + head) * WIDTH + lane
        tl.store(of_q, new_first, mask=is_q)
        tl.store(of_q + half, new_second, mask=is_q)
        of_k = K + (token * KEY_HEADS + head - HEADS) * WIDTH + lane
        tl.store(of_k, new_first, mask=there & (head >= HEADS))
        tl.store(of_k + half, new_second, mask=there & (head >= HEADS))
