"""Every operation on caches: new ones, rows of one, fixed size, bytes.

A layer of attention keeps keys and values of all tokens, [B, key heads, T, D] each. A linear layer keeps its state
[B, H, K, V] in float32 and the convolution's last inputs [B, C, kernel], whatever T is.
"""

import copy
from collections.abc import Sequence

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    LinearAttentionLayer,
    StaticLayer,
)

from gendistill.models.configuration import GendistillConfig


class PureCache(DynamicCache):
    """The cache of a student without any attention layer: it counts its tokens, since no layer keeps keys to count."""

    is_compileable = False  # generate() would compile the whole model by itself

    def __init__(self, config: GendistillConfig):
        super().__init__(config=config)
        self.tokens = 0

    def update_conv_state(self, conv_states: torch.Tensor, layer_idx: int, *args, **kwargs) -> torch.Tensor:
        if layer_idx == 0:  # every layer is given the same tokens
            self.tokens += conv_states.shape[-1]  # [B, C, T]
        return super().update_conv_state(conv_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens

    def reset(self) -> None:
        super().reset()
        self.tokens = 0


def new_cache(config: GendistillConfig) -> DynamicCache:
    """transformers' cache, which must be told the layers' types; one that counts by itself for pure students."""
    return PureCache(config) if config.is_pure else DynamicCache(config=config)


def select_rows(cache: Cache, rows: Sequence[int]) -> Cache:
    """A cache of the given sequences, any of them any number of times; the one given stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in selected.layers:
        # A linear layer keeps its states in dictionaries, which a copy of the layer still shares.
        containers = {name: copy.copy(value) for name, value in vars(layer).items() if isinstance(value, dict | list)}
        vars(layer).update(containers)
        layer.reorder_cache(torch.tensor(rows, device=layer.device))  # by index_select, so with new tensors
    return selected


def with_fixed_size(cache: Cache, length: int) -> Cache:
    """Gives the layers that keep keys and values room for `length` tokens, at an address that stays.

    Raises:
        ValueError: a layer is of a type of which that is not known.
    """
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            fixed = StaticLayer(max_cache_len=length)
            fixed.lazy_initialization(layer.keys, layer.values)
            fixed.update(layer.keys, layer.values)
            cache.layers[number] = fixed
        elif type(layer) not in (LinearAttentionLayer, StaticLayer):  # these two have their size already
            raise ValueError(f"layer {number} of the cache is a {type(layer).__name__}, whose size cannot be fixed")
    return cache


def cache_bytes(cache: Cache) -> int:
    """Bytes of the tensors that a cache keeps of its tokens."""
    tensors = []
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            tensors += [*layer.conv_states.values(), *layer.recurrent_states.values()]
        if isinstance(layer, DynamicLayer | StaticLayer):  # transformers' own hybrids have layers that are both
            tensors += [layer.keys, layer.values]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
