"""The teacher's attention over a window, as an attention function that a model can be switched to.

Shapes: B sequences, H query heads, G key heads, T tokens, D channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

WINDOWED = "gendistill_windowed"


def windowed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    window: int | None = None,
    sinks: int = 0,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention, over a window if one is given: [B, H, T, D], [B, G, T, D] -> [B, T, H, D]."""
    if window is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)
    return attend_to_window(query, key, value, window=window, sinks=sinks, scale=scaling), None


def attend_to_window(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, window: int, sinks: int, scale: float
) -> torch.Tensor:
    """Each query sees the last `window` tokens, itself among them, and the first `sinks` (arXiv 2309.17453).

    Args:
        q, k, v: [B, H, T, D], [B, G, T, D], [B, G, T, D], RoPE applied.

    Returns:
        [B, T, H, D].
    """
    groups = q.shape[1] // k.shape[1]
    # With a mask no fused kernel takes key heads as they are.
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))  # [B, H, T, D]
    mask = visible(q.shape[2], window, sinks, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def visible(length: int, window: int, sinks: int, device: torch.device | str) -> torch.Tensor:
    """[T, T]: which keys (columns) each query (rows) sees."""
    index = torch.arange(length, device=device)
    age = index[:, None] - index  # [T, T]
    return (age >= 0) & ((age < window) | (index < sinks))


ALL_ATTENTION_FUNCTIONS.register(WINDOWED, windowed_attention)
