"""The least time that bytes and operations allow, worked out from a model's shape.

A decoding step reads every weight once, of the embedding only the rows that it needs, the keys and values of all tokens
and every state, which it writes as well. Prefill does two operations for each weight and token, and attention's.
"""

from torch import nn
from transformers import PreTrainedModel

from gendistill.bench.machine import Rates
from gendistill.models.configuration import GendistillConfig
from gendistill.models.cost import attention_flops, expected_cache_bytes, mixing_flops


def step_bytes(model: PreTrainedModel, tokens: int, batch: int) -> int:
    """Bytes that one decoding step must read and write at a context of `tokens`."""
    size = model.dtype.itemsize
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is not embedding:  # a tied one is read as the head
        weights -= embedding.numel() * embedding.element_size()
    # Keys, values and states are read; new keys and values are too few to count.
    kept = expected_cache_bytes(model.config, tokens, batch, size)
    written = 0
    if isinstance(model.config, GendistillConfig):  # states of linear layers are written, too
        state = model.config.num_attention_heads * model.config.head_dim**2 * 4
        written = batch * len(model.config.linear_layers) * state
    return weights + kept + written


def prefill_operations(model: PreTrainedModel, tokens: int, batch: int) -> int:
    """Operations of a prefill of `batch` prompts of `tokens` tokens; logits of the last token only."""
    # Without the head: logits are made of the last token only.
    body = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, nn.Linear))
    config = model.config
    if isinstance(config, GendistillConfig):
        mixing = sum(mixing_flops(config, mixer, tokens) for mixer in config.mixers)
    else:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # The same shape as a student's, of which only the heads count.
        heads = GendistillConfig(num_attention_heads=config.num_attention_heads, head_dim=width)
        mixing = config.num_hidden_layers * attention_flops(heads, tokens)
    return batch * tokens * (2 * body + mixing)


def shortest_step(model: PreTrainedModel, tokens: int, batch: int, rates: Rates) -> float:
    """Seconds of a decoding step at the speed of memory."""
    return step_bytes(model, tokens, batch) / rates.copy


def shortest_prefill(model: PreTrainedModel, tokens: int, batch: int, rates: Rates) -> float:
    """Seconds of a prefill at the speed of a large product, or of reading the weights if that takes longer."""
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    return max(prefill_operations(model, tokens, batch) / rates.product, weights / rates.copy)
