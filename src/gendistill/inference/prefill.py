"""Prefill: prompts of unequal length in one pass, in pieces, behind a prefix that all of them share.

Padding stands behind a prompt's tokens, so that the token at position p lies at place p of every cache: causal
attention needs no mask, and the next token of a row is written over its padding.

Shapes: B prompts of a batch, P tokens of the prefix, T tokens of the longest prompt behind it, S places of a cache, V
vocabulary.
"""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from gendistill.inference.packed import Packed, packed
from gendistill.inference.prefill_graph import graphed_prefill
from gendistill.inference.prefill_pass import PrefillPass
from gendistill.inference.rows import padded_rows
from gendistill.models.attention import SLOTS, attention_switched_to
from gendistill.models.cache import SlotCache, beside, select_rows
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.models.padding import Padding
from gendistill.models.view import as_student

SHORTEST_PREFIX = 32  # tokens; prefilling fewer anew costs less than copying their cache
# Tokens of all rows that one pass takes. More make it no faster, and activations grow with it.
TOKENS_OF_A_PIECE = {"cuda": 2**14, "cpu": 2**12}
SHORTEST_PIECE = 128  # tokens of a row: below, a pass with many rows gains nothing from being cut


class Prefix:
    """The prefix cache: what a model keeps of the P tokens that all prompts begin with."""

    def __init__(self, model: PreTrainedModel, ids: list[int]):
        self.length = len(ids)
        self.cache = prefill(model, [ids], None).cache

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: Sequence[list[int]]) -> "Prefix | None":
        """None if the prompts share too little, or the model is none that keeps it. Behind it each has a token left."""
        if len(prompts) < 2 or as_student(model) is None:
            return None
        # A prompt that is all prefix would leave nothing to prefill, and so no logits to decode from.
        shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
        return cls(model, prompts[0][:shared]) if shared >= SHORTEST_PREFIX else None


@dataclass
class Prefilled:
    """Prompts after prefill.

    Attributes:
        logits: [B, V], of the next token.
        lengths: [B] int64, tokens of each prompt.
        cache: None if the model is none of ours: then nothing is kept but the prompts.
        prompts: ids of each.
    """

    logits: torch.Tensor
    lengths: torch.Tensor
    cache: SlotCache | None
    prompts: list[list[int]]


def prefill(
    model: PreTrainedModel, prompts: Sequence[list[int]], prefix: Prefix | None, room: int | None = None
) -> Prefilled:
    """Runs prompts of unequal length through the model at once.

    Args:
        room: places S of the cache, for the prompts and what is to follow; None: for the prompts alone.
    """
    prompts = list(prompts)
    width = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)  # [B]
    student = as_student(model)
    room = room or width
    # Before the ids are put together: a graph has a place of its own for them.
    weights = None if student is None else packed(student)
    if weights is not None and prefix is None and (made := graphed_prefill(student, weights, prompts, room)):
        logits, cache = made
        cache.start = lengths
        return Prefilled(logits, lengths, cache, prompts)
    ids = padded_rows(prompts, width).to(model.device)  # [B, P + T]
    if student is None:
        logits = model(input_ids=ids, use_cache=False).logits  # [B, T, V]
        last = logits[torch.arange(len(prompts), device=ids.device), lengths - 1]
        return Prefilled(last, lengths, None, prompts)
    if prefix is None:
        start, cache = 0, SlotCache(student.config, room)
    else:
        # Every prompt gets a copy of the prefix cache, as decoding writes behind it.
        start, cache = prefix.length, select_rows(prefix.cache, [0] * len(prompts))
        cache.resize(room)
    return Prefilled(_run(student, weights, ids, lengths, start, cache), lengths, cache, prompts)


def _run(
    student: GendistillForCausalLM,
    weights: Packed | None,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    start: int,
    cache: SlotCache,
) -> torch.Tensor:
    """[B, V] logits behind each row's last token; the tokens ids [B, P + T] go into the cache from `start` on."""
    batch, width = ids.shape
    # Columns of a piece: all rows go together.
    size = max(SHORTEST_PIECE, TOKENS_OF_A_PIECE[ids.device.type] // batch)
    equal = bool((lengths == width).all())
    states = None  # [B, hidden], of each row's last token
    run = partial(_forward, student, cache) if weights is None else PrefillPass(student, cache, weights)
    for first in range(start, width, size):
        index = torch.arange(first, min(first + size, width), device=ids.device)
        padding = None if equal else Padding(index < lengths[:, None])
        hidden = run(ids[:, first : first + size], first, padding)  # [B, piece, hidden]
        last = (lengths - 1 - first).clamp(0, len(index) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        found = hidden.gather(1, last)[:, 0]
        states = found if states is None else torch.where((lengths > first)[:, None], found, states)
    cache.start = lengths
    return student.lm_head(student.model.norm(states))


def _forward(
    student: GendistillForCausalLM, cache: SlotCache, ids: torch.Tensor, start: int, padding: Padding | None
) -> torch.Tensor:
    """What `PrefillPass` does, by the model's own layers, whatever its modules are."""
    states = []
    hook = student.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    cache.start = start
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    try:
        with attention_switched_to(SLOTS, student):
            student.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask={"full_attention": None, "linear_attention": padding},
                past_key_values=cache,
                use_cache=True,
            )
    finally:
        hook.remove()
    return states[0]


def extend(model: PreTrainedModel, prefilled: Prefilled, rows: Sequence[int], ids: list[list[int]]) -> torch.Tensor:
    """Logits [len(rows), longest, V] at tokens that follow prefilled prompts; `ids[i]` follow prompt `rows[i]`.

    A prompt may be extended any number of times; its cache stays as it is, but for what lies behind its tokens. Nothing
    is copied if rows are neighbours, each once, and the prefill has left room.

    Args:
        ids: tokens of unequal length; logits behind the last of each are of no use.
    """
    width = max(map(len, ids))
    device = model.device
    # Padding stands behind: whatever it is, no token before it sees it.
    tokens = padded_rows(ids, width).to(device)  # [rows, longest]
    if prefilled.cache is None:
        return _extended_anew(model, prefilled, rows, tokens)
    student = as_student(model)
    start = prefilled.lengths[torch.tensor(rows, device=device)]  # [rows]
    cache = beside(prefilled.cache, rows)
    room = max(cache.room, int(start.max()) + width)
    cache.resize(room)
    cache.start = start
    index = torch.arange(width, device=device)
    position = start[:, None] + index  # [rows, longest]
    padding = Padding(index < torch.tensor([[len(own)] for own in ids], device=device))
    seen = torch.arange(room, device=device) <= position[:, None, :, None]  # [rows, 1, longest, S]
    with attention_switched_to(SLOTS, student):
        return student(
            input_ids=tokens,
            position_ids=position,
            attention_mask={"full_attention": seen, "linear_attention": padding},
            past_key_values=cache,
            use_cache=True,
        ).logits


def _extended_anew(model, prefilled: Prefilled, rows: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """The same for a model of which nothing is kept: prompts and tokens once more."""
    width = tokens.shape[1]
    whole = [prefilled.prompts[row] + own for row, own in zip(rows, tokens.tolist(), strict=True)]
    longest = max(map(len, whole))
    ids = padded_rows(whole, longest).to(tokens.device)
    logits = model(input_ids=ids, use_cache=False).logits  # [rows, longest prompt + longest, V]
    start = torch.tensor([len(own) - width for own in whole], device=tokens.device)
    index = start[:, None] + torch.arange(width, device=tokens.device)  # [rows, longest]
    return logits.gather(1, index[..., None].expand(-1, -1, logits.shape[-1]))
