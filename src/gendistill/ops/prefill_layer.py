"""A piece of prompts on its way through a linear layer, between its projections.

The caches are changed in place, as a CUDA graph needs it.

Shapes: B rows, T tokens of the piece, H query heads, G key heads, D channels of a head, C = (H + 2 G) D channels of q,
k and v, W taps of the convolution.
"""

import torch
import torch.nn.functional as F

from gendistill.ops.convolution import convolved_heads
from gendistill.ops.decay import DecayGate, is_bounded
from gendistill.ops.decode_layer_kernels import Recurrence
from gendistill.ops.dispatch import linear_attention, takes_kernels
from gendistill.ops.kda_prefill_kernels import takes_prefill, through_chunks
from gendistill.ops.output_gate import gated_norm
from gendistill.ops.prefill_convolution_kernels import convolved_piece
from gendistill.ops.prefill_outputs_kernels import Beside, OutputGate
from gendistill.ops.window import TOKEN_SCALE, share_beside


def recurrent_piece(
    qkv: torch.Tensor,
    narrow: torch.Tensor,
    layer: Recurrence,
    conv_state: torch.Tensor,
    state: torch.Tensor,
    start: int,
    lengths: torch.Tensor | None,
    seen: torch.Tensor | None,
) -> torch.Tensor:
    """Several tokens of a linear layer, from its projections to what its output projection takes.

    Args:
        qkv: [B, T, C], q, k and v side by side, each head by head.
        narrow: [B, T, narrow], what `Recurrence.narrow` lists, side by side.
        conv_state: [B, C, W], the last inputs of the convolution; written.
        state: [B, H, D, D] float32 or wider, written.
        start: tokens before these, of which both states are; if there are none, what they hold is not looked at.
        lengths: [B], tokens of each row, padding behind them; None for T.
        seen: [B, T, H, D], of a window beside it; None for none.

    Returns:
        [B, T, H * D].
    """
    by_device = _by_kernels if _takes_kernels(qkv, layer) else _plainly
    return by_device(qkv, narrow, layer, conv_state, state, start, lengths, seen)


def _takes_kernels(qkv: torch.Tensor, layer: Recurrence) -> bool:
    """Kimi Delta Attention with bounded gates; all else goes through the operations one by one."""
    by_channel = layer.delta_rule and layer.decay_weight is not None and is_bounded(layer.bound)
    size = qkv.shape[-1] // (layer.heads + 2 * layer.key_heads)
    return by_channel and takes_kernels(qkv) and takes_prefill(qkv.dtype, size)


def _by_kernels(qkv, narrow, layer: Recurrence, conv_state, state, start: int, lengths, seen) -> torch.Tensor:
    extends, parts = start > 0, layer.by_name(narrow)
    shape = (layer.heads, layer.key_heads, layer.silu_conv)
    q, k, v = convolved_piece(qkv, layer.conv_weight, layer.conv_bias, conv_state, extends, lengths, *shape)
    decay = DecayGate(parts["decay"], layer.A_log, layer.dt_bias, layer.bound)
    beside = None
    if seen is not None:
        of_tokens = (parts.get("share"), TOKEN_SCALE)
        beside = Beside(seen.contiguous(), layer.share_logit, *of_tokens, start, layer.seen_whole)
    gate = (parts["gate"], layer.gate_weight, layer.gate_bias, layer.norm, layer.eps, layer.silu_gate)
    before = state if extends else None
    output = OutputGate(*gate, beside)
    return through_chunks(q, k, v, decay, layer.decay_weight, parts["beta"], lengths, before, state, output)


def _plainly(qkv, narrow, layer: Recurrence, conv_state, state, start: int, lengths, seen) -> torch.Tensor:
    extends, parts = start > 0, layer.by_name(narrow)
    q, k, v = _convolved(qkv, layer, conv_state, extends, lengths)  # [B, T, H, D] each
    mask = None if lengths is None else torch.arange(qkv.shape[1], device=qkv.device) < lengths[:, None]  # [B, T]
    # Tokens see none of the padding behind them; only the state must not.
    beta = parts["beta"].to(state.dtype).sigmoid() if layer.delta_rule else None
    if layer.fixed is not None:
        decay = layer.fixed.expand(*qkv.shape[:2], -1)
        decay = decay if mask is None else decay * mask[..., None]
    else:
        raw = parts["decay"]
        if layer.decay_weight is not None:
            raw = F.linear(raw, layer.decay_weight).unflatten(-1, (layer.heads, -1))
        decay = DecayGate(raw, layer.A_log, layer.dt_bias, layer.bound, None if mask is None else mask.to(raw.dtype))
    if mask is not None and beta is not None:
        beta = beta * mask[..., None]
    if mask is not None and beta is None:
        v = v * mask[..., None, None]
    o, new = linear_attention(q, k, v, decay, beta, state if extends else None, None)
    state.copy_(new)
    activation = "silu" if layer.silu_gate else "sigmoid"
    gate = F.linear(parts["gate"], layer.gate_weight)  # [B, T, H * D]
    o = gated_norm(o, gate, layer.gate_bias, layer.norm, eps=layer.eps, activation=activation)
    if seen is None:
        return o
    position = torch.arange(start, start + qkv.shape[1], device=qkv.device)  # [T]
    share = share_beside(layer.share_logit, parts.get("share"), position, layer.seen_whole)  # [T, H], [B, T, H]
    return torch.lerp(seen, o.unflatten(-1, (layer.heads, -1)), share[..., None].to(o.dtype)).flatten(2)


def _convolved(
    qkv: torch.Tensor, layer: Recurrence, conv_state: torch.Tensor, extends: bool, lengths: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v [B, T, H, D], the tokens before seen; writes the convolution's last inputs."""
    taps = conv_state.shape[2]
    history = conv_state.transpose(1, 2) if extends else None  # [B, W, C]
    heads = _heads(layer, qkv)
    if history is not None:
        # Only the first tokens see what came before: they are done again, which spares a copy of all.
        first = _heads(layer, torch.cat([history, qkv[:, : taps - 1]], dim=1))
        for part, again in zip(heads, first, strict=True):
            part[:, : taps - 1] = again[:, taps:]
    conv_state.copy_(_last_inputs(qkv, history, taps, lengths).transpose(1, 2))
    return heads


def _heads(layer: Recurrence, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    activation = "silu" if layer.silu_conv else "none"
    shape = {"heads": layer.heads, "key_heads": layer.key_heads}
    return convolved_heads(x, layer.conv_weight, layer.conv_bias, **shape, activation=activation)


def _last_inputs(
    qkv: torch.Tensor, history: torch.Tensor | None, taps: int, lengths: torch.Tensor | None
) -> torch.Tensor:
    """[B, W, C]: each row's last inputs of the convolution, behind zeros or its history where they are too few.

    Args:
        qkv: [B, T, C].
        history: [B, W, C], the last inputs of earlier pieces.
    """
    if lengths is None and qkv.shape[1] >= taps:
        return qkv[:, -taps:]
    if history is None:
        history = qkv.new_zeros(len(qkv), taps, qkv.shape[2])
    if lengths is None:
        return torch.cat([history, qkv[:, -taps:]], dim=1)[:, -taps:]
    index = lengths[:, None] + torch.arange(-taps, 0, device=qkv.device)  # [B, W]; below 0: in the history
    of_piece = qkv.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, qkv.shape[2]))
    of_history = history.gather(1, (index + taps).clamp(0, taps - 1)[..., None].expand(-1, -1, qkv.shape[2]))
    return torch.where((index < 0)[..., None], of_history, of_piece)
