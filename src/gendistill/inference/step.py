"""One decoding step of a student, as few kernels and with nothing put together that could be put together before.

The same computation as the model's own forward pass of one token, on a `SlotCache`. It reads weights off the modules,
so it is for plain modules only: with adapters, hooks or quantised weights the forward pass is what counts.

Shapes: B rows, N hidden size, H query heads, G key heads, D channels of a head, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gendistill.inference.packed import Packed, PackedLayer, PackedMixer
from gendistill.models.cache import RING_KEYS, RING_VALUES, SlotCache, ring_length, ring_places
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops.decode_attention import decode_attention
from gendistill.ops.decode_layer import recurrent_step, rope_and_write
from gendistill.ops.decode_linear import decode_linear


class Place(NamedTuple):
    """Where a step's tokens stand: cos and sin of RoPE [B, D], places in caches and how many of them are filled [B]."""

    cos: torch.Tensor | None
    sin: torch.Tensor | None
    place: torch.Tensor
    length: torch.Tensor
    ring_place: torch.Tensor | None
    ring_length: torch.Tensor | None

    @classmethod
    def of(
        cls, position: torch.Tensor, rope: Sequence[torch.Tensor] | None, window: int | None, sinks: int | None
    ) -> "Place":
        """Of tokens at positions [B]; `rope` is cos and sin [B, 1, D], None for none, `window` None for none."""
        cos, sin = (None, None) if rope is None else (part[:, 0].contiguous() for part in rope)
        if window is None:
            return cls(cos, sin, position, position + 1, None, None)
        ring_place, length = ring_places(position, window, sinks), ring_length(position + 1, window, sinks)
        return cls(cos, sin, position, position + 1, ring_place, length)


class DecodeStep:
    """The step of a student on a cache; tensors of both are read and written where they are."""

    def __init__(self, student: GendistillForCausalLM, cache: SlotCache, weights: Packed):
        self.student, self.config, self.cache, self.packed = student, student.config, cache, weights

    def __call__(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] behind the tokens [B, 1] at positions [B]."""
        # Weights are those that were put together, unless one has changed since.
        x = self.student.model.embed_tokens(token[:, 0])  # [B, N]
        rope = self.student.model.rotary_emb(x, position[:, None]) if self.config.has_positions else None
        where = Place.of(position, rope, self.config.window, self.config.sinks)
        for layer, cache in zip(self.packed.layers, self.cache.layers, strict=True):
            x = _through(layer, cache, x, where)
        return decode_linear(x, self.student.lm_head.weight, norm=self.packed.norm)


def _through(layer: PackedLayer, cache, x: torch.Tensor, where: Place) -> torch.Tensor:
    """[B, N] -> [B, N], through a layer with its part of the cache."""
    projected = decode_linear(x, layer.weight, layer.bias, norm=layer.input_norm)
    o = mix_token(layer, cache, projected, where)
    x = decode_linear(o, layer.output.weight, layer.output.bias, residual=x)
    up = layer.up.weight, layer.up.bias
    inner = decode_linear(x, layer.gate.weight, layer.gate.bias, norm=layer.mlp_norm, up=up)
    return decode_linear(inner, layer.down.weight, layer.down.bias, residual=x)


def mix_token(
    layer: PackedMixer, cache, projected: torch.Tensor, where: Place, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """What a layer's output projection takes [B, H * D], of its projections [B, C + narrow]; its cache is changed.

    Args:
        rows: [B], which of the cache's recurrent states each token has; None: as they come.
    """
    seen = None
    if layer.sees_window:
        ring = (cache.recurrent_states[state] for state in (RING_KEYS, RING_VALUES))
        seen = _attend(layer, projected, where, *ring, where.ring_place, where.ring_length)
    if layer.is_linear:
        states = cache.conv_states[0], cache.recurrent_states[0]
        return recurrent_step(projected, *states, layer.recurrence, seen, where.place, rows)
    if layer.is_window:
        return seen.flatten(1)
    return _attend(layer, projected, where, cache.keys, cache.values, where.place, where.length).flatten(1)


def _attend(layer: PackedMixer, projected: torch.Tensor, where: Place, keys, values, place, length) -> torch.Tensor:
    """[B, H, D]."""
    cos_sin = where.cos, where.sin
    q = rope_and_write(projected, *cos_sin, layer.norms, layer.eps, keys, values, place, layer.heads)
    return decode_attention(q, keys, values, length, layer.width**-0.5)
