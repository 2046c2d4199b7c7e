"""What vLLM keeps of a sequence is what the student's own cache keeps, and continues as that does."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gendistill.models.cache import RING_COUNT, new_cache, ring_places
from gendistill.models.cost import COUNT, expected_cache_bytes
from gendistill.vllm.states import RING, cache_of, layer_states, states_of, student_states
from small_models import VARIANTS, make_student, tokens

HYBRIDS = ["qwen2-kda-hybrid", "qwen3-gla-mixed", "qwen2-window-hybrid", "qwen2-window-mixed"]
HYBRIDS += ["qwen3-kda-beside-window", "llama-gated_deltanet-beside-window"]


@torch.no_grad()
@pytest.mark.parametrize("variant", HYBRIDS)
def test_shapes_dtypes_and_bytes_are_the_caches(variant):
    student = make_student(**VARIANTS[variant]).bfloat16()
    config, cache = student.config, new_cache(student.config)
    student.model(tokens(1, 30), past_key_values=cache, use_cache=True)
    in_all = 0
    for layer in config.layers_of_type("linear_attention"):
        held = cache.layers[layer]
        found = {"recurrent": held.recurrent_states[0], "conv": held.conv_states[0]}
        found |= {name: held.recurrent_states.get(number) for name, number in RING.items()}
        found = {name: (tuple(x.shape[1:]), x.dtype) for name, x in found.items() if x is not None}
        states = layer_states(config, layer, torch.bfloat16)
        assert {state.name: (state.shape, state.dtype) for state in states} == found
        # The count of a window's tokens is a position in vLLM.
        in_all += sum(state.bytes for state in states) + COUNT * (RING_COUNT in held.recurrent_states)
    assert in_all == expected_cache_bytes(config, 0, 1, 2)


def test_all_layers_get_what_any_of_them_needs():
    config = make_student(**VARIANTS["qwen2-window-mixed"]).config
    names = [[state.name for state in layer_states(config, layer, torch.float32)] for layer in (0, 3)]
    assert names == [["ring_keys", "ring_values"], ["recurrent", "conv", "ring_keys", "ring_values"]]
    assert {state.name for state in student_states(config, torch.float32)} == set(names[1])


@pytest.mark.parametrize(("ranks", "key_heads"), [(2, 1), (4, 1)])
def test_a_rank_keeps_its_heads(ranks, key_heads):
    config = make_student(**VARIANTS["qwen3-kda-beside-window"]).config
    shapes = {state.name: state.shape for state in layer_states(config, 0, torch.float32, ranks)}
    heads = 4 // ranks
    ring = (key_heads, config.sinks + config.window + 1, 16)
    conv = ((heads + 2 * key_heads) * 16, 4)
    assert shapes == {"recurrent": (heads, 16, 16), "conv": conv, "ring_keys": ring, "ring_values": ring}


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[40], [7, 1, 1, 20, 11], [1] * 40])
@pytest.mark.parametrize(
    "variant", ["qwen2-kda-hybrid", "qwen2-window-hybrid", "qwen3-kda-beside-window", "qwen3-kda-pure-share-by-token"]
)
def test_pieces_through_blocks_are_one_pass(variant, pieces):
    """As vLLM has it: states are read from a block, and what the layer makes of them is written back."""
    student = make_student(**VARIANTS[variant]).double()
    config, layer = student.config, student.model.layers[0].linear_attn
    layer.layer_idx = 0
    x = torch.randn(3, 40, config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rope = LlamaRotaryEmbedding(config)
    positions = torch.arange(40).expand(3, -1)
    expected, _ = layer(x, position_embeddings=rope(x, positions))
    held = {state.name: torch.zeros(3, *state.shape, dtype=torch.float64) for state in layer_states(config, 0, x.dtype)}
    outputs, start = [], 0
    for length in pieces:
        rows = slice(start, start + length)
        # A single token is told its position alone, as it is while a batch decodes.
        known = None if length == 1 else start
        cache = cache_of({name: x.clone() for name, x in held.items()}, positions[:, start].clone(), known)
        part, _ = layer(x[:, rows], position_embeddings=rope(x, positions[:, rows]), past_key_values=cache)
        outputs.append(part)
        new = states_of(cache)
        assert new.keys() == held.keys()
        for name, state in new.items():
            if length == 1 and name in RING:  # nothing but the token's own place has changed
                place = ring_places(positions[:, start], config.window, config.sinks)
                held[name][range(3), :, place] = state[range(3), :, place]
                assert torch.equal(held[name], state)
            held[name] = state
        start += length
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=0, atol=1e-4)
