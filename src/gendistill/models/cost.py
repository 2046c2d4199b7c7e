"""What a model costs: bytes that a token keeps in training, floating-point operations, bytes of the cache."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from transformers import PreTrainedConfig

from gendistill.models.configuration import GendistillConfig
from gendistill.names import MIXERS, look_up
from gendistill.ops.bounded_kda import takes_bounded_kda
from gendistill.ops.window import filling_before

FLOAT32 = 4
COUNT = 8  # bytes of an int64
RECURRENCE_CHUNK = 64  # tokens that meet each other in matrix products, in fla and in ops.chunked
# Layers that are not compiled keep the result of every operation: norms in float32, a shifted copy for each lag of the
# convolution, every step of the decay; with the recurrence in plain torch, its products at every level too. Rough:
# what autograd saved of single layers, counted on a CPU (1.6 to 1.9; 2.5 to 3.5; attention layers 1.3).
EAGER_ATTENTION, EAGER_MIXER, EAGER_CHUNKED_MIXER = 1.3, 1.9, 3.5


def layer_keeps(
    config: GendistillConfig, mixer: str | None, size: int, *, kernels: bool, compiled: bool, with_mlp: bool = True
) -> float:
    """Bytes a token that one layer keeps for its backward pass.

    Args:
        mixer: None for attention.
        size: bytes of a number of the arithmetic.
        kernels: the recurrence runs by kernels.
        with_mlp: the whole layer, not its attention or mixer alone.
    """
    beside = {}
    if mixer is None:
        kept, factor = attention_keeps(config, size), EAGER_ATTENTION
    elif mixer == "window":
        kept, factor = attention_keeps(config, size) | window_keeps(config, size), EAGER_ATTENTION
    else:
        kept, factor = mixer_keeps(config, mixer, size, kernels), EAGER_MIXER if kernels else EAGER_CHUNKED_MIXER
        beside = {} if config.window is None else window_keeps(config, size)
    whole = kept.values() if not with_mlp else [*kept.values(), *mlp_keeps(config, size).values()]
    if compiled:
        return sum(whole) + sum(beside.values())
    return sum(whole) * factor + sum(beside.values()) * EAGER_ATTENTION


def mixer_keeps(config: GendistillConfig, mixer: str, size: int, kernels: bool) -> dict[str, float]:
    """Bytes a token that autograd keeps of a mixer and the norm before it, compiled.

    Args:
        size: bytes of a number of the arithmetic.
        kernels: the recurrence runs by kernels.
    """
    kind, hidden, heads = look_up(MIXERS, mixer, "mixer"), config.hidden_size, config.num_attention_heads
    queries, head = heads * config.head_dim, config.head_dim
    keys = queries if config.expand_kv else config.num_key_value_heads * head
    decays = {"channel": queries, "head": heads, "fixed": 0}[kind.decay]
    meetings = heads * RECURRENCE_CHUNK  # of a token with those of its chunk
    bounded = kind.delta_rule and kind.decay == "channel" and config.gates_are_bounded
    if kernels and bounded and takes_bounded_kda(size, head):  # one chunk's intermediate results, and not its inputs
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
        "share": heads * (FLOAT32 + size) * (config.window_share == "token"),  # behind its sigmoid, and as it mixes
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


def window_keeps(config: GendistillConfig, size: int) -> dict[str, float]:
    """Bytes a token that autograd keeps of attention over a window, which runs in blocks (`gendistill.ops.window`).

    By the names in `attention_keeps`, in whose place they stand where nothing but a window is left.
    """
    queries = config.num_attention_heads * config.head_dim
    seen = config.sinks + 2 * config.window  # keys that a block of queries meets
    seen += filling_before(seen, config.sinks)
    # A block has keys and values of its own, of all query heads; it has as many queries as the window has tokens.
    copies = seen / config.window
    return {
        "q, k, v attended": (1 + 2 * copies) * queries * size,
        "the mask": seen * size,  # as what is added to scores
        "attention's output": queries * size,  # for the softmax's gradient, and that of the window's share
        "logsumexp": config.num_attention_heads * FLOAT32,
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


def weights_of_products(modules: Iterable[nn.Module], trained: bool = False) -> Iterator[int]:
    """Weights of the linear projections in the modules; of those that train only, if wanted."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, torch.nn.Linear) and (part.weight.requires_grad or not trained):
                yield part.weight.numel()


def attention_flops(config: GendistillConfig, length: int) -> int:
    """Floating-point operations a token of softmax attention's forward pass, without its projections."""
    return 2 * length * config.num_attention_heads * config.head_dim  # q k^T and p v over half of the tokens on average


def mixer_flops(config: GendistillConfig, mixer: str) -> int:
    """Floating-point operations a token of a recurrence's forward pass, without the mixer's projections."""
    queries, head = config.num_attention_heads * config.head_dim, config.head_dim
    # Three products with the state, and those inside a chunk, half of them empty.
    meetings = 4 if look_up(MIXERS, mixer, "mixer").delta_rule else 2
    return queries * (6 * head + meetings * RECURRENCE_CHUNK)


def mixing_flops(config: GendistillConfig, mixer: str | None, length: int) -> int:
    """Floating-point operations a token of what a layer does between its projections, forward.

    Args:
        mixer: None for attention.
    """
    if mixer is None:
        return attention_flops(config, length)
    # A window is half empty only while a sequence fits it.
    window = 0 if config.window is None else attention_flops(config, min(length, 2 * (config.window + config.sinks)))
    return window if mixer == "window" else window + mixer_flops(config, mixer)


def teacher_flops(config: GendistillConfig, layers: Iterable[nn.Module], length: int) -> int:
    """Floating-point operations a token of a forward pass through a teacher's layers."""
    return sum(weights_of_products(layers)) * 2 + len(config.mixers) * attention_flops(config, length)


def training_flops(config: GendistillConfig, mixer: str | None, unit: nn.Module, length: int) -> int:
    """Floating-point operations a token of a layer's forward and backward pass.

    A product with n weights takes 2n forward, 2n for the gradient of its input and, if it trains, 2n for its own.

    Args:
        mixer: None for attention.
        unit: the layer, or its mixer alone; parameters that train require gradients.
    """
    mixing = mixing_flops(config, mixer, length)
    return 4 * sum(weights_of_products([unit])) + 2 * sum(weights_of_products([unit], trained=True)) + 3 * mixing


def head_flops(config: GendistillConfig, *, backward: bool, trains: bool) -> int:
    """Floating-point operations a token of the language-model head."""
    products = 1 + backward + (backward and trains)  # forward, gradient of the states, gradient of the weights
    return 2 * products * config.vocab_size * config.hidden_size


def expected_cache_bytes(config: PreTrainedConfig, tokens: int, batch: int, size: int) -> int:
    """Bytes of a model's cache at a context of `tokens`; `gendistill.models.cache.cache_bytes` weighs a real one.

    Args:
        config: a student's, or a teacher's with attention in every layer.
        size: bytes of a number of the model's dtype.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = config.num_key_value_heads * head
    mixers = config.mixers if isinstance(config, GendistillConfig) else [None] * config.num_hidden_layers
    kept = sum(mixer is None for mixer in mixers)
    in_all = kept * 2 * tokens * keys * size  # keys and values of one sequence
    if kept < len(mixers):  # what does not grow with the context
        in_all += len(config.linear_layers) * mixer_state_bytes(config, size)
    if kept < len(mixers) and config.window is not None:
        in_all += (len(mixers) - kept) * ring_bytes(config, size)
    return batch * in_all


def ring_bytes(config: GendistillConfig, size: int) -> int:
    """Bytes of a window's ring buffer for one sequence: sinks, window, a place for padding, and the count."""
    keys = config.num_attention_heads if config.expand_kv else config.num_key_value_heads
    return 2 * (config.sinks + config.window + 1) * keys * config.head_dim * size + COUNT


def mixer_state_bytes(config: GendistillConfig, size: int) -> int:
    """Bytes of a linear layer's cache for one sequence, the same for every mixer."""
    queries = config.num_attention_heads * config.head_dim
    keys = queries if config.expand_kv else config.num_key_value_heads * config.head_dim
    state = queries * config.head_dim * FLOAT32  # [H, K, V]; in float32, for its errors would add up
    window = (queries + 2 * keys) * config.conv_kernel_size * size  # the convolution's last inputs
    return state + window
