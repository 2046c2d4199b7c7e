"""Attention functions of our own, registered with transformers, and the one way to switch a model to another.

`packed` is for training on CUDA: a variable-length kernel, without a [T, T] mask and without work across the boundaries
of documents. transformers hands a function of this kind no mask, so it fits batches without padding only: packed
sequences, told apart by `documents`, or sequences that are one document each. `slots` is for the decoding loop, whose
caches hold the token at position p at place p.

Shapes: B sequences, H query heads, G key heads, T tokens, D channels of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gendistill.ops import Documents
from gendistill.ops.causal import causal_attention
from gendistill.ops.decode_attention import decode_attention
from gendistill.ops.window import VARLEN_OPTIONS

PACKED, SLOTS = "gendistill_packed", "gendistill_slots"


@contextmanager
def attention_switched_to(name: str, *models: PreTrainedModel) -> Iterator[None]:
    """Inside the block the models attend by the function of that name.

    Args:
        name: one that transformers knows ("eager" is the only one with weights to show), PACKED or SLOTS. With
            PACKED, forward passes need `documents` if sequences are packed.
    """
    # transformers' layers look the name up there in every forward pass.
    configs = [model.config.get_text_config() for model in models]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        for config, own in zip(configs, before, strict=True):  # also after an error: others use the models later
            config._attn_implementation = own


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    documents: Documents | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document: query [B, H, T, D], key and value [B, G, T, D] -> [B, T, H, D]."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    # The kernel knows neither float32 nor dropout, and has the usual scaling built in.
    if documents is None or dropout or not half or scaling != query.shape[-1] ** -0.5:
        return sdpa_attention_forward(
            module, query, key, value, _mask(documents), dropout=dropout, scaling=scaling, is_causal=documents is None
        )
    batch, _, length, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [B * T, H or G, D]
    boundaries = documents.cu_seqlens.int()  # [documents + 1]; the kernel takes no int64
    # A window of -1 to the left and 0 to the right: all earlier tokens and none later.
    out = varlen_attn(q, k, v, boundaries, boundaries, length, length, window_size=(-1, 0), **VARLEN_OPTIONS)
    return out.unflatten(0, (batch, length)), None


def _mask(documents: Documents | None) -> torch.Tensor | None:
    """[B, 1, T, T]: same document and not later."""
    if documents is None:
        return None
    document = documents.starts.cumsum(1)  # [B, T], 1 for a row's first document, 2 for its second
    return (document[:, :, None] == document[:, None, :]).tril()[:, None]


def slot_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_,
) -> tuple[torch.Tensor, None]:
    """Attention to what a `SlotCache` holds: query [B, H, T, D], key and value [B, G, S, D] -> [B, T, H, D].

    Args:
        attention_mask: None: the queries are those of the last T places; [B]: there is one query, which sees so many
            places; [B, 1, T, S]: the places that each query sees.
    """
    if attention_mask is None:
        return causal_attention(query, key, value, scaling).transpose(1, 2), None
    if attention_mask.dim() == 1:
        return decode_attention(query[:, :, 0], key, value, attention_mask, scaling)[:, None], None
    # The heads that share a key become more queries of it: no key or value is copied for each of them.
    groups, shared = key.shape[1], query.shape[1] // key.shape[1]
    rows = query.unflatten(1, (groups, shared)).flatten(2, 3)  # [B, G, H / G * T, D]
    mask = attention_mask.repeat(1, 1, shared, 1)  # [B, 1, H / G * T, S]
    o = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return o.unflatten(2, (shared, -1)).flatten(1, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
ALL_ATTENTION_FUNCTIONS.register(SLOTS, slot_attention)
