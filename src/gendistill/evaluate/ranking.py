"""Candidates ranked by their log-likelihood as replies to a prompt."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.data.chat import Prompt
from gendistill.data.chat import render_prompts as render_conversations
from gendistill.data.replies import reply_ids
from gendistill.distributed import WHOLE, Share
from gendistill.evaluate.kinds import KINDS
from gendistill.evaluate.kinds.item import Item
from gendistill.inference.generation import Advance, checked_size, in_batches, rows_that_fit
from gendistill.inference.prefill import Prefix, extend, prefill

LOGITS_AT_ONCE = 4096  # positions whose logits are held: 1.2 GB in bfloat16 with a vocabulary of 150,000


@dataclass(frozen=True)
class Ranking:
    """Scores of an item's candidates, higher is better, and the index of the best (the first of equals).

    Attributes:
        text_scores: summed log-likelihood of each option's text, if asked for.
        by: best option by letter and by its text: "letter", "text", "text_per_token", "text_per_byte".
    """

    scores: tuple[float, ...]
    prediction: int
    text_scores: tuple[float, ...] = ()
    by: Mapping[str, int] = field(default_factory=dict)


def render_prompts(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[list[int]]:
    """Ids of each item's prompt, as both protocols see it."""
    return [prompt.ids for prompt in render_conversations(tokenizer, (item.messages for item in items))]


def candidate_ids(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], texts: bool = False, prompts: Sequence[Prompt] = ()
) -> list[list[list[int]]]:
    """Ids of each item's candidates as they stand behind its prompt, as generation and training make them.

    Args:
        texts: behind them, those of the item's lettered choices.
        prompts: the items', where they are rendered already.
    """
    prompts = prompts or render_conversations(tokenizer, (item.messages for item in items))
    return reply_ids(tokenizer, prompts, [[*item.candidates, *(item.choices if texts else ())] for item in items])


@torch.inference_mode()
def rank(
    model: PreTrainedModel,
    items: Sequence[Item],
    prompts: Sequence[list[int]],
    candidates: Sequence[Sequence[list[int]]],
    batch_size: int | None = None,
    advance: Advance = lambda finished: None,
    known: Mapping[int, Ranking] | None = None,
    share: Share = WHOLE,
) -> list[Ranking]:
    """Scores each item's candidates as replies to its prompt.

    A candidate's log-likelihood (nats, float32) is summed over its tokens. The score is that sum for letters and for
    numbers in a fixed sentence, whose candidates differ in nothing else; where candidates differ in length (the kind's
    `scores_per_token`), it is divided by the number of tokens.

    Args:
        prompts: ids per item, from `render_prompts`.
        candidates: ids of each candidate per item, from `candidate_ids`, with those of choices' texts or without.
        batch_size: prompts per forward pass; None: as many as should fit. What does not fit is halved.
        advance: called with finished items.
        known: rankings that need not be computed again, by index.
        share: this process's of the items; rankings of the others', if they are not known, are left out.

    Raises:
        UserError: out of memory with a single prompt.
    """
    rankings = dict(known or {})
    # What all prompts begin with (template, few-shot examples) is prefilled once.
    prefix = Prefix.of(model, prompts)

    def score(indices: list[int]) -> None:
        asked, replies = [prompts[index] for index in indices], [candidates[index] for index in indices]
        sums = _log_likelihoods(model, asked, replies, prefix)
        # All candidates of an item share the prompt's cache, so an item is never split between batches.
        finished = {}
        for index, ids, scores in zip(indices, replies, sums, strict=True):
            finished[index] = _ranking(items[index], [len(tokens) for tokens in ids], scores)
        rankings.update(finished)
        advance(finished)

    # No reply is generated, so a row is as long as its prompt.
    size = checked_size(model, batch_size) or rows_that_fit(model, prompts, 0, share)
    in_batches(prompts, [index for index in range(len(items)) if index not in rankings], size, score, share)
    return [rankings[index] for index in range(len(items)) if index in rankings]


def _ranking(item: Item, lengths: Sequence[int], sums: Sequence[float]) -> Ranking:
    """The ranking from each candidate's tokens and summed log-likelihood, those of the choices' texts behind them."""
    count = len(item.candidates)
    scores = tuple(sums[:count])  # of the candidates themselves; those of the choices' texts stand behind them
    if KINDS[item.kind].scores_per_token:
        scores = _per(scores, lengths[:count])
    if len(sums) == count:  # no texts were scored
        return Ranking(scores, _best(scores))
    text_scores = tuple(sums[count:])
    by = {
        "letter": _best(scores),
        "text": _best(text_scores),
        "text_per_token": _best(_per(text_scores, lengths[count:])),
        "text_per_byte": _best(_per(text_scores, [len(choice.encode()) for choice in item.choices])),
    }
    return Ranking(scores, _best(scores), text_scores, by)


def _per(scores: Sequence[float], sizes: Sequence[int]) -> tuple[float, ...]:
    return tuple(score / size for score, size in zip(scores, sizes, strict=True))


def _best(scores: Sequence[float]) -> int:
    # max takes the first of equals.
    return max(range(len(scores)), key=scores.__getitem__)


def _log_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    candidates: Sequence[Sequence[list[int]]],
    prefix: Prefix | None,
) -> list[list[float]]:
    """Summed log-likelihood of each candidate behind its prompt. A prompt is prefilled once for all its candidates.

    Args:
        prompts: ids per item.
        candidates: ids of each candidate, per item.

    Returns:
        nats: per item, per candidate.
    """
    # (item, candidate) of those whose further tokens need the cache: the prefill predicts only the first token.
    longer = []
    first_tokens = []  # (item, first token) of every candidate
    for row, item_candidates in enumerate(candidates):
        for number, ids in enumerate(item_candidates):
            first_tokens.append((row, ids[0]))
            if len(ids) > 1:
                longer.append((row, number))
    longest = max((len(candidates[row][number]) for row, number in longer), default=1)
    prefilled = prefill(model, prompts, prefix, room=max(map(len, prompts)) + longest - 1)
    values = iter(_log_probabilities(prefilled.logits, first_tokens))  # logits: [items, V], behind each prompt
    # Back in the candidates' shape: per item, per candidate.
    sums = [[next(values) for _ in item_candidates] for item_candidates in candidates]

    # In parts, so that the logits held at once stay bounded.
    for part in _parts(longer, max(1, LOGITS_AT_ONCE // longest)):
        ids = [candidates[row][number] for row, number in part]
        further = _further_tokens(model, prefilled, [row for row, _ in part], ids)
        for (row, number), total in zip(part, further, strict=True):
            sums[row][number] += total
    return sums


def _parts(longer: Sequence[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """The items' first candidates, then their second ones, `size` at a time: each item stands once in a part.

    So `extend` need not copy the items' caches.
    """
    by_number: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, number in longer:
        by_number[number].append((row, number))
    for pairs in by_number.values():
        for start in range(0, len(pairs), size):
            yield pairs[start : start + size]


def _further_tokens(model: PreTrainedModel, prefilled, rows: list[int], ids: Sequence[list[int]]) -> list[float]:
    """Summed log-likelihood of each candidate's tokens but the first.

    Args:
        prefilled: the items' prompts, cache and all.
        rows: the item of each candidate.
        ids: of each candidate, two or more.
    """
    # The last token is only ever predicted, never an input.
    inputs = [tokens[:-1] for tokens in ids]
    logits = extend(model, prefilled, rows, inputs)  # [candidates, T, V], padded on the right
    length = logits.shape[1]
    targets = []  # (row of the flattened logits, the token that it predicts)
    for row, tokens in enumerate(ids):
        for position, token in enumerate(tokens[1:]):
            targets.append((row * length + position, token))
    values = iter(_log_probabilities(logits.flatten(0, 1), targets))  # logits: [candidates * T, V]
    return [sum(next(values) for _ in tokens[1:]) for tokens in ids]


def _log_probabilities(logits: torch.Tensor, targets: Sequence[tuple[int, int]]) -> list[float]:
    """Log-probability of token t in row r of logits [rows, V], for each (r, t) of `targets`, in their order."""
    # A part at a time, so that no second float32 copy of the logits is made.
    normaliser = torch.cat([part.float().logsumexp(-1) for part in logits.split(256)])  # [rows]
    rows, tokens = torch.tensor(targets, device=logits.device).unbind(-1)  # [targets] each
    return (logits[rows, tokens].float() - normaliser[rows]).tolist()  # [targets]
