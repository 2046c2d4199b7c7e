"""gendistill.generate says what the model's own generate() says."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gendistill
from gendistill.errors import UserError
from small_models import VARIANTS, make_student, make_teacher, pad_left, tokens

GREEDY = dict(do_sample=False, max_new_tokens=12, eos_token_id=1, pad_token_id=0)


@pytest.mark.parametrize("name", ["qwen2-kda-hybrid", "qwen3-window-hybrid", "qwen3-kda-beside-window", "teacher"])
def test_it_is_generate(name):
    model = (make_teacher("qwen3") if name == "teacher" else make_student(**VARIANTS[name])).double()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    ids, mask, _ = pad_left(tokens(3, 9), 4)
    mask[1, :6] = 0  # prompts of unequal length
    for _ in range(2):  # the second time on the batch that was kept
        for prompts, real in ((ids, mask), (ids[:1], mask[:1])):
            got = gendistill.generate(model, prompts, real, max_new_tokens=12)
            assert torch.equal(got, model.generate(prompts, attention_mask=real, **GREEDY))
    # A copy of the model shares nothing that was kept, and a changed weight is seen.
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.mul_(-1)
    changed = gendistill.generate(other, ids, mask, max_new_tokens=12)
    assert torch.equal(changed, other.generate(ids, attention_mask=mask, **GREEDY))
    with torch.no_grad():
        model.model.norm.weight.mul_(-1)
    assert torch.equal(gendistill.generate(model, ids, mask, max_new_tokens=12), changed)


def test_samples_depend_on_the_seed():
    model = make_teacher("qwen3")
    ids = tokens(2, 9)
    first, again, other = (
        gendistill.generate(model, ids, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_model_of_another_kind_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="not GPT2LMHeadModel; use model.generate"):
        gendistill.generate(model, tokens(1, 3))
