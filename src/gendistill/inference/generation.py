"""Replies to prompts, greedy or by top-p sampling, in batches that fit; by our decoding loop or by generate()."""

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from gendistill.distributed import WHOLE, Share
from gendistill.errors import UserError
from gendistill.inference.decoding import Decoding, Sampling, can_decode
from gendistill.inference.prefill import Prefix
from gendistill.inference.stopping import StopStrings, end_ids
from gendistill.models.positions import depends_on_length

Advance = Callable[[dict[int, Any]], None]  # told what was finished, by the prompt's index
# Prompts and replies of a batch on CUDA, in tokens. It need not be right: a batch that does not fit is halved.
TOKENS_AT_ONCE = 2**18
# Prompts of a batch. A GPU takes hardly longer for many than for one; a CPU does, and waits for the longest reply.
ROWS_AT_ONCE = {"cuda": 1024, "cpu": 32}


@dataclass(frozen=True)
class Reply:
    """A reply up to its end, `truncated` if the budget ran out first. `tokens` and `ids` are without the end, too."""

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
    stop: Sequence[str] = (),
    share: Share = WHOLE,
) -> list[Reply]:
    """Greedy replies, or sampled ones; settings the model came with do not count.

    Args:
        prompts: ids of each, ready for prefill.
        max_new_tokens: budget of each reply, the end of sequence included.
        batch_size: prompts at a time; None: as many as should fit. What does not fit is halved.
        advance: told of finished replies, by the prompt's index.
        known: replies that need not be generated again, by the prompt's index.
        stop: texts that end a reply; it is cut before the first of them.
        share: this process's of the prompts; replies to the others', if they are not known, are left out.

    Raises:
        UserError: neither the tokenizer nor the model names an end of sequence, or out of memory with a single prompt.
    """
    ends, pad = end_ids(model, tokenizer, stop), pad_id(tokenizer)
    strings = StopStrings(tokenizer, stop)
    replies = dict(known or {})

    def finish(new_ids: Mapping[int, list[int]]) -> None:
        finished = {i: _reply(tokenizer, ids, ends, strings) for i, ids in new_ids.items()}
        replies.update(finished)
        advance(finished)

    missing = [i for i in range(len(prompts)) if i not in replies]
    size = checked_size(model, batch_size) or rows_that_fit(model, prompts, max_new_tokens, share)
    if can_decode(model):
        # One by one, since rows are given on from prompt to prompt: what they say does not depend on their neighbours.
        missing = list(share.of(_longest_first(prompts, missing)))
        how = dict(max_new_tokens=max_new_tokens, ends=ends, pad=pad, strings=strings)
        _decode(model, prompts, missing, size, sampling, finish, how)
    else:

        def reply(indices: list[int]) -> None:
            batch, drawn = [prompts[i] for i in indices], _sampling_of(sampling, indices)
            new_ids = _generate_by_transformers(model, batch, max_new_tokens, ends, pad, drawn, strings)
            finish(dict(zip(indices, new_ids, strict=True)))

        in_batches(prompts, missing, size, reply, share)
    return [replies[i] for i in range(len(prompts)) if i in replies]


@torch.inference_mode()
def sample_ids(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    ends: Sequence[int],
    pad: int,
    sampling: Sampling,
) -> list[list[int]]:
    """The new ids of a reply to each prompt, with its end if that came in time; by our decoding loop.

    Args:
        ends, pad: see `Decoding`.

    Raises:
        UserError: out of memory with a single prompt.
    """
    replies: dict[int, list[int]] = {}
    how = dict(max_new_tokens=max_new_tokens, ends=ends, pad=pad, strings=None)
    rows = rows_that_fit(model, prompts, max_new_tokens)
    _decode(model, prompts, list(range(len(prompts))), rows, sampling, replies.update, how)
    return [replies[i] for i in range(len(prompts))]


def _decode(model, prompts, missing: list[int], rows: int, sampling: Sampling | None, finish, how: dict) -> None:
    """Replies to the missing prompts by our own loop, the longest first; fewer at a time where memory runs out."""
    # Of all prompts, whichever are known already: so a resumed call computes what an unbroken one does.
    prefix = Prefix.of(model, prompts)
    waiting = _longest_first(prompts, missing)
    while waiting:
        decoding = Decoding(model, rows, sampling=_sampling_of(sampling, waiting), **how)
        order, done = list(waiting), set()
        try:
            for ended in decoding.run([prompts[i] for i in order], prefix):
                finish({order[place]: ids for place, ids in ended.items()})
                done |= {order[place] for place in ended}
        except torch.OutOfMemoryError:
            if rows == 1:
                raise UserError(f"out of memory with a single prompt of {len(prompts[order[0]])} tokens") from None
            rows = min(rows, len(order)) // 2 or 1
        waiting = [i for i in order if i not in done]
        if waiting:
            torch.cuda.empty_cache()  # outside the handler, whose traceback holds what the batch had allocated


def _sampling_of(sampling: Sampling | None, indices: Sequence[int]) -> Sampling | None:
    """The sampling of some of the prompts: each keeps its own key."""
    if sampling is None:
        return None
    return Sampling(sampling.temperature, sampling.top_p, [sampling.keys[i] for i in indices])


def _reply(tokenizer, ids: list[int], ends: Collection[int], strings: StopStrings) -> Reply:
    length = next((index for index, token in enumerate(ids) if token in ends), None)  # None: cut by the budget
    if cut := strings.cut(ids[:length]):
        said, text = cut
        return Reply(text.strip(), len(said), truncated=False, ids=tuple(said))
    text = tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
    return Reply(text, len(ids[:length]), truncated=length is None, ids=tuple(ids[:length]))


def _generate_by_transformers(
    model,
    prompts,
    max_new_tokens: int,
    ends: list[int],
    pad: int,
    sampling: Sampling | None,
    strings: StopStrings,
) -> list[list[int]]:
    """New ids by transformers' own generate(), for models whose layers `decode` does not know."""
    drawn = {}
    if sampling is not None:
        # top_k 0: transformers would otherwise cut at the 50 likeliest tokens as well.
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        # generate() has one source of random numbers for a batch, so replies depend on all of its keys.
        torch.manual_seed(zlib.crc32(repr(list(sampling.keys)).encode()))
    settings = GenerationConfig(
        **drawn, num_beams=1, use_cache=True, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad
    )
    # Padding in front, [B, T]: replies begin where prompts end.
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with _generation_settings(model, settings):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.tensor(mask, device=model.device),
            stopping_criteria=StoppingCriteriaList([_stops_at(strings, width)] if strings else []),
        )
    return output[:, width:].tolist()


def _stops_at(strings: StopStrings, width: int) -> Callable[..., torch.Tensor]:
    """Stop strings as one of transformers' stopping criteria, for prompts of this width."""

    def stops(ids: torch.Tensor, scores: Any, **kwargs) -> torch.Tensor:  # [B, T] -> [B]
        # All of each row: transformers forgets which rows have stopped before.
        reached = [strings.is_reached(row, len(row)) for row in ids[:, width:].tolist()]
        return torch.tensor(reached, device=ids.device)

    return stops


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


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id does: padding is masked. Without a pad token, that of the end of sequence or 0."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def checked_size(model: PreTrainedModel, batch_size: int | None) -> int | None:
    """The batch size that was asked for; UserError if the model takes no batches."""
    if batch_size is not None and batch_size > 1 and depends_on_length(model.config.get_text_config()):
        rope = model.config.get_text_config().rope_parameters["rope_type"]
        raise UserError(
            f"batch_size {batch_size}: with RoPE of type {rope} a position means something else beside a longer "
            "sequence, so that replies and scores would depend on the batch. Leave batch_size out, or give 1."
        )
    return batch_size


def rows_that_fit(model: PreTrainedModel, prompts: Sequence[list[int]], reply: int, share: Share = WHOLE) -> int:
    """Batch size to begin with: so many prompts that they and replies of this length have TOKENS_AT_ONCE tokens; 1 if
    sequences of a batch change each other."""
    if depends_on_length(model.config.get_text_config()):
        return 1
    longest = max(map(len, prompts), default=0)
    most = ROWS_AT_ONCE.get(model.device.type, ROWS_AT_ONCE["cpu"])
    most = max(1, min(most, TOKENS_AT_ONCE // (longest + reply + 1)))
    # On a CPU the batch stays as it is: there scores are the same to the last bit on any number of processes.
    if model.device.type != "cuda":
        return most
    # A GPU takes so many at once that other processes would get none. And batches of one size: where replies are of
    # equal length, the last would otherwise leave rows empty for as long as a whole batch takes.
    own = max(1, -(-len(prompts) // share.processes))
    batches = -(-own // most)
    return -(-own // batches)


def _longest_first(prompts, indices: Sequence[int]) -> list[int]:
    # As a batch is padded to its longest; the longest first, so that what does not fit shows at once.
    return sorted(indices, key=lambda i: len(prompts[i]), reverse=True)


def in_batches(prompts, indices: list[int], size: int, run: Callable[[list[int]], None], share: Share = WHOLE) -> None:
    """Calls `run` with indices of prompts of similar length, the longest first; halves what does not fit in memory.

    Args:
        share: this process's of the batches, which are dealt out whole: in another batch a score would round otherwise.
    """
    waiting = _longest_first(prompts, indices)
    batches = [waiting[start : start + size] for start in range(0, len(waiting), size)]
    waiting = [index for batch in share.of(batches) for index in batch]
    while waiting:
        batch = waiting[:size]
        try:
            run(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise UserError(f"out of memory with a single prompt of {len(prompts[batch[0]])} tokens") from None
            size = len(batch) // 2
        else:
            waiting = waiting[len(batch) :]
            continue
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds what the batch had allocated
