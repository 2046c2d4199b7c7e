"""A model that recalls by two layers only, weights set by hand, and prompts for it.

Layer 1 writes into each token what token stands before it, by a head whose rotary positions meet one token apart. Layer
4 looks for the token behind which the current one stood before, and predicts it: together an induction circuit (Olsson
et al. 2022, arXiv 2209.11895). The other layers attend at random and write where nobody reads.
"""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gendistill.evaluate.kinds.recall import AnsweredPrompt

KEYS, VALUES, END = range(12), range(12, 24), 24
LAYERS, PREVIOUS, MATCH = 6, 1, 4
TOKENS = 25
# Parts of the hidden state: the token itself, a constant, the token before, what is predicted, noise.
TOKEN, CONSTANT, BEFORE, PREDICTED = slice(0, 25), 25, slice(26, 51), slice(51, 76)
HIDDEN, HEAD = 96, 64
# Rotary pairs (p, p + 32): fast ones tell positions apart, slow ones hardly turn within a prompt.
FAST, SLOW = range(12), [*range(16, 32), *range(48, 64)][:TOKENS]
THETA = 1e6


def recall_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=HEAD,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    one_hot = torch.eye(TOKENS)
    model.model.embed_tokens.weight.zero_()[:, TOKEN] = one_hot
    model.model.embed_tokens.weight[:, CONSTANT] = 1
    model.lm_head.weight.zero_()[:, PREDICTED] = 4 * one_hot
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.zero_()
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.normal_(std=0.1)
        attention.o_proj.weight.normal_(std=0.02)[: PREDICTED.stop] = 0
    previous, match = model.model.layers[PREVIOUS].self_attn, model.model.layers[MATCH].self_attn
    for attention in (previous, match):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.weight.zero_()
        attention.v_proj.weight[:TOKENS, TOKEN] = 0.2 * one_hot
    for pair in FAST:
        angle = torch.tensor(-(THETA ** (-2 * pair / HEAD)))
        previous.q_proj.weight[pair, CONSTANT] = 4 * angle.cos()
        previous.q_proj.weight[pair + HEAD // 2, CONSTANT] = 4 * angle.sin()
        previous.k_proj.weight[pair, CONSTANT] = 4
    previous.o_proj.weight[BEFORE, :TOKENS] = one_hot
    match.q_proj.weight[SLOW, TOKEN] = 4 * one_hot
    match.k_proj.weight[SLOW, BEFORE] = 4 * one_hot
    match.o_proj.weight[PREDICTED, :TOKENS] = one_hot
    return model


def recall_prompts(count: int, seed: int = 0) -> list[AnsweredPrompt]:
    """Lists of keys with their values, and one of the keys again; of unequal lengths."""
    rng = random.Random(seed)
    prompts = []
    for index in range(count):
        pairs = 5 + index % 3
        keys, values = rng.sample(KEYS, pairs), rng.sample(VALUES, pairs)
        listed = [token for pair in zip(keys, values, strict=True) for token in (*pair, END)]
        asked = rng.randrange(pairs)
        prompts.append(AnsweredPrompt([END, *listed, keys[asked]], [values[asked]]))
    return prompts
