"""What vLLM keeps of a sequence for a linear layer: the same tensors as the student's own cache, of the same bytes.

vLLM gives every linear layer of a model one list of states. So where layers differ (a window alone in some, a
recurrence in others) each has room for what any of them needs.

Shapes: N sequences, H heads, G key heads, D channels of a head, C = (H + 2 G) * D, S sinks, W the window.
"""

from typing import NamedTuple

import torch
from transformers.cache_utils import Cache, LinearAttentionLayer

from gendistill.models.cache import RING_COUNT, RING_KEYS, RING_VALUES
from gendistill.models.configuration import GendistillConfig
from gendistill.vllm.shares import layer_of_rank

RING = {"ring_keys": RING_KEYS, "ring_values": RING_VALUES}  # a window's, by their numbers in transformers' layer


class State(NamedTuple):
    """A tensor that a layer keeps of each sequence."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of one sequence."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def layer_states(config: GendistillConfig, layer: int, dtype: torch.dtype, ranks: int = 1) -> list[State]:
    """The states of one linear layer on one of so many ranks.

    A window's count of tokens, which the student's own cache keeps as well, is a token's position here.

    Raises:
        UserError: the heads cannot be shared out among the ranks.
    """
    local = layer_of_rank(config, layer, ranks)
    heads, head = local.num_attention_heads, local.head_dim
    key_heads = heads if local.expand_kv else local.num_key_value_heads
    states = []
    if local.linear_layers:
        # The state in float32, for its errors would add up; first, where any alignment is right.
        states.append(State("recurrent", (heads, head, head), torch.float32))
        states.append(State("conv", ((heads + 2 * key_heads) * head, local.conv_kernel_size), dtype))
    if local.window is not None:
        ring = (key_heads, local.sinks + local.window + 1, head)  # the last place is for padding
        states += [State(name, ring, dtype) for name in RING]
    return states


def student_states(config: GendistillConfig, dtype: torch.dtype, ranks: int = 1) -> list[State]:
    """The states that each linear layer of a student gets: all that one of them has."""
    found: dict[str, State] = {}
    for layer in config.layers_of_type("linear_attention"):
        for state in layer_states(config, layer, dtype, ranks):
            found.setdefault(state.name, state)
    return list(found.values())


def cache_of(states: dict[str, torch.Tensor], count: torch.Tensor, equal_count: int | None) -> Cache:
    """transformers' cache of one layer that holds these states [N, ...], which the layer will change.

    Args:
        count: [N] int64, tokens so far.
        equal_count: `count` where it is the same for all sequences and known on the host.
    """
    layer = LinearAttentionLayer()
    if equal_count == 0:  # a beginning: the layer makes its own tensors
        return Cache(layers=[layer])
    layer.device = count.device
    if "recurrent" in states:
        layer.conv_states[0], layer.recurrent_states[0] = states["conv"], states["recurrent"]
        layer.conv_kernel_size[0] = states["conv"].shape[-1]
        _mark_as_held(layer, 0)
    if "ring_keys" in states:
        rings = {number: states[name] for name, number in RING.items()}
        for number, tensor in (rings | {RING_COUNT: count}).items():
            layer.recurrent_states[number], layer.conv_states[number] = tensor, None
            _mark_as_held(layer, number)
        layer.number_of_states = RING_COUNT + 1
        layer.equal_count = equal_count
    return Cache(layers=[layer])


def _mark_as_held(layer: LinearAttentionLayer, number: int) -> None:
    layer.is_recurrent_states_initialized[number] = True
    layer.is_conv_states_initialized[number] = layer.conv_states[number] is not None
    layer.has_previous_state[number] = True


def states_of(cache: Cache) -> dict[str, torch.Tensor]:
    """The states [N, ...] in a cache that `cache_of` made, by their names."""
    (layer,) = cache.layers
    held = {"recurrent": layer.recurrent_states[0], "conv": layer.conv_states[0]}
    held |= {name: layer.recurrent_states.get(number) for name, number in RING.items()}
    return {name: tensor for name, tensor in held.items() if tensor is not None}
