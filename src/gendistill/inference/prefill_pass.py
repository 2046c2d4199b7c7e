"""A prefill pass over a piece of prompts, with as few passes through memory as there are kernels for.

The same computation as the model's own forward pass on a `SlotCache`, for plain modules, whose weights `packed` puts
together.

Shapes: B rows, T tokens of the piece, N hidden size, H query heads, G key heads, D channels of a head, C channels of
q, k and v.
"""

import torch
import torch.nn.functional as F

from gendistill.inference.packed import Packed, PackedLayer, PackedMixer
from gendistill.models.cache import Ring, SlotCache
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.models.padding import Padding
from gendistill.ops.causal import causal_attention
from gendistill.ops.decode_linear import gated, normed
from gendistill.ops.prefill_layer import recurrent_piece
from gendistill.ops.rope import rope_heads
from gendistill.ops.window import window_attention


class PrefillPass:
    """The pass of a student on a cache."""

    def __init__(self, student: GendistillForCausalLM, cache: SlotCache, weights: Packed):
        self.student, self.cache, self.packed = student, cache, weights

    def __call__(self, ids: torch.Tensor, start: int, padding: Padding | None) -> torch.Tensor:
        """Hidden states [B, T, N] behind the last layer, before the final norm, of tokens [B, T] from `start` on."""
        model = self.student.model
        x = model.embed_tokens(ids)  # [B, T, N]
        rope = None
        if self.student.config.has_positions:
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
            rope = tuple(part[0] for part in model.rotary_emb(x, positions))  # [T, D] each
        for layer, cache in zip(self.packed.layers, self.cache.layers, strict=True):
            x = self._through(layer, cache, x, start, rope, padding)
        return x

    def _through(self, layer: PackedLayer, cache, x, start: int, rope, padding: Padding | None) -> torch.Tensor:
        """[B, T, N] -> [B, T, N]."""
        x = _added(x, mix_piece(layer, cache, normed(x, *layer.input_norm), start, rope, padding), layer.output)
        inputs = normed(x, *layer.mlp_norm)
        inner = gated(
            F.linear(inputs, layer.gate.weight, layer.gate.bias), F.linear(inputs, layer.up.weight, layer.up.bias)
        )
        return _added(x, inner, layer.down)


def mix_piece(
    layer: PackedMixer, cache, inputs: torch.Tensor, start: int, rope, padding: Padding | None
) -> torch.Tensor:
    """What a layer's output projection takes [B, T, H * D], of its inputs [B, T, N].

    Args:
        cache: the layer's, changed.
        start: tokens that came before.
        rope: cos and sin [T, D] each, of the tokens' positions; None for a recurrence alone.
        padding: behind each row's tokens; None if there is none.
    """
    channels, bias = layer.channels, layer.bias
    qkv = F.linear(inputs, layer.weight[:channels], None if bias is None else bias[:channels])  # [B, T, C]
    if not (layer.is_linear or layer.is_window):
        q, k, v = rope_heads(qkv, rope, layer.norms, layer.eps, layer.heads, layer.key_heads)
        keys, values = cache.update(k, v, start)  # [B, G, start + T, D]
        return causal_attention(q, keys, values, layer.width**-0.5).transpose(1, 2).flatten(2)
    seen = _see_window(layer, cache, qkv, rope, padding) if layer.sees_window else None
    if layer.is_window:
        return seen.flatten(2)
    narrow = F.linear(inputs, layer.weight[channels:])  # [B, T, narrow]
    return _recur(layer, cache, qkv, narrow, padding, start, seen)


def _see_window(layer: PackedMixer, cache, qkv, rope, padding: Padding | None) -> torch.Tensor:
    """[B, T, H, D]."""
    q, k, v = rope_heads(qkv, rope, layer.norms, layer.eps, layer.heads, layer.key_heads)
    ring = Ring(cache, k, layer.window, layer.sinks)
    o = window_attention(q, k, v, window=layer.window, sinks=layer.sinks, scale=layer.width**-0.5, past=ring.past())
    ring.write(k, v, padding)
    return o


def _recur(
    layer: PackedMixer, cache, qkv: torch.Tensor, narrow: torch.Tensor, padding: Padding | None, start: int, seen
) -> torch.Tensor:
    """[B, T, H * D]; the convolution's last inputs and the state go into the cache."""
    recurrence = layer.recurrence
    if not cache.is_conv_states_initialized[0]:
        wide = torch.promote_types(qkv.dtype, torch.float32)
        state = qkv.new_empty(len(qkv), recurrence.heads, layer.width, layer.width, dtype=wide)
        cache.lazy_initialization(
            conv_states=qkv.new_empty(len(qkv), *recurrence.conv_weight.shape), recurrent_states=state
        )
    cache.has_previous_state[0] = True
    lengths = None if padding is None else padding.lengths
    states = cache.conv_states[0], cache.recurrent_states[0]
    return recurrent_piece(qkv, narrow, recurrence, *states, start, lengths, seen)


def _added(x: torch.Tensor, o: torch.Tensor, projection) -> torch.Tensor:
    """x + projection(o), [B, T, N], in x's place: passes through memory are spared."""
    if projection.bias is not None:
        return x.add_(F.linear(o, projection.weight, projection.bias))
    x.view(-1, x.shape[-1]).addmm_(o.flatten(0, 1), projection.weight.t())
    return x
