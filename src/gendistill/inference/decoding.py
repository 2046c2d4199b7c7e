"""Prefill and batched decoding on transformers' own KV caches.

What all prompts begin with is prefilled once (`Prefix`, the prefix cache). A reply that has ended leaves the batch when
half of the batch has, and on CUDA a decode step is a CUDA graph: at these sizes the host cannot give out a step's
launches as fast as the device runs them.

Shapes: B prompts of a batch, P tokens of the prefix, T tokens of the longest prompt behind it, S positions in the KV
cache, V vocabulary.
"""

import inspect
import os.path
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from gendistill.inference.stopping import StopStrings
from gendistill.models.attention import ONE_TOKEN, attention_switched_to
from gendistill.models.cache import select_rows, with_fixed_size

SHORTEST_PREFIX = 32  # tokens; prefilling fewer anew costs less than copying their cache
EAGER_STEPS = 4  # decode steps before a graph is captured: replies of a token or two have ended by then
STEPS_PER_CHECK = 8  # decode steps between two looks at which replies have ended, each of which makes the host wait
WORTH_A_GRAPH = 12  # decode steps; capturing costs about two
ALIGNED = 16  # attention copies a mask whose last dimension is no multiple of this, in every layer


@dataclass(frozen=True)
class Sampling:
    """Top-p (nucleus) sampling with a temperature (Holtzman et al., arXiv 1904.09751).

    Attributes:
        temperature: divides the logits.
        top_p: drawn are the likeliest tokens that together have this probability.
        keys: one for each prompt. A reply depends on prompt, key and settings, not on the batch it is in.
    """

    temperature: float
    top_p: float
    keys: Sequence[str]


class Prefix:
    """The prefix cache: the KV cache of the P tokens that all prompts begin with."""

    def __init__(self, model: PreTrainedModel, ids: list[int]):
        self.length = len(ids)
        tokens = torch.tensor([ids], device=model.device)  # [1, P]
        # Logits of one token only: those of all would be the largest tensor of the pass.
        self.cache = model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: Sequence[list[int]]) -> "Prefix | None":
        """None if the prompts share too little. At least one token of each stays behind it."""
        if len(prompts) < 2:
            return None
        # A prompt that is all prefix would leave nothing to prefill, and so no logits to decode from.
        shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
        return cls(model, prompts[0][:shared]) if shared >= SHORTEST_PREFIX else None


@dataclass
class Prefilled:
    """Prompts after prefill: logits [B, V] of the next token, the KV cache, and which of its positions hold tokens."""

    logits: torch.Tensor
    cache: Cache | None
    mask: torch.Tensor  # [B, P + T], 1 for tokens and 0 for padding


def prefill(
    model: PreTrainedModel, prompts: Sequence[list[int]], pad: int, prefix: Prefix | None, keep_cache: bool
) -> Prefilled:
    """Runs prompts of unequal length through the model at once.

    Padding stands before a prompt's own tokens, behind the prefix: all prompts end at one position.
    """
    start = 0 if prefix is None else prefix.length
    width = max(map(len, prompts)) - start
    ids, mask = [], []
    for prompt in prompts:
        padding = width + start - len(prompt)
        ids.append([pad] * padding + prompt[start:])
        mask.append([1] * start + [0] * padding + [1] * (len(prompt) - start))
    ids = torch.tensor(ids, device=model.device)  # [B, T]
    mask = torch.tensor(mask, device=model.device)  # [B, P + T]
    # Every prompt gets a copy of the prefix cache, as decoding writes behind it.
    cache = None if prefix is None else select_rows(prefix.cache, [0] * len(prompts))
    output = _forward(model, ids, mask, cache, keep_cache, logits_to_keep=1)
    return Prefilled(output.logits[:, -1], output.past_key_values, mask)


def extend(model: PreTrainedModel, prefilled: Prefilled, rows: Sequence[int], ids: list[list[int]]) -> torch.Tensor:
    """Logits [len(rows), longest, V] at tokens that follow prefilled prompts; `ids[i]` follow prompt `rows[i]`.

    A prompt may be extended any number of times; its cache stays as it is.

    Args:
        ids: tokens of unequal length; logits behind the last of each are of no use.
    """
    width = max(map(len, ids))
    # Padding stands behind: whatever it is, no token before it sees it.
    tokens = torch.tensor([own + [0] * (width - len(own)) for own in ids], device=model.device)  # [rows, longest]
    real = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in ids], device=model.device)
    before = prefilled.mask[torch.tensor(rows, device=model.device)]  # [rows, P + T]
    mask = torch.cat([before, real], dim=1)  # [rows, P + T + longest]
    return _forward(model, tokens, mask, select_rows(prefilled.cache, rows), True).logits


def _forward(model, ids: torch.Tensor, mask: torch.Tensor, cache: Cache | None, use_cache: bool, **options):
    """A pass over ids [B, N], which are the last N of the tokens that mask [B, S] is of."""
    inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": use_cache} | options
    if takes_positions(model):  # a bare forward pass would count them from the padding
        positions = (mask.cumsum(-1) - 1).clamp(min=0)  # [B, S]; -1 in padding before the first token is no position
        inputs["position_ids"] = positions[:, -ids.shape[1] :]  # [B, N]
    return model(**inputs)


def takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def can_decode(model: PreTrainedModel) -> bool:
    """Whether `decode` knows the model's layers; transformers' generate() does the rest."""
    config = model.config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    # `with_fixed_size` has no fixed size for the cache of a window. Some configs have a window that they do not use.
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
    strings: StopStrings | None = None,
) -> list[list[int]]:
    """The new ids of each prompt, its end included if it came within `max_new_tokens`; greedy without `sampling`.

    Args:
        strings: a reply that holds one of them ends too, soon after it: how soon depends on the batch.
    """
    prefilled = prefill(model, prompts, pad, prefix, True)
    batch = DecodingBatch(model, prefilled, max_new_tokens, ends, pad, sampling)
    replies: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # of the batch, the prompts that they are
    while rows:
        before = batch.taken
        ended = batch.decode_steps()
        if strings:
            ended = batch.end(_with_stop_string(batch, ended, before, strings))
        out_of_budget = batch.taken == max_new_tokens
        going = [row for row in range(len(rows)) if not (out_of_budget or ended[row])]
        # Each new size copies the caches and captures a new graph, so replies leave when half of them have ended.
        if len(going) > len(rows) // 2:
            continue
        for row, ids in enumerate(batch.replies[:, : batch.taken].tolist()):
            if row not in going:
                replies[rows[row]] = ids[: _length(ids, ends)]
        rows = [rows[row] for row in going]
        if rows:
            batch.keep(going)
    return replies


def _with_stop_string(batch: "DecodingBatch", ended: list[bool], before: int, strings: StopStrings) -> list[int]:
    """The rows of a batch that hold a stop string since they had `before` tokens."""
    # The first token of all is no step's.
    new = batch.taken - (before if before > 1 else 0)
    replies = batch.replies[:, : batch.taken].tolist()
    return [row for row, ids in enumerate(replies) if not ended[row] and strings.is_reached(ids, new)]


def _length(ids: list[int], ends: Sequence[int]) -> int:
    """Tokens up to the first end, which is counted; all if there is none."""
    return next((index + 1 for index, token in enumerate(ids) if token in ends), len(ids))


class DecodingBatch:
    """Replies that are decoded together, a token of each at a step.

    All that a step reads or writes stays at one address, as a CUDA graph needs it: steps change tensors in place.

    Attributes:
        taken: tokens of every reply so far.
        replies: [B, steps], those tokens; padding behind a reply's end.
    """

    def __init__(self, model, prefilled: Prefilled, steps: int, ends, pad: int, sampling: Sampling | None):
        device = model.device
        prompts, width = prefilled.mask.shape
        self.model, self.steps, self.pad, self.sampling = model, steps, pad, sampling
        room = -(-(width + steps) // ALIGNED) * ALIGNED  # S: prompts and replies, rounded up
        self.cache = with_fixed_size(prefilled.cache, room)
        self.bias = _attention_bias(prefilled.mask, room, model.dtype)  # [B, 1, 1, S]
        self.ends = torch.tensor(ends, device=device)  # [ends]
        self.cache_index = torch.tensor([width], device=device)  # [1], of the next token, the same for all
        self.position = prefilled.mask.sum(1, keepdim=True)  # [B, 1], of the next token, without the padding
        self.count = torch.zeros(1, dtype=torch.long, device=device)  # `taken`, where a graph can read it
        self.token = torch.empty(prompts, 1, dtype=torch.long, device=device)  # [B, 1], the newest
        self.replies = torch.full((prompts, steps), pad, device=device)
        self.done = torch.zeros(prompts, dtype=torch.bool, device=device)  # [B]
        # Drawn ahead, [B, steps]: a reply's numbers are its own, however the batch shrinks.
        self.draws = None if sampling is None else _draws(sampling.keys, steps).to(device)
        self.graph = None
        self.eager = EAGER_STEPS  # steps to take before the next capture
        self._choose(prefilled.logits)
        self.taken = 1

    def decode_steps(self) -> list[bool]:
        """Takes the decode steps up to the next look at the device; returns which replies have ended."""
        # While steps are eager every one is looked at, as short replies should leave before a graph is captured for
        # them. On a CPU a look costs nothing.
        steps = 1 if self.eager or not self.token.is_cuda else STEPS_PER_CHECK
        for _ in range(min(steps, self.steps - self.taken)):
            if self._is_worth_a_graph():
                self._capture()
            if self.graph is None:
                self._step()
                self.eager = max(0, self.eager - 1)
            else:
                self.graph.replay()
            self.taken += 1
        return self.done.tolist()

    def end(self, rows: list[int]) -> list[bool]:
        """Ends replies whatever their last token; returns which have ended."""
        self.done[torch.tensor(rows, dtype=torch.long, device=self.done.device)] = True
        return self.done.tolist()

    def keep(self, rows: list[int]) -> None:
        """Lets all other replies leave the batch."""
        self.graph = None  # it is of the old shape
        self.eager = 1  # kernels for a new shape must load outside a capture
        index = torch.tensor(rows, device=self.token.device)
        self.cache = select_rows(self.cache, rows)
        for name in ("bias", "position", "token", "replies", "done", "draws"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[index])

    def _is_worth_a_graph(self) -> bool:
        waits = self.graph is not None or self.eager > 0
        return self.token.is_cuda and not waits and self.steps - self.taken >= WORTH_A_GRAPH

    def _capture(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile; by default an unsafe call of theirs would break the capture.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._step()

    def _step(self) -> None:
        """One decode step: the newest tokens enter the cache, and the next are chosen."""
        self.bias.index_fill_(3, self.cache_index, 0)  # from now on the newest token is seen
        with attention_switched_to(ONE_TOKEN, self.model):
            output = self.model(
                input_ids=self.token,
                attention_mask=self.bias,
                position_ids=self.position,
                past_key_values=self.cache,
                use_cache=True,
            )
        logits = output.logits[:, -1]  # [B, V]
        self.position += 1
        self.cache_index += 1
        self._choose(logits)

    def _choose(self, logits: torch.Tensor) -> None:
        """Writes the next token of each reply, from logits [B, V]."""
        if self.sampling is None:
            token = logits.argmax(-1)  # [B]
        else:
            # The step's column by a tensor: a number would be baked into the graph.
            draws = self.draws.index_select(1, self.count)  # [B, 1]
            token = _draw(logits, draws, self.sampling)  # [B]
        token = token.masked_fill(self.done, self.pad)
        self.replies.index_copy_(1, self.count, token[:, None])
        self.token.copy_(token[:, None])
        self.done |= (token[:, None] == self.ends).any(1)
        self.count += 1


def _attention_bias(mask: torch.Tensor, room: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, width] -> [B, 1, 1, room], added to attention's scores: 0 for tokens, the least number for padding and for
    what is to come."""
    prompts, width = mask.shape
    bias = torch.full((prompts, 1, 1, room), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    bias[:, 0, 0, :width].masked_fill_(mask.bool(), 0)
    return bias


def _draws(keys: Sequence[str], steps: int) -> torch.Tensor:
    """[B, steps] uniform numbers between 0 and 1, each prompt's by its own key."""
    sources = map(random.Random, keys)
    return torch.tensor([[source.random() for _ in range(steps)] for source in sources], dtype=torch.float32)


def _draw(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Top-p sampling, [B, V] -> [B]: the token at which the cumulative probability passes `draws` [B, 1]."""
    probabilities = (logits.float() / sampling.temperature).softmax(-1)  # [B, V]
    # Stable, so that equal probabilities come in one order on every device.
    likely, tokens = probabilities.sort(dim=-1, descending=True, stable=True)  # [B, V] each
    before = likely.cumsum(-1) - likely  # [B, V], of all likelier tokens; 0 for the first, which therefore stays
    likely = likely.masked_fill(before >= sampling.top_p, 0)
    reached = likely.cumsum(-1)  # [B, V]
    # Times the whole sum and not divided by it: what is left after the cut need not sum to 1.
    index = (reached < draws * reached[:, -1:]).sum(-1, keepdim=True)  # [B, 1]
    return tokens.gather(-1, index.clamp(max=logits.shape[-1] - 1)).squeeze(-1)
