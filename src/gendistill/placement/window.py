"""The teacher's attention over a window, as an attention function that a model can be switched to.

Shapes: B sequences, H query heads, G key heads, T tokens, D channels of a head.
"""

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gendistill.ops.window import window_attention

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
    return window_attention(query, key, value, window=window, sinks=sinks, scale=scaling), None


ALL_ATTENTION_FUNCTIONS.register(WINDOWED, windowed_attention)
