"""Causal softmax attention of the last T of S tokens, for prefill in pieces.

Shapes: B sequences, H query heads, G key heads, D channels of a head.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

HOPPER = (9, 0)  # the compute capability it is written for


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """q [B, H, T, D], k and v [B, G, S, D], S >= T -> [B, H, T, D]: each query sees what is not later than itself.

    Without gradients: on Hopper by FlashAttention-3 where it is installed. Elsewhere on CUDA in two parts, the earlier
    tokens whole and the new ones causally, each by the fastest kernel there is: together they would need a mask, which
    takes a slower one.
    """
    if flash := _flash_attention_3(q):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        o = flash(q, k, v, softmax_scale=scale, causal=True)
        return (o[0] if isinstance(o, tuple) else o).transpose(1, 2)  # some releases return the logsumexp, too
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    if past == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, scale=scale, enable_gqa=True)
    if length == 1:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        earlier = _with_logsumexp(q, k[:, :, :past], v[:, :, :past], scale, causal=False)
        own = _with_logsumexp(q, k[:, :, past:], v[:, :, past:], scale, causal=True)
        return _joined(*earlier, *own)
    mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril(past)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def _flash_attention_3(q: torch.Tensor) -> Callable | None:
    """FlashAttention-3's function, if it is for such queries."""
    fits = (
        q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and not (torch.is_grad_enabled() and q.requires_grad)
    )
    if not fits or torch.cuda.get_device_capability(q.device) != HOPPER:
        return None
    return load_flash_attention_3()


@cache
def load_flash_attention_3() -> Callable | None:
    """`flash_attn_func` of FlashAttention-3's Python package, `flash_attn_interface`; None if that is not there."""
    try:
        from flash_attn_interface import flash_attn_func
    except (ImportError, OSError):  # OSError: it was built for other libraries
        return None
    return flash_attn_func


def _with_logsumexp(q, k, v, scale: float, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, H, T, D], and the logarithm of the sum of exp(score), [B, H, T, 1], by cuDNN."""
    o, logsumexp, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, causal, False, scale=scale
    )
    return o, logsumexp.reshape(*q.shape[:3], 1)


def _joined(o: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> torch.Tensor:
    """Attention over two sets of keys from the attention over each: [B, H, T, D], [B, H, T, 1] of both."""
    share = torch.sigmoid(lse - other_lse)  # of the first set
    return torch.lerp(other.float(), o.float(), share).to(o.dtype)
