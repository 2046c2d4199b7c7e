"""Whatever is put in the place of a projection, or kept elsewhere, counts: adapters, hooks, offloaded weights."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import gendistill
from small_models import VARIANTS, make_student, tokens

OF_ALL = ["q_proj", "k_proj", "v_proj", "o_proj"]
OF_KDA = [*OF_ALL, "g_a_proj", "g_b_proj", "f_a_proj", "f_b_proj", "b_proj"]
PROJECTIONS = {
    "qwen3-kda-hybrid": OF_KDA,
    "qwen2-mamba2-hybrid": [*OF_ALL, "g_a_proj", "g_b_proj", "a_proj"],
    "qwen3-window-hybrid": OF_ALL,
    "qwen3-kda-beside-window": OF_KDA,
    "qwen3-kda-pure-share-by-token": ["share_proj"],
}
CASES = [(name, projection) for name, projections in PROJECTIONS.items() for projection in projections]


class Adapter(nn.Module):
    """A projection with a low-rank addition beside it, as LoRA has it (arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)
    out_features = property(lambda self: self.base.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        merged = copy.deepcopy(self.base)
        merged.weight.data += self.up.weight @ self.down.weight
        return merged


@torch.no_grad()
@pytest.mark.parametrize(("name", "projection"), CASES)
def test_an_adapter_counts_and_merged_it_says_the_same(name, projection):
    model = make_student(**VARIANTS[name]).double()
    layer = model.model.layers[0].linear_attn
    model.generation_config.pad_token_id = 0
    ids = tokens(2, 20)
    before = model(ids).logits
    torch.manual_seed(3)
    adapter = Adapter(getattr(layer, projection)).double()
    setattr(layer, projection, adapter)
    adapted, said = model(ids).logits, gendistill.generate(model, ids, max_new_tokens=6, eos_token_id=-1)
    assert (adapted - before).abs().max() > 1e-3
    setattr(layer, projection, adapter.merged())
    torch.testing.assert_close(model(ids).logits, adapted, rtol=0, atol=1e-6)
    assert torch.equal(gendistill.generate(model, ids, max_new_tokens=6, eos_token_id=-1), said)


@torch.no_grad()
@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj", "g_a_proj", "b_proj"])
def test_hooks_of_projections_are_called(projection):
    model = make_student(**VARIANTS["qwen3-kda-hybrid"])
    called = []
    module = getattr(model.model.layers[0].linear_attn, projection)
    hook = module.register_forward_hook(lambda *_: called.append(projection))
    model(tokens(1, 5))
    gendistill.generate(model, tokens(1, 5), max_new_tokens=2, eos_token_id=-1)
    assert len(called) >= 3  # prompt, prompt and a step
    hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("name", PROJECTIONS)
def test_offloaded_weights_are_fetched(name, tmp_path):
    pytest.importorskip("accelerate")
    model = make_student(**VARIANTS[name]).float()
    model.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 2 == 0 else "cpu" for i in range(4)}
    there = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "off")
    ids = tokens(2, 20)
    torch.testing.assert_close(there(ids).logits, model(ids).logits)
