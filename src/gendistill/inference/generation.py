"""Replies to prompts: batches that fit, greedy or sampled, by our decoding loop or transformers' generate()."""

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gendistill.errors import UserError
from gendistill.inference.decoding import Prefix, Sampling, can_decode, decode

Advance = Callable[[dict[int, Any]], None]  # told what was finished, by the item's place in the list
TOKENS_AT_ONCE = 2**18  # prompts and replies of a batch on CUDA; a batch that does not fit is halved
ROWS_AT_ONCE = {"cuda": 1024, "cpu": 32}


@dataclass(frozen=True)
class Reply:
    """A reply up to its end of sequence; `truncated` if the budget ran out first. `tokens` and `ids` are without it."""

    text: str
    tokens: int
    truncated: bool
    ids: tuple[int, ...] = field(default=(), compare=False)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int | None = None,
    advance: Advance = lambda finished: None,
    sampling: Sampling | None = None,
    known: Mapping[int, Reply] | None = None,
) -> list[Reply]:
    """Greedy replies, or sampled ones; settings the model came with do not count.

    Args:
        prompts: ids per item, from `render_prompts`.
        max_new_tokens: budget of each reply, the end of sequence included.
        batch_size: prompts at a time; None: as many as should fit. What does not fit is halved.
        advance: told of finished replies.
        known: replies that need not be made again, by place.

    Raises:
        UserError: neither the tokenizer nor the model names an end of sequence, or out of memory with a single prompt.
    """
    ends, pad = end_ids(model, tokenizer), _pad_id(tokenizer)
    replies = dict(known or {})
    ours = can_decode(model)
    prefix = Prefix.of(model, prompts) if ours else None

    def reply(places: list[int]) -> None:
        asked = [prompts[place] for place in places]
        drawn = sampling and Sampling(sampling.temperature, sampling.top_p, [sampling.keys[place] for place in places])
        if ours:
            said = decode(model, asked, max_new_tokens, ends=ends, pad=pad, prefix=prefix, sampling=drawn)
        else:
            said = _generated(model, asked, max_new_tokens, ends, pad, drawn)
        finished = {place: _reply(tokenizer, ids, ends) for place, ids in zip(places, said, strict=True)}
        replies.update(finished)
        advance(finished)

    size = batch_size or rows_that_fit(model, prompts, max_new_tokens)
    in_batches(prompts, [place for place in range(len(prompts)) if place not in replies], size, reply)
    return [replies[place] for place in range(len(prompts))]


def _reply(tokenizer, ids: list[int], ends: Collection[int]) -> Reply:
    length = next((position for position, token in enumerate(ids) if token in ends), None)
    text = tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
    return Reply(text, len(ids[:length]), truncated=length is None, ids=tuple(ids[:length]))


def _generated(model, prompts, max_new_tokens: int, ends: list[int], pad: int, sampling: Sampling | None):
    """New ids by transformers' own generate(), for models whose layers `decode` does not know."""
    drawn = {}
    if sampling is not None:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        torch.manual_seed(zlib.crc32(repr(list(sampling.keys)).encode()))
    settings = GenerationConfig(
        **drawn, num_beams=1, use_cache=True, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad
    )
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with _generation_settings(model, settings):
        output = model.generate(input_ids=ids, attention_mask=torch.tensor(mask, device=model.device))
    return output[:, width:].tolist()


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a reply: the tokenizer's end of sequence and those of the model's generation config."""
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list | tuple) else [configured]) | {tokenizer.eos_token_id}
    ends.discard(None)
    if not ends:
        raise UserError("neither the tokenizer nor the generation config names an eos token, so no reply could end")
    return sorted(ends)


@contextmanager
def _generation_settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Puts `settings` in the place of the model's own.

    Given as an argument to generate(), they would have every value they leave open filled from the model's, and a
    repetition penalty or a ban on tokens changes greedy replies.
    """
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id does: padding is masked. Without a pad token, that of the end of sequence or 0."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def rows_that_fit(model: PreTrainedModel, prompts: Sequence[list[int]], reply: int) -> int:
    """Rows to begin with: on CUDA so many that prompts and replies have TOKENS_AT_ONCE tokens."""
    most = ROWS_AT_ONCE.get(model.device.type, ROWS_AT_ONCE["cpu"])
    return max(1, min(most, TOKENS_AT_ONCE // (max(map(len, prompts), default=0) + reply + 1)))


def in_batches(prompts, places: list[int], size: int, ask: Callable[[list[int]], None]) -> None:
    """Calls `ask` with places of prompts of similar length, the longest first; halves what does not fit in memory."""
    waiting = sorted(places, key=lambda place: len(prompts[place]), reverse=True)
    while waiting:
        batch = waiting[:size]
        try:
            ask(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise UserError(f"out of memory with a single prompt of {len(prompts[batch[0]])} tokens") from None
            size = len(batch) // 2
        else:
            waiting = waiting[len(batch) :]
            continue
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds what the batch had allocated
