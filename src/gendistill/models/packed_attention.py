"""Softmax attention over packed documents by a variable-length kernel: no [T, T] mask, no work across borders.

For training on CUDA. transformers hands an attention function of this kind no mask, so it fits batches without padding
only: packed rows, told apart by `documents`, or rows that are one document each.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gendistill.ops import Documents

NAME = "gendistill_packed"
# Newer versions of torch want to be told that key heads may be fewer; older ones just take them.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


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
    if documents is None or dropout or not half or scaling != query.shape[-1] ** -0.5:
        return sdpa_attention_forward(
            module, query, key, value, _mask(documents), dropout=dropout, scaling=scaling, is_causal=documents is None
        )
    batch, _, length, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    borders = documents.cu_seqlens.int()
    out = varlen_attn(q, k, v, borders, borders, length, length, window_size=(-1, 0), **GROUPED)
    return out.unflatten(0, (batch, length)), None


def _mask(documents: Documents | None) -> torch.Tensor | None:
    """[B, 1, T, T]: same document and not later."""
    if documents is None:
        return None
    document = documents.starts.cumsum(1)
    return (document[:, :, None] == document[:, None, :]).tril()[:, None]


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)


@contextmanager
def packed_attention_in(*models: PreTrainedModel) -> Iterator[None]:
    """Inside the block the models attend this way; forward passes need `documents` if rows are packed."""
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.config._attn_implementation = NAME
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.config._attn_implementation = name
