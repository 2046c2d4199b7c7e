"""Candidates ranked by their log-likelihood as replies to a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.data.chat import render_prompt
from gendistill.evaluate.items import Item
from gendistill.inference.decoding import Prefix, extend, prefill
from gendistill.inference.generation import Advance, in_batches, rows_that_fit

LOGITS_AT_ONCE = 4096  # places whose logits are held: 1.2 GB with a vocabulary of 150,000


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
    return [render_prompt(tokenizer, item.messages) for item in items]


@torch.inference_mode()
def rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    prompts: Sequence[list[int]],
    batch_size: int | None = None,
    advance: Advance = lambda finished: None,
    texts: bool = False,
    known: Mapping[int, Ranking] | None = None,
) -> list[Ranking]:
    """Scores each item's candidates as replies to its prompt.

    A candidate's log-likelihood (nats, float32) is summed over its tokens. The score is that sum for letters and for
    numbers in a fixed sentence, whose candidates differ in nothing else; short answers and last words differ in length,
    so theirs is divided by the number of tokens.

    Args:
        prompts: ids per item, from `render_prompts`.
        batch_size: prompts per forward pass; None: as many as should fit. What does not fit is halved.
        advance: told of finished items.
        texts: the options' texts of multiple_choice items are scored too.
        known: rankings that need not be computed again, by place.

    Raises:
        UserError: out of memory with a single prompt.
    """
    rankings = dict(known or {})
    prefix = Prefix.of(model, prompts)

    def score(places: list[int]) -> None:
        told = [_candidates(tokenizer, items[place], texts) for place in places]
        sums = _log_likelihoods(model, [prompts[place] for place in places], told, prefix)
        finished = {
            place: _ranking(items[place], [len(ids) for ids in candidates], scores)
            for place, candidates, scores in zip(places, told, sums, strict=True)
        }
        rankings.update(finished)
        advance(finished)

    size = batch_size or rows_that_fit(model, prompts, 0)
    in_batches(prompts, [place for place in range(len(items)) if place not in rankings], size, score)
    return [rankings[place] for place in range(len(items))]


def _candidates(tokenizer, item: Item, texts: bool) -> list[list[int]]:
    """Token ids of the candidates and, behind them, of the options' texts.

    The reply starts where the template ends, so candidates are tokenised on their own, as generation makes them.
    """
    wanted = [*item.candidates, *(item.choices if texts else ())]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in wanted]


def _ranking(item: Item, lengths: list[int], sums: list[float]) -> Ranking:
    count = len(item.candidates)
    by_token = item.kind in ("short_answer", "last_word")
    scores = tuple(
        total / length if by_token else total for total, length in zip(sums[:count], lengths[:count], strict=True)
    )
    if len(sums) == count:
        return Ranking(scores, _best(scores))
    text_scores = tuple(sums[count:])
    sizes = [len(choice.encode()) for choice in item.choices]
    by = {
        "letter": _best(scores),
        "text": _best(text_scores),
        "text_per_token": _best([s / length for s, length in zip(text_scores, lengths[count:], strict=True)]),
        "text_per_byte": _best([s / size for s, size in zip(text_scores, sizes, strict=True)]),
    }
    return Ranking(scores, _best(scores), text_scores, by)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _log_likelihoods(model, prompts, candidates: list[list[list[int]]], prefix: Prefix | None) -> list[list[float]]:
    """Summed log-likelihood of each candidate behind its prompt. A prompt is read once for all its candidates."""
    longer = [(row, number) for row, each in enumerate(candidates) for number, ids in enumerate(each) if len(ids) > 1]
    read = prefill(model, prompts, 0, prefix, keep_cache=bool(longer))
    first = [(row, ids[0]) for row, each in enumerate(candidates) for ids in each]
    values = iter(_log_probabilities(read.logits, first))
    sums = [[next(values) for _ in each] for each in candidates]
    longest = max((len(candidates[row][number]) for row, number in longer), default=1)
    size = max(1, LOGITS_AT_ONCE // longest)
    for start in range(0, len(longer), size):
        part = longer[start : start + size]
        ids = [candidates[row][number] for row, number in part]
        # The last token is only ever predicted, never read.
        logits = extend(model, read, [row for row, _ in part], [tokens[:-1] for tokens in ids])  # [rows, T, V]
        places = [
            (row * logits.shape[1] + at, token) for row, one in enumerate(ids) for at, token in enumerate(one[1:])
        ]
        values = iter(_log_probabilities(logits.flatten(0, 1), places))
        for (row, number), tokens in zip(part, ids, strict=True):
            sums[row][number] += sum(next(values) for _ in tokens[1:])
    return sums


def _log_probabilities(logits: torch.Tensor, places: list[tuple[int, int]]) -> list[float]:
    """Log-probability of token t in row r of logits [rows, V], for each (r, t)."""
    # A part at a time, so that no second float32 copy of the logits is made.
    normaliser = torch.cat([part.float().logsumexp(-1) for part in logits.split(256)])
    rows, tokens = torch.tensor(places, device=logits.device).unbind(-1)
    return (logits[rows, tokens].float() - normaliser[rows]).tolist()
