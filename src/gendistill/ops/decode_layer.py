"""One token's way between the projections of a layer: into the cache of an attention layer, through a recurrence.

All is changed in place, as a CUDA graph needs it.

Shapes: B rows, H query heads, G key heads, S places, D channels of a head, C = (H + 2 G) D channels of q, k and v.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.decay import DecayGate
from gendistill.ops.decode_layer_kernels import Recurrence, kernel_recurrent_step, kernel_rope_and_write
from gendistill.ops.decode_linear import rms_norm
from gendistill.ops.dispatch import takes_kernels
from gendistill.ops.output_gate import plain_gated_norm
from gendistill.ops.reference import l2_normalize, recurrent_linear_attention
from gendistill.ops.rope import turned
from gendistill.ops.window import share_beside


def rope_and_write(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Norms and turns q and k by their position, and writes k and v into the cache.

    Args:
        qkv: [B, at least C], q, k and v side by side, each head by head; what is behind them is not looked at.
        cos, sin: [B, D] of RoPE.
        norms: weights [D] of the RMSNorms of q and k; None for none.
        keys, values: [B, G, S, D], written to.
        places: [B], where to.
        heads: H.

    Returns:
        q [B, H, D].
    """
    if takes_kernels(qkv):
        return kernel_rope_and_write(qkv, cos, sin, norms, eps, keys, values, places, heads)
    _, groups, _, width = keys.shape
    parts = qkv[:, : (heads + 2 * groups) * width].unflatten(-1, (-1, width))
    q, k, v = parts.split([heads, groups, groups], dim=1)
    if norms is not None:
        q, k = (rms_norm(x, weight, eps) for x, weight in zip((q, k), norms, strict=True))
    q, k = (x * cos[:, None] + turned(x) * sin[:, None] for x in (q, k))
    index = places[:, None, None, None].expand(-1, groups, 1, width)
    keys.scatter_(2, index, k[:, :, None].to(keys.dtype))
    values.scatter_(2, index, v[:, :, None].to(values.dtype))
    return q


def recurrent_step(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    state: torch.Tensor,
    layer: Recurrence,
    seen: torch.Tensor | None,
    position: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token of a linear layer, from its projections to what its output projection takes.

    Args:
        x: [B, C + narrow]: q, k, v, and what `Recurrence.narrow` lists.
        conv_state: [B or more, C, W], the last inputs of the convolution; shifted by this one.
        state: [B or more, H, D, D] float32, changed.
        seen: [B, H, D], of a window beside it; None for none.
        position: [B], of the token in its text.
        rows: [B], which of the states each token has; None: the first has the first, and so on.

    Returns:
        [B, H * D]: where the window sees all of the text, what it sees.
    """
    if takes_kernels(x):
        return kernel_recurrent_step(x, conv_state, state, layer, seen, position, rows)
    if rows is not None:
        own = conv_state[rows], state[rows]
        o = recurrent_step(x, *own, layer, seen, position)
        conv_state[rows], state[rows] = own
        return o
    heads, groups = layer.heads, layer.key_heads
    channels = conv_state.shape[1]
    mixed, narrow = x[:, :channels], layer.by_name(x[:, channels:])
    conv_state.copy_(torch.cat([conv_state[..., 1:], mixed[..., None].to(conv_state.dtype)], dim=-1))
    y = (conv_state * layer.conv_weight).sum(-1) + layer.conv_bias  # [B, C]
    y = F.silu(y) if layer.silu_conv else y
    q, k, v = y.unflatten(-1, (heads + 2 * groups, -1)).split([heads, groups, groups], dim=1)  # [B, H or G, D]
    wide = torch.promote_types(x.dtype, torch.float32)
    q, k = (l2_normalize(part.to(wide)).to(x.dtype) for part in (q, k))
    k, v = (part.repeat_interleave(heads // groups, dim=1) for part in (k, v))
    if layer.fixed is not None:
        g = layer.fixed.expand(len(x), 1, -1)
    else:
        raw = narrow["decay"][:, None]
        if layer.decay_weight is not None:
            raw = F.linear(raw, layer.decay_weight).unflatten(-1, (heads, -1))
        g = DecayGate(raw, layer.A_log, layer.dt_bias, layer.bound).log_decay()
    beta = narrow["beta"].to(wide).sigmoid()[:, None] if layer.delta_rule else None
    o, new = recurrent_linear_attention(q[:, None], k[:, None], v[:, None], g, beta, state)
    state.copy_(new)
    gate = F.linear(narrow["gate"], layer.gate_weight)[:, None]
    activation = "silu" if layer.silu_gate else "sigmoid"
    o = plain_gated_norm(o, gate, layer.gate_bias, layer.norm, layer.eps, activation)[:, 0]  # [B, H * D]
    if seen is None:
        return o
    share = share_beside(layer.share_logit, narrow.get("share"), position, layer.seen_whole)  # [B, H]
    return torch.lerp(seen, o.unflatten(-1, (heads, -1)), share[..., None].to(o.dtype)).flatten(1)
