"""What a model costs: bytes that a token keeps in training, floating-point operations, bytes of the cache."""

from collections.abc import Iterator

import torch

from gendistill.models.configuration import GendistillConfig
from gendistill.models.mixers import MIXERS
from gendistill.ops.bounded_kda import takes_bounded_kda

FLOAT32 = 4
RECURRENCE_CHUNK = 64  # tokens that meet each other in matrix products, in fla and in ops.chunked


def mixer_keeps(config: GendistillConfig, mixer: str, size: int, kernels: bool) -> dict[str, float]:
    """Bytes a token that autograd keeps of a mixer and the norm before it, compiled.

    Args:
        size: bytes of a number of the arithmetic.
        kernels: the recurrence runs by kernels.
    """
    kind, hidden, heads = MIXERS[mixer], config.hidden_size, config.num_attention_heads
    queries, head = heads * config.head_dim, config.head_dim
    keys = queries if config.expand_kv else config.num_key_value_heads * head
    decays = {"channel": queries, "head": heads, "fixed": 0}[kind.decay]
    meetings = heads * RECURRENCE_CHUNK  # of a token with those of its chunk
    if kernels and mixer == "kda" and config.gates_are_bounded and takes_bounded_kda(size, head):
        recurrence = {
            "q, k of all heads and what is written": 3 * queries * size,
            "q, k decayed and what is read": 3 * queries * size,
            "states before chunks": queries * head / RECURRENCE_CHUNK * size,
        }
    else:
        recurrence = {
            "q, k, v of all heads": 3 * queries * size,  # k and v are repeated
            "log decay": decays * FLOAT32,  # fla keeps it as given
        }
    return recurrence | {
        "the norm's input": hidden * size,  # the layer's; the norm's gradient needs it
        "the normed input": hidden * size,  # for the gradients of the projections' weights
        "q, k, v projected": (queries + 2 * keys) * size,  # before the convolution, for its weights
        "raw decay": decays * size,  # before softplus or sigmoid, for its slope
        "log decay summed": decays * FLOAT32,  # within its chunk
        "beta": heads * FLOAT32 * kind.delta_rule,
        "products in the chunk": meetings * size * (2 if kind.delta_rule else 1),  # Aqk, and for the delta rule Akk
        "the recurrence's output": queries * size,  # for the output norm and the gate
        "gate": queries * size,  # before its activation
        "gated output": queries * size,  # for the output projection's weights
        "low-rank gate and decay": head * size * (2 if kind.decay == "channel" else 1),  # between their two projections
    }


def attention_keeps(config: GendistillConfig, size: int) -> dict[str, float]:
    """Bytes a token that autograd keeps of softmax attention and the norm before it, without its [T, T] scores."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    queries, keys = heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "the norm's input": hidden * size,
        "the normed input": hidden * size,
        "q, k before their norms": (queries + keys) * size * config.qk_norm,
        "q, k, v attended": (queries + 2 * keys) * size,
        "attention's output": queries * size,  # for the softmax's gradient and the output projection's weights
        "logsumexp": heads * FLOAT32,
    }


def mlp_keeps(config: GendistillConfig, size: int) -> dict[str, float]:
    """Bytes a token that autograd keeps of an MLP and the norm before it."""
    return {
        "the norm's input": config.hidden_size * size,
        "the normed input": config.hidden_size * size,
        "gate": config.intermediate_size * size,  # for the activation's slope and the gradient of `up`
        "up": config.intermediate_size * size,  # for the gradient of `gate`
        "gate times up": config.intermediate_size * size,  # for the weights of the projection down
    }


def weights_of_products(modules, trained: bool = False) -> Iterator[int]:
    """Weights of the linear projections in the modules; of those that train only, if wanted."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, torch.nn.Linear) and (part.weight.requires_grad or not trained):
                yield part.weight.numel()
