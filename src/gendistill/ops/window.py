"""Softmax attention over a window: each token sees the last `window` tokens, itself among them, and the first `sinks`
tokens of its document (Xiao et al., StreamingLLM, arXiv 2309.17453), all at the positions that the model gave them.

In blocks: a block of queries meets the keys of the window before it, its own, and the sinks. So time and memory grow
with the number of tokens, not with its square. On CUDA, where nothing has to go backward, a flash kernel with a window
does the same and the sinks are added by their log-sum-exp.

Shapes: B sequences, T tokens, H query heads, G key heads, D channels of a head, W the window, S sinks, N blocks.
"""

import inspect
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from gendistill.ops.dispatch import takes_kernels
from gendistill.ops.documents import Documents
from gendistill.ops.window_kernels import add_sinks

# Of what a token adds to the logit of a recurrence's share. A step of AdamW moves each of some thousand weights by its
# learning rate: unscaled the logit would leap by several in one step, where the head's own moves by a third.
TOKEN_SCALE = 0.1
ALIGNED = 16  # fused attention copies a mask whose last dimension is no multiple of this
# Newer versions of torch want to be told that key heads may be fewer; older ones just take them.
VARLEN_OPTIONS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


class Past(NamedTuple):
    """What earlier calls left of each sequence.

    Attributes:
        keys, values: [B, G, S + W, D]: of the first S tokens, then of the last W, the newest at the end.
        count: [B] int64, tokens so far. Of fewer than S or W tokens the places before them hold anything.
        equal_count: `count` where it is the same for all sequences and known without asking the device.
    """

    keys: torch.Tensor
    values: torch.Tensor
    count: torch.Tensor
    equal_count: int | None


def share_beside(
    logit: torch.Tensor, raw: torch.Tensor | None, position: torch.Tensor, seen_whole: int
) -> torch.Tensor:
    """The share of a recurrence beside a window; the rest is the window's.

    Args:
        logit: [H], of the share.
        raw: [..., H], what the tokens add to it, before its scale; None for nothing.
        position: [...], of the tokens in their documents.
        seen_whole: first tokens of a document, at which the recurrence has no share: there the window says what the
            teacher would, and a recurrence would disturb.

    Returns:
        [..., H].
    """
    if raw is not None:
        logit = logit + TOKEN_SCALE * raw.float()
    # Not the window's: bfloat16 rounds 0.9997 to 1, and nothing would reach the recurrence.
    return torch.where((position < seen_whole)[..., None], 0.0, logit.sigmoid())


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int,
    sinks: int,
    scale: float,
    documents: Documents | None = None,
    past: Past | None = None,
) -> torch.Tensor:
    """Causal attention over the last `window` tokens and the document's first `sinks`.

    Tokens that follow a sequence's last are padding: they change nothing before them.

    Args:
        q, k, v: [B, H, T, D], [B, G, T, D], [B, G, T, D], RoPE applied.
        window: tokens, at least 1; the query's own is one of them.
        sinks: tokens, at most `window`.
        documents: boundaries of packed documents; not together with `past`.
        past: of earlier calls, which the T tokens follow.

    Returns:
        [B, T, H, D].
    """
    if _flash_can(q, k, v, documents, past):
        return _by_flash(q, k, v, window, sinks, scale, past)
    return _in_blocks(q, k, v, window, sinks, scale, documents, past)


def _in_blocks(q, k, v, window: int, sinks: int, scale: float, documents, past: Past | None) -> torch.Tensor:
    batch, heads, length, _ = q.shape
    if past is None:  # no more than the text: each block copies the keys of a whole window
        window = min(window, length)
    block = min(window, length)
    blocks = -(-length // block)
    behind = (0, 0, 0, blocks * block - length)  # the last block is filled up with zeros
    queries = F.pad(q, behind).unflatten(2, (blocks, block)).transpose(1, 2)  # [B, N, H, block, D]
    near, far = _visible(window, sinks, block, blocks, length, documents, past, q.device)
    mask = torch.cat([far, near], dim=-1)  # [B or 1, N, block, S + W + block]
    filling = filling_before(mask.shape[-1], sinks)
    mask = F.pad(mask, (filling, 0)).expand(batch, -1, -1, -1)
    groups = heads // k.shape[1]
    columns = []
    for new, old in ((k, past and past.keys), (v, past and past.values)):
        first = _first_tokens(new, old, sinks, block, blocks, documents, past)  # [B, N, G, S, D]
        stream = F.pad(new, behind)
        before = F.pad(new[:, :, :0], (0, 0, 0, window)) if old is None else old[:, :, sinks:]  # [B, G, W, D]
        stream = torch.cat([before, stream], dim=2).unfold(2, window + block, block)  # [B, G, N, D, W + block]
        parts = torch.cat([F.pad(first, (0, 0, filling, 0)), stream.permute(0, 2, 1, 4, 3)], dim=3)
        columns.append(parts.repeat_interleave(groups, dim=2).flatten(0, 1))  # [B * N, H, S + W + block, D]
    o = F.scaled_dot_product_attention(
        queries.flatten(0, 1), *columns, attn_mask=mask.flatten(0, 1)[:, None], scale=scale
    )  # [B * N, H, block, D]
    return o.unflatten(0, (batch, blocks)).transpose(2, 3).flatten(1, 2)[:, :length]


def filling_before(keys: int, sinks: int) -> int:
    """Places that nobody sees before the keys that a block meets."""
    # Without sinks some in any case: keys that are a mere view of the text come out wrong where torch 2.11 compiles the
    # attention together with the recurrence beside it, for gradients.
    return -keys % ALIGNED or (0 if sinks else ALIGNED)


def _visible(
    window: int, sinks: int, block: int, blocks: int, length: int, documents, past: Past | None, device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which keys each query of a block sees: [B or 1, N, block, W + block] of those near it, [..., S] of the sinks.

    Near are the keys of the block and of the window before it. A sink that is among them is seen there.
    """
    start = torch.arange(blocks, device=device)[:, None] * block  # [N, 1], the block's first token
    query = start + torch.arange(block, device=device)  # [N, block]
    key = start + torch.arange(-window, block, device=device)  # [N, W + block]; below 0: of earlier calls
    age = query[:, :, None] - key[:, None, :]  # [N, block, W + block]
    sink = torch.arange(sinks, device=device)  # [S]
    if documents is None:
        count = torch.zeros(1, dtype=torch.long, device=device) if past is None else past.count
        count = count[:, None, None]  # [B or 1, 1, 1]
        position = count + key  # [B or 1, N, W + block]; below 0: there is no such token
        near = (age >= 0) & (position >= 0)[:, :, None] & ((age < window) | (position < sinks)[:, :, None])
        # A sink's place among the keys, told as theirs are; it is seen apart if it lies before all of them.
        far = (sink - count < start - window)[:, :, None]  # [B or 1, N, 1, S]
        return near, far.expand(-1, -1, block, -1)
    behind = blocks * block - length
    document = documents.starts.cumsum(1)  # [B, T], from 1 on
    # Padding behind the last token belongs to its document; keys before the first token to none. Cut into views, and
    # not looked up: torch 2.11 cannot compile an index that is clamped and stands behind others.
    document = torch.cat([document, document[:, -1:].expand(-1, behind)], dim=1)
    of_query = document.unflatten(1, (blocks, block))  # [B, N, block]
    of_key = F.pad(document, (window, 0)).unfold(1, window + block, block)  # [B, N, W + block]
    is_sink = F.pad(documents.positions, (window, behind), value=sinks).unfold(1, window + block, block) < sinks
    same = of_query[..., None] == of_key[:, :, None]
    near = same & (age >= 0) & ((age < window) | is_sink[:, :, None])
    first = start - documents.positions[:, ::block, None]  # [B, N, 1], of the document that the block begins in
    far = (first + sink < start - window)[:, :, None] & (of_query == of_query[..., :1])[..., None]  # [B, N, block, S]
    return near, far


def _first_tokens(new, old, sinks: int, block: int, blocks: int, documents, past: Past | None) -> torch.Tensor:
    """[B, G, T, D] and [B, G, S + W, D] -> [B, N, G, S, D]: keys (or values) of the sinks of each block's queries."""
    batch, groups, length, width = new.shape
    sink = torch.arange(sinks, device=new.device)  # [S]
    if documents is not None:
        start = torch.arange(blocks, device=new.device) * block  # [N]
        index = (start - documents.positions[:, ::block])[..., None] + sink  # [B, N, S]
        index = index.clamp(max=length - 1).flatten(1)[:, None, :, None]  # [B, 1, N * S, 1]
        picked = new.gather(2, index.expand(-1, groups, -1, width))  # [B, G, N * S, D]
        return picked.unflatten(2, (blocks, sinks)).transpose(1, 2)
    if past is None:
        picked = F.pad(new[:, :, :sinks], (0, 0, 0, max(0, sinks - length)))  # [B, G, S, D]
    else:
        index = (sink - past.count[:, None]).clamp(0, length - 1)  # [B, S], among the new tokens
        of_new = new.gather(2, index[:, None, :, None].expand(-1, groups, -1, width))
        known = (sink < past.count[:, None])[:, None, :, None]  # [B, 1, S, 1]
        picked = torch.where(known, old[:, :, :sinks], of_new)
    return picked[:, None].expand(-1, blocks, -1, -1, -1)


def _flash_can(q, k, v, documents, past: Past | None) -> bool:
    """Whether the flash kernel can be used: it goes backward without its log-sum-exp, and knows whole tensors only."""
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    half = q.dtype in (torch.bfloat16, torch.float16)
    known = past is None or past.equal_count is not None
    return takes_kernels(q) and half and known and documents is None and not needs_grad


def _by_flash(q, k, v, window: int, sinks: int, scale: float, past: Past | None) -> torch.Tensor:
    batch, heads, length, width = q.shape
    count = 0 if past is None else past.equal_count
    seen = min(count, window)  # tokens of the past that a window can hold
    first_k, first_v = (x[:, :, :sinks] for x in (k, v))
    if past is not None:
        first_k, first_v = (
            _first_tokens(new, old, sinks, 1, 1, None, past)[:, 0] for new, old in ((k, past.keys), (v, past.values))
        )
        end = past.keys.shape[2]
        k, v = (torch.cat([old[:, :, end - seen :], new], dim=2) for old, new in ((past.keys, k), (past.values, v)))
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # [B * T, H, D], [B * (seen + T), G, D]
    ends = [torch.arange(batch + 1, device=q.device, dtype=torch.int32) * size for size in (length, seen + length)]
    o, lse = varlen_attn(
        *flat, *ends, length, seen + length,
        return_aux=AuxRequest(lse=True), scale=scale, window_size=(window - 1, 0), **VARLEN_OPTIONS,
    )  # fmt: skip
    o = o.unflatten(0, (batch, length)).contiguous()  # [B, T, H, D]
    if sinks and count + length > window:  # else every window holds every sink
        add_sinks(q, o, lse, first_k, first_v, count, window, scale)
    return o
