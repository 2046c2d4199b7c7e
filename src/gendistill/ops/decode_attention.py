"""Softmax attention of one token to the first places of a cache of fixed size.

Shapes: B rows, H query heads, G key heads, S places, D channels of a head.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.decode_attention_kernels import kernel_decode_attention
from gendistill.ops.dispatch import takes_kernels


def decode_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention to the first `lengths` places; which of them a row has is read on the device.

    Args:
        q: [B, H, D].
        keys, values: [B, G, S, D].
        lengths: [B] integers; a row of 0 gets zeros.

    Returns:
        [B, H, D].
    """
    if takes_kernels(q):
        return kernel_decode_attention(q, keys, values, lengths, scale)
    batch, heads, width = q.shape
    # The heads that share a key head stand in as its queries, so that keys are not copied for each.
    grouped = q.view(batch, keys.shape[1], -1, width)  # [B, G, H / G, D]
    mask = torch.arange(keys.shape[2], device=q.device) < lengths[:, None]  # [B, S]
    empty = lengths == 0
    mask[:, 0] |= empty  # there is no softmax over nothing
    o = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask[:, None, None], scale=scale)
    return o.reshape(batch, heads, width).masked_fill(empty[:, None, None], 0)
