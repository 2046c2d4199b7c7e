"""Tensor parallelism over heads: the part of a linear layer that one of several GPUs holds.

Heads do not meet before the output projection. So a rank's part is a layer like any other with fewer heads, and what
the ranks' layers put out adds up to the whole layer's output.
"""

import copy

import torch

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.names import MIXERS

# The dimension of a tensor that is laid out head by head, by the parameter's name in a linear layer; of the others
# every rank has all.
HEADS_ALONG = {
    **dict.fromkeys("q_proj k_proj v_proj q_conv1d k_conv1d v_conv1d f_b_proj a_proj b_proj g_b_proj".split(), 0),
    **dict.fromkeys(("A_log", "dt_bias", "window_logit", "share_proj"), 0),
    "o_proj": 1,
}
WHOLE = ("f_a_proj", "g_a_proj", "o_norm", "q_norm", "k_norm")
OF_KEY_HEADS = ("k_proj", "v_proj", "k_conv1d", "v_conv1d")


def layer_of_rank(config: GendistillConfig, layer: int, ranks: int) -> GendistillConfig:
    """The configuration of one layer by itself, with the heads that one of so many ranks has.

    Raises:
        UserError: the heads cannot be shared out.
    """
    check_heads(config, ranks)
    local = copy.deepcopy(config)
    local.num_hidden_layers = 1
    local.layer_types, local.mixers = [config.layer_types[layer]], [config.mixers[layer]]
    local.num_attention_heads = config.num_attention_heads // ranks
    local.num_key_value_heads = max(1, config.num_key_value_heads // ranks)
    local._attn_implementation = "sdpa"  # of prompts that a window sees whole
    return local


def check_heads(config: GendistillConfig, ranks: int) -> None:
    """Raises UserError if so many ranks cannot have the same number of heads each, or heads are not alike."""
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    fits = heads % ranks == 0 and (key_heads % ranks == 0 or ranks % key_heads == 0)
    if not fits:
        most = max(heads, key_heads)
        allowed = [n for n in range(1, most + 1) if heads % n == 0 and (key_heads % n == 0 or n % key_heads == 0)]
        raise UserError(
            f"{heads} heads with {key_heads} key heads cannot be shared out among {ranks} GPUs; "
            f"--tensor-parallel-size can be {', '.join(map(str, allowed))}"
        )
    # A decay that is fixed follows from a head's number among all heads, which a rank's layer does not know.
    fixed = {name for name in config.mixers if name is not None and getattr(MIXERS[name], "decay", None) == "fixed"}
    if ranks > 1 and fixed:
        raise UserError(
            f"mixer {', '.join(sorted(fixed))} has a fixed decay for each head, and cannot be shared out among {ranks} "
            "GPUs; serve this student with --tensor-parallel-size 1"
        )


def share_of(name: str, tensor: torch.Tensor, config: GendistillConfig, rank: int, ranks: int) -> torch.Tensor:
    """A rank's part of a linear layer's tensor; `name` is the parameter's in that layer ("k_proj.weight").

    Raises:
        ValueError: it is not known how the parameter is laid out.
    """
    module, _, kind = name.partition(".")
    if name == "o_proj.bias":  # added once, where the ranks' outputs are added up
        return tensor if rank == 0 else torch.zeros_like(tensor)
    if module in WHOLE:
        return tensor
    if module not in HEADS_ALONG:
        raise ValueError(f"no layout is known of {name}; known: {', '.join([*HEADS_ALONG, *WHOLE])}")
    shares, index = ranks, rank
    if module in OF_KEY_HEADS and not config.expand_kv and config.num_key_value_heads < ranks:
        # Several ranks' queries share a key head, which each of these ranks holds.
        shares, index = config.num_key_value_heads, rank * config.num_key_value_heads // ranks
    return tensor.chunk(shares, dim=HEADS_ALONG[module])[index]
