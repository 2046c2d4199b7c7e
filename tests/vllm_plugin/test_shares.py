"""Heads shared out among ranks: what the ranks' layers put out adds up to what the whole layer does."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gendistill.errors import UserError
from gendistill.models.mixers.layer import LinearAttention
from gendistill.models.mixers.window import WindowAttention
from gendistill.vllm.shares import HEADS_ALONG, WHOLE, layer_of_rank, share_of
from small_models import MIXERS, VARIANTS, WINDOW, make_student

# 4 heads with 2 key heads: more ranks than key heads, too.
CASES = {mixer: dict(family="qwen2", mixer=mixer) for mixer in MIXERS if mixer != "lightning"} | {
    "kda, all options": dict(family="qwen3", expand_kv=True, log_decay_bound=-5.0, output_norm=False),
    "window": dict(family="qwen2", mixer="window", **WINDOW),
    "beside": dict(family="qwen3", **WINDOW),
    "share by token": dict(family="qwen3", window_share="token", **WINDOW),
}


@torch.no_grad()
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_ranks_add_up_to_the_whole(case, ranks):
    student = make_student(**CASES[case]).double()
    config, layer = student.config, student.model.layers[0].linear_attn
    if layer.o_proj.bias is None:  # no family has this bias, and a configuration may
        config.attention_output_bias = True
        layer.o_proj.bias = torch.nn.Parameter(torch.randn(config.hidden_size, dtype=torch.float64))
    x = torch.randn(2, 23, config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(23)[None])
    expected, _ = layer(x, position_embeddings=positions)
    got = torch.zeros_like(expected)
    for rank in range(ranks):
        local = layer_of_rank(config, 0, ranks)
        part = (WindowAttention if case == "window" else LinearAttention)(local, 0).double()
        shares = {name: share_of(name, parameter, config, rank, ranks) for name, parameter in layer.named_parameters()}
        part.load_state_dict(shares, strict=True)
        got += part(x, position_embeddings=positions)[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_every_parameter_has_a_layout():
    names = set()
    for variant in VARIANTS.values():
        layers = make_student(**variant).model.layers
        names |= {
            name for layer in layers if not layer.keeps_attention for name, _ in layer.linear_attn.named_parameters()
        }
    modules = {name.partition(".")[0] for name in names}
    assert modules == {*HEADS_ALONG, *WHOLE}
    with pytest.raises(ValueError, match=r"no layout is known of z_proj.weight; known: q_proj"):
        share_of("z_proj.weight", torch.zeros(1), make_student("qwen2").config, 0, 1)


@pytest.mark.parametrize("ranks", [3, 8])
def test_heads_that_cannot_be_shared_out(ranks):
    with pytest.raises(UserError, match=rf"4 heads with 2 key heads .* {ranks} GPUs; .* can be 1, 2, 4$"):
        layer_of_rank(make_student("qwen2").config, 0, ranks)


def test_fixed_decays_stay_together():
    config = make_student("qwen2", mixer="lightning").config
    assert layer_of_rank(config, 0, 1).num_attention_heads == 4
    with pytest.raises(UserError, match="mixer lightning has a fixed decay .* --tensor-parallel-size 1"):
        layer_of_rank(config, 0, 2)
