"""Softmax attention of one token to the first places of a cache of fixed size."""

import torch
import torch.nn.functional as F


def decode_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """[B, H, D]: of q [B, H, D] to the first `lengths` [B] places of keys and values [B, G, S, D]."""
    batch, heads, width = q.shape
    # The heads that share a key head stand in as its queries, so that keys are not copied for each.
    grouped = q.view(batch, keys.shape[1], -1, width)  # [B, G, H / G, D]
    mask = torch.arange(keys.shape[2], device=q.device) < lengths[:, None]  # [B, S]
    # A row of nothing but padding sees one place, for there is no softmax over none.
    mask[:, 0] = True
    o = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask[:, None, None], scale=scale)
    return o.reshape(batch, heads, width)
