"""Reading prompts and continuing them, a batch at a time, on transformers' own caches.

What all prompts begin with is read once (`Prefix`). A row that has ended leaves the batch when half of it has, and on
CUDA a step is a CUDA graph: at these sizes the host cannot give out a step's launches as fast as the device runs them.

Shapes: B rows of a batch, P tokens of a prefix, T tokens of the longest row behind it, V vocabulary.
"""

import inspect
import os.path
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from gendistill.models.attention import ONE_TOKEN, attention_switched_to
from gendistill.models.cache import select_rows, with_fixed_size

SHORTEST_PREFIX = 32  # tokens; reading fewer anew costs less than copying their cache
EAGER_STEPS = 4  # so many pass before a graph is captured: most letters have ended by then
LOOK_EVERY = 8  # steps between looks at who has ended, each of which makes the host wait
WORTH_A_GRAPH = 12  # steps; capturing costs about two
ALIGNED = 16  # attention copies a mask whose rows are no multiple of this, in every layer


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits.
        top_p: drawn are the likeliest tokens that together have this probability.
        keys: one for each prompt. A reply depends on prompt, key and settings, not on its company.
    """

    temperature: float
    top_p: float
    keys: Sequence[str]


class Prefix:
    """The cache of the P tokens that all prompts begin with."""

    def __init__(self, model: PreTrainedModel, ids: list[int]):
        self.length = len(ids)
        tokens = torch.tensor([ids], device=model.device)
        self.cache = model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: Sequence[list[int]]) -> "Prefix | None":
        """None if the prompts share too little. At least one token of each stays behind it."""
        if len(prompts) < 2:
            return None
        shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
        return cls(model, prompts[0][:shared]) if shared >= SHORTEST_PREFIX else None


@dataclass
class Prefilled:
    """What is known after the prompts: logits [B, V] of the next token, the cache, which of its places hold tokens."""

    logits: torch.Tensor
    cache: Cache | None
    mask: torch.Tensor  # [B, P + T], 1 for tokens and 0 for padding


def prefill(
    model: PreTrainedModel, prompts: Sequence[list[int]], pad: int, prefix: Prefix | None, keep_cache: bool
) -> Prefilled:
    """Reads prompts of unequal length at once.

    Padding stands before a prompt's own tokens, behind the prefix: rows end together.
    """
    start = 0 if prefix is None else prefix.length
    width = max(map(len, prompts)) - start
    ids = [[pad] * (width + start - len(prompt)) + prompt[start:] for prompt in prompts]
    mask = [[1] * start + [0] * (width + start - len(prompt)) + [1] * (len(prompt) - start) for prompt in prompts]
    cache = None if prefix is None else select_rows(prefix.cache, [0] * len(prompts))
    mask = torch.tensor(mask, device=model.device)
    output = _forward(model, torch.tensor(ids, device=model.device), mask, cache, keep_cache, logits_to_keep=1)
    return Prefilled(output.logits[:, -1], output.past_key_values, mask)


def extend(model: PreTrainedModel, read: Prefilled, rows: Sequence[int], ids: list[list[int]]) -> torch.Tensor:
    """Logits [len(rows), longest, V] at tokens that follow the prompts, each time those of `rows[i]`.

    Args:
        ids: tokens of unequal length; logits behind a row's last are of no use.
    """
    width = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=model.device)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=model.device)
    mask = torch.cat([read.mask[torch.tensor(rows, device=model.device)], real], dim=1)
    return _forward(model, tokens, mask, select_rows(read.cache, rows), True).logits


def _forward(model, ids: torch.Tensor, mask: torch.Tensor, cache: Cache | None, use_cache: bool, **options):
    inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": use_cache} | options
    if takes_positions(model):  # a bare forward pass would count them from the padding
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(**inputs)


def takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def can_decode(model: PreTrainedModel) -> bool:
    """Whether `decode` knows the model's layers; transformers' generate() does the rest."""
    config = model.config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    attention = config._attn_implementation in ("sdpa", "eager")
    return types <= {"full_attention", "linear_attention"} and not sliding and attention and takes_positions(model)


def decode(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    ends: Sequence[int],
    pad: int,
    prefix: Prefix | None = None,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """The new ids of each prompt, its end included if it came within `max_new_tokens`; greedy without `sampling`."""
    batch = _Batch(model, prefill(model, prompts, pad, prefix, True), max_new_tokens, ends, pad, sampling)
    replies: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    while rows:
        ended = batch.go_on()
        over = batch.taken == max_new_tokens
        going = [place for place in range(len(rows)) if not (over or ended[place])]
        if len(going) > len(rows) // 2:
            continue
        for place, ids in enumerate(batch.replies[:, : batch.taken].tolist()):
            if place not in going:
                length = next((at for at, token in enumerate(ids) if token in ends), len(ids) - 1) + 1
                replies[rows[place]] = ids[:length]
        rows = [rows[place] for place in going]
        if rows:
            batch.keep(going)
    return replies


class _Batch:
    """Rows that are continued together. All that a step reads or writes stays in place, as a graph needs it."""

    def __init__(self, model, read: Prefilled, steps: int, ends, pad: int, sampling: Sampling | None):
        device = model.device
        rows, width = read.mask.shape
        self.model, self.steps, self.pad, self.sampling = model, steps, pad, sampling
        room = -(-(width + steps) // ALIGNED) * ALIGNED
        self.cache = with_fixed_size(read.cache, room)
        self.ends = torch.tensor(ends, device=device)
        # Added to the scores of attention: nothing for tokens, the least number for padding and for what is to come.
        least = torch.finfo(model.dtype).min
        self.bias = torch.full((rows, 1, 1, room), least, dtype=model.dtype, device=device)
        self.bias[:, 0, 0, :width].masked_fill_(read.mask.bool(), 0)
        self.place = torch.tensor([width], device=device)  # in the cache, of the next token
        self.position = read.mask.sum(1, keepdim=True)
        self.count = torch.zeros(1, dtype=torch.long, device=device)
        self.token = torch.empty(rows, 1, dtype=torch.long, device=device)
        self.replies = torch.full((rows, steps), pad, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.draws = None if sampling is None else _draws(sampling.keys, steps).to(device)
        self.graph = None
        self.eager = EAGER_STEPS  # steps to take before the next capture
        self.taken = 1
        self._choose(read.logits)

    def go_on(self) -> list[bool]:
        """Takes the steps up to the next look; returns which rows have ended."""
        looks = 1 if self.eager or not self.token.is_cuda else LOOK_EVERY
        for _ in range(min(looks, self.steps - self.taken)):
            if self._is_worth_a_graph():
                self._capture()
            if self.graph is None:
                self._step()
                self.eager = max(0, self.eager - 1)
            else:
                self.graph.replay()
            self.taken += 1
        return self.done.tolist()

    def keep(self, places: list[int]) -> None:
        """Lets all other rows go."""
        self.graph, self.eager = None, 1  # kernels for a new shape must load outside a capture
        index = torch.tensor(places, device=self.token.device)
        self.cache = select_rows(self.cache, places)
        for name in ("bias", "position", "token", "replies", "done", "draws"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[index])

    def _is_worth_a_graph(self) -> bool:
        waits = self.graph is not None or self.eager > 0
        return self.token.is_cuda and not waits and self.steps - self.taken >= WORTH_A_GRAPH

    def _capture(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._step()

    def _step(self) -> None:
        self.bias.index_fill_(3, self.place, 0)
        with attention_switched_to(ONE_TOKEN, self.model):
            logits = self.model(
                input_ids=self.token,
                attention_mask=self.bias,
                position_ids=self.position,
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]
        self.position += 1
        self.place += 1
        self._choose(logits)

    def _choose(self, logits: torch.Tensor) -> None:
        if self.sampling is None:
            token = logits.argmax(-1)
        else:
            token = _draw(logits, self.draws.index_select(1, self.count), self.sampling)
        token = token.masked_fill(self.done, self.pad)
        self.replies.index_copy_(1, self.count, token[:, None])
        self.token.copy_(token[:, None])
        self.done |= (token[:, None] == self.ends).any(1)
        self.count += 1


def _draws(keys: Sequence[str], steps: int) -> torch.Tensor:
    """[B, steps] numbers between 0 and 1, each row's by its own key."""
    sources = map(random.Random, keys)
    return torch.tensor([[source.random() for _ in range(steps)] for source in sources], dtype=torch.float32)


def _draw(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """A token a row, [B]: where a number of `draws` [B, 1] falls among the probabilities, the likeliest first."""
    likely, tokens = (logits.float() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = likely.cumsum(-1) - likely
    likely = likely.masked_fill(before >= sampling.top_p, 0)
    reached = likely.cumsum(-1)
    place = (reached < draws * reached[:, -1:]).sum(-1, keepdim=True)
    return tokens.gather(-1, place.clamp(max=logits.shape[-1] - 1)).squeeze(-1)
