"""The two ways to ask a model: rank given candidates by likelihood, or let it generate the reply.

Both see the same prompt ids, and neither moves with the batch size (beyond rounding). They need only a Hugging Face
causal model and its tokenizer.

Shapes: B rows of a batch, T tokens of the longest row, K last positions scored, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gendistill.data.chat import render_prompt
from gendistill.errors import UserError
from gendistill.evaluate.tasks import Item

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Ranking:
    """Scores of an item's candidates, higher is better, and the index of the best (the first of equals)."""

    scores: tuple[float, ...]
    prediction: int


@dataclass(frozen=True)
class Reply:
    """A reply up to its end of sequence; `truncated` if the budget ran out first. `tokens` and `ids` are without it."""

    text: str
    tokens: int
    truncated: bool
    ids: tuple[int, ...] = field(default=(), compare=False)


@dataclass
class _Row:
    """One row of ranking: `wanted` holds (item, candidate, its token ids); a context serves all that end on it."""

    context: list[int]
    wanted: list[tuple[int, int, list[int]]] = field(default_factory=list)


def render_prompts(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[list[int]]:
    """Ids of each item's prompt, as both protocols see it."""
    return [render_prompt(tokenizer, item.messages) for item in items]


@torch.inference_mode()
def rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    prompts: Sequence[list[int]],
    batch_size: int,
    advance: Advance = lambda items: None,
) -> list[Ranking]:
    """Scores each item's candidates as replies to its prompt.

    A candidate's log-likelihood (nats, float32) is summed over its tokens. The score is that sum for letters and for
    numbers in a fixed sentence, whose candidates differ in nothing else; short answers differ in length, so theirs is
    divided by the number of tokens.

    Args:
        prompts: ids per item, from `render_prompts`.
        batch_size: rows per forward pass.
        advance: told how many items were finished.
    """
    rows, candidates = _ranking_rows(tokenizer, items, prompts)
    sums = [[0.0] * len(item.candidates) for item in items]
    for batch in _by_length(rows, batch_size, lambda row: len(row.context)):
        for (item, candidate, _), value in zip(
            [wanted for row in batch for wanted in row.wanted], _log_likelihoods(model, tokenizer, batch), strict=True
        ):
            sums[item][candidate] = value
        advance(sum(wanted[1] == 0 for row in batch for wanted in row.wanted))
    rankings = []
    for item, totals, ids in zip(items, sums, candidates, strict=True):
        by_token = item.kind == "short_answer"
        scores = tuple(total / len(tokens) if by_token else total for total, tokens in zip(totals, ids, strict=True))
        rankings.append(Ranking(scores, max(range(len(scores)), key=scores.__getitem__)))
    return rankings


def _ranking_rows(tokenizer, items, prompts) -> tuple[list[_Row], list[list[list[int]]]]:
    """Rows to run and token ids of all candidates.

    The last token of a candidate is only ever predicted, never read. So the letters of a multiple-choice item, one
    token each, share one row: the bare prompt.
    """
    rows: dict[tuple, _Row] = {}
    candidates = []
    for index, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        # The reply starts where the template ends, so candidates are tokenised on their own, as generation makes them.
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in item.candidates]
        for candidate, tokens in enumerate(ids):
            row = rows.setdefault((index, *tokens[:-1]), _Row(prompt + tokens[:-1]))
            row.wanted.append((index, candidate, tokens))
        candidates.append(ids)
    return list(rows.values()), candidates


def _log_likelihoods(model, tokenizer, batch: list[_Row]) -> list[float]:
    """Summed log-likelihoods of all that the batch's rows want, in their order."""
    input_ids, attention_mask = _left_pad([row.context for row in batch], tokenizer, model.device)
    keep = max(len(tokens) for row in batch for *_, tokens in row.wanted)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False, "logits_to_keep": keep}
    if "position_ids" in inspect.signature(model.forward).parameters:
        # generate() counts positions from the first real token; a bare forward pass would count from the padding.
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(**inputs).logits  # [B, K, V]
    # Row by row, so that no second float32 copy of [B, K, V] is made.
    normaliser = torch.stack([row.float().logsumexp(-1) for row in logits])  # [B, K]
    places = [
        (row_index, logits.shape[1] - len(tokens) + offset, token)
        for row_index, row in enumerate(batch)
        for *_, tokens in row.wanted
        for offset, token in enumerate(tokens)
    ]
    rows, positions, tokens = torch.tensor(places, device=logits.device).unbind(-1)
    values = (logits[rows, positions, tokens].float() - normaliser[rows, positions]).tolist()
    lengths = [len(tokens) for row in batch for *_, tokens in row.wanted]
    remaining = iter(values)
    return [sum(next(remaining) for _ in range(length)) for length in lengths]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
    advance: Advance = lambda items: None,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[Reply]:
    """Greedy replies, or sampled ones if the temperature is above 0; settings the model came with do not count.

    Args:
        prompts: ids per item, from `render_prompts`.
        max_new_tokens: budget of each reply, the end of sequence included.
        advance: told how many items were finished.
        temperature: divides the logits; samples follow torch's own random state.
        top_p: sampled are the likeliest tokens that together have this probability.

    Raises:
        UserError: neither the tokenizer nor the model names an end of sequence.
    """
    ends = end_ids(model, tokenizer)
    settings = GenerationConfig(
        **({"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}),
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=_pad_id(tokenizer),
    )
    replies: list[Reply | None] = [None] * len(prompts)
    for batch in _by_length(range(len(prompts)), batch_size, lambda index: len(prompts[index])):
        input_ids, attention_mask = _left_pad([prompts[index] for index in batch], tokenizer, model.device)
        with _generation_settings(model, settings):
            output = model.generate(input_ids=input_ids, attention_mask=attention_mask)
        for index, ids in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
            length = next((position for position, token in enumerate(ids) if token in ends), None)
            text = tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
            replies[index] = Reply(text, len(ids[:length]), truncated=length is None, ids=tuple(ids[:length]))
        advance(len(batch))
    return replies


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


def _left_pad(rows: Sequence[list[int]], tokenizer, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both [B, T]: the rows end together, so that the last positions are everyone's last tokens."""
    width = max(map(len, rows))
    ids = [[_pad_id(tokenizer)] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _by_length(rows: Sequence, batch_size: int, length: Callable) -> Iterator[list]:
    """Batches of rows of similar length, the longest first, so that what does not fit in memory fails at once."""
    ordered = sorted(rows, key=length, reverse=True)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]
