"""What windows keep for the backward pass is what autograd saves, and `plan` tells what they spare of the cache."""

from functools import partial

import pytest
import torch
from transformers import Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gendistill.compute import Compute
from gendistill.models.cost import layer_keeps
from gendistill.models.families import student_config
from gendistill.models.modeling import GendistillDecoderLayer
from gendistill.plan.price import Planner
from small_models import FAMILIES

LENGTH = 1024
SHAPE = dict(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
    vocab_size=97,
)
TEACHERS = {"qwen3": Qwen3Config(**SHAPE, head_dim=64), "qwen2": Qwen2Config(**SHAPE)}
ON_CPU = Compute("cpu", torch.float32, compiled=False, kernels=False)


def saved_bytes(config, compiled: bool, with_mlp: bool) -> float:
    """Bytes a token that autograd saves of the second layer's forward pass, weights not counted."""
    torch.manual_seed(0)
    layer = GendistillDecoderLayer(config, 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    saved = {}  # by address, with the tensors: none may be freed, and its address taken by another

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    hidden = torch.randn(1, LENGTH, config.hidden_size, requires_grad=True)
    given = dict(position_embeddings=LlamaRotaryEmbedding(config=config)(hidden, torch.arange(LENGTH)[None]))
    run = partial(layer, **given) if with_mlp else lambda x: layer.linear_attn(layer.input_layernorm(x), **given)[0]
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(run, backend="aot_eager_decomp_partition")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(hidden)
    return sum(size for size, _ in saved.values()) / LENGTH


@pytest.mark.parametrize("family", TEACHERS)
@pytest.mark.parametrize(("window", "compiled"), [(16, False), (64, False), (256, False), (64, True)])
def test_a_window_keeps_what_is_planned(family, window, compiled):
    config = student_config(TEACHERS[family], [0], mixer="window", window=window)
    for with_mlp in (False, True):
        planned = layer_keeps(config, "window", 4, kernels=False, compiled=compiled, with_mlp=with_mlp)
        assert planned == pytest.approx(saved_bytes(config, compiled, with_mlp), rel=0.15)


@pytest.mark.parametrize("mixer", ["kda", "mamba2"])
@pytest.mark.parametrize("beside", [dict(window=64), dict(window=256), dict(window=64, window_share="token")])
def test_a_window_beside_a_recurrence_adds_what_is_planned(mixer, beside):
    pair = [student_config(TEACHERS["qwen3"], [0], mixer=mixer, **options) for options in ({}, beside)]
    planned = [layer_keeps(c, mixer, 4, kernels=False, compiled=False, with_mlp=False) for c in pair]
    saved = [saved_bytes(c, compiled=False, with_mlp=False) for c in pair]
    assert planned[1] - planned[0] == pytest.approx(saved[1] - saved[0], rel=0.15)


def test_the_cache_is_told_at_two_lengths():
    """Of 4 layers, 3 have no more than 6 + 2 tokens, one for padding and a count; a token takes 2 * 32 numbers."""
    config = student_config(FAMILIES["qwen3"], [1], mixer="window", window=6, sinks=2)
    caches = Planner(FAMILIES["qwen3"], config, ON_CPU).caches()
    token = 2 * 32 * 4
    for tokens in (32_768, 131_072):
        assert caches[tokens].teacher == 4 * tokens * token
        assert caches[tokens].student == tokens * token + 3 * (9 * token + 8)
        assert caches[tokens].saving == pytest.approx(0.75, abs=1e-3)
