"""Batched decoding: prompts join the batch as replies leave it, and on CUDA a step is a CUDA graph.

At these sizes the host cannot give out a step's launches as fast as the device runs them, so all that a step reads or
writes stays at one address and is changed in place. Rows have lengths of their own (see `prefill`), so that a new
prompt can take the row of a reply that has ended, and the graph continues.

Shapes: B rows of the batch, S places of the cache, V vocabulary.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from gendistill.inference.kept import kept
from gendistill.inference.packed import packed
from gendistill.inference.prefill import Prefilled, Prefix, prefill
from gendistill.inference.step import DecodeStep
from gendistill.inference.stopping import StopStrings
from gendistill.models.attention import SLOTS, attention_switched_to
from gendistill.models.cache import select_rows
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.models.view import as_student
from gendistill.ops.capture import captured

EAGER_STEPS = 4  # decode steps before a graph is captured: replies of a token or two have ended by then
STEPS_PER_CHECK = 8  # decode steps between two looks at which replies have ended, each of which makes the host wait
WORTH_A_GRAPH = 12  # decode steps; capturing costs about two
ALIGNED = 16  # places; a fixed-size cache has a multiple of them
KEPT_ROWS = 8  # of a batch that is kept for the next call of its shape; a larger one holds too much memory
WORTH_ADMITTING = 8  # rows that are free before new prompts are prefilled, or an eighth of all: one by one is dear


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


def can_decode(model: PreTrainedModel) -> bool:
    """Whether `decode` knows the model's layers; transformers' generate() does the rest."""
    return as_student(model) is not None


class Decoding:
    """Replies to prompts, of which as many as there are rows are decoded together.

    Args:
        rows: most replies at a time.
        ends: ids that end a reply.
        pad: id of padding.
        strings: a reply that holds one of them ends too, soon after it: how soon depends on the batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        max_new_tokens: int,
        *,
        ends: Sequence[int],
        pad: int,
        sampling: Sampling | None = None,
        strings: StopStrings | None = None,
    ):
        self.model, self.rows, self.max_new_tokens = model, rows, max_new_tokens
        self.ends, self.pad, self.sampling, self.strings = ends, pad, sampling, strings

    def run(self, prompts: Sequence[list[int]], prefix: Prefix | None = None) -> Iterator[dict[int, list[int]]]:
        """Yields the new ids of replies, by the prompt's index, as they end; with the end, if one came in time."""
        waiting = deque(range(len(prompts)))
        room = room_for(max(map(len, prompts)) + self.max_new_tokens)
        first = [waiting.popleft() for _ in range(min(self.rows, len(waiting)))]
        batch = self._start([prompts[i] for i in first], first, prefix, room)
        while True:
            batch.decode_steps()
            free = batch.ended_rows(self.strings)
            going = len(batch.indices) - len(free)
            if not waiting and not going:
                yield batch.replies_of(free)
                break
            # Each new size copies the caches and captures a new graph: replies leave when half of them have ended.
            if not waiting and going <= len(batch.indices) // 2:
                yield batch.replies_of(free)
                batch.keep([row for row in range(len(batch.indices)) if row not in free])
            if waiting and len(free) >= min(WORTH_ADMITTING, max(1, len(batch.indices) // 8)):
                yield batch.replies_of(free)
                chosen = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
                # Free rows that nobody takes hold replies that have been given out.
                batch.admit(free[: len(chosen)], prefill(self.model, [prompts[i] for i in chosen], prefix), chosen)
                batch.retire(free[len(chosen) :])
        if len(batch.indices) == len(first) <= KEPT_ROWS:
            kept(batch.student)["batch"] = self._key(len(first), room), batch

    def _start(self, prompts: list[list[int]], indices: list[int], prefix: Prefix | None, room: int) -> "DecodingBatch":
        """A batch with the first prompts: that of an earlier call of the same shape, graph and all, if it was kept."""
        student = as_student(self.model)
        # Taken out: two calls at once must not share one.
        key, batch = kept(student).pop("batch", (None, None))
        if key != self._key(len(prompts), room) or batch.packed is not packed(student):
            del batch  # before another cache is made
            return DecodingBatch(student, prefill(self.model, prompts, prefix, room), self, indices)
        batch.how = self
        batch.indices = [None] * len(prompts)
        batch.admit(list(range(len(prompts))), prefill(self.model, prompts, prefix), indices)
        return batch

    def _key(self, rows: int, room: int) -> tuple:
        """What of a batch its graph is made for."""
        sampling = self.sampling and (self.sampling.temperature, self.sampling.top_p)
        return rows, room, self.max_new_tokens, tuple(self.ends), self.pad, sampling


class DecodingBatch:
    """Replies that are decoded together, a token of each at a step.

    Attributes:
        indices: of the prompt in each row; None where the row's reply was given out and nothing took its place.
        replies: [B, steps], the new tokens; padding behind a reply's end.
        counts: [B] int64, the new tokens of each row.
    """

    def __init__(self, student: GendistillForCausalLM, prefilled: Prefilled, how: Decoding, indices: Sequence[int]):
        self.student, self.how, self.cache = student, how, prefilled.cache
        rows, steps, device = len(prefilled.lengths), how.max_new_tokens, prefilled.lengths.device
        self.indices: list[int | None] = list(indices)
        self.ends = torch.tensor(how.ends, device=device)  # [ends]
        self.position = prefilled.lengths.clone()  # [B], of the next token
        self.cache.start = self.position  # the cache's tokens go there
        self.counts = torch.zeros(rows, dtype=torch.long, device=device)
        self.token = torch.full((rows, 1), how.pad, device=device)  # [B, 1], the newest
        self.replies = torch.full((rows, steps), how.pad, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)  # [B]
        # Drawn ahead, [B, steps]: a reply's numbers are its own, in whatever row it is.
        self.draws = None if how.sampling is None else self._draws_of(indices)
        self.packed = packed(student)
        self.step = None if self.packed is None else DecodeStep(student, self.cache, self.packed)
        self.graph = None
        self.eager = EAGER_STEPS  # steps to take before the next capture
        self.left = steps - 1  # steps that the newest reply may take
        self._choose(prefilled.logits)

    def _draws_of(self, indices: Sequence[int]) -> torch.Tensor:
        keys = [self.how.sampling.keys[i] for i in indices]
        return _draws(keys, self.how.max_new_tokens).to(self.position.device)

    def decode_steps(self) -> None:
        """Takes the decode steps up to the next look at the device."""
        # While steps are eager every one is looked at, as short replies should leave before a graph is captured for
        # them. On a CPU a look costs nothing.
        steps = 1 if self.eager or not self.token.is_cuda else STEPS_PER_CHECK
        for _ in range(min(steps, self.left)):
            if self._is_worth_a_graph():
                self._capture()
            if self.graph is None:
                self._step()
                self.eager = max(0, self.eager - 1)
            else:
                self.graph.replay()
            self.left -= 1

    def ended_rows(self, strings: StopStrings | None) -> list[int]:
        """Rows whose replies have ended: by a token, by a stop string, or by the budget. Makes the host wait."""
        if strings:
            counts = self.counts.tolist()
            going = [row for row, done in enumerate(self.done.tolist()) if not done]
            replies = self.replies.tolist()
            new = STEPS_PER_CHECK
            reached = [row for row in going if strings.is_reached(replies[row][: counts[row]], new)]
            self.done[torch.tensor(reached, dtype=torch.long, device=self.done.device)] = True
        return [row for row, done in enumerate(self.done.tolist()) if done]

    def replies_of(self, rows: list[int]) -> dict[int, list[int]]:
        """The new ids in rows, by the prompt's index; of rows whose reply was not given out yet."""
        counts, replies = self.counts.tolist(), self.replies.tolist()
        return {self.indices[row]: replies[row][: counts[row]] for row in rows if self.indices[row] is not None}

    def keep(self, rows: list[int]) -> None:
        """Lets all other replies leave the batch."""
        self.graph = None  # it is of the old shape
        self.eager = 1  # kernels for a new shape must load outside a capture
        self.indices = [self.indices[row] for row in rows]
        index = torch.tensor(rows, dtype=torch.long, device=self.token.device)
        for name in ("position", "counts", "token", "replies", "done", "draws"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[index])
        if rows:
            self.cache = select_rows(self.cache, rows)
            self.cache.start = self.position
            if self.step is not None:
                self.step = DecodeStep(self.student, self.cache, self.packed)

    def admit(self, rows: list[int], prefilled: Prefilled, indices: Sequence[int]) -> None:
        """Puts new prompts into rows whose replies have been given out; all stays at its address."""
        index = torch.tensor(rows, dtype=torch.long, device=self.token.device)
        self.cache.put(index, prefilled.cache)
        for row, number in zip(rows, indices, strict=True):
            self.indices[row] = number
        self.position[index] = prefilled.lengths
        self.counts[index] = 0
        self.replies[index] = self.how.pad
        self.done[index] = False
        if self.draws is not None:
            self.draws[index] = self._draws_of(indices)
        self.left = self.how.max_new_tokens - 1
        self._choose(prefilled.logits, index)

    def retire(self, rows: list[int]) -> None:
        """Marks rows whose replies have been given out, and which stay as they are."""
        for row in rows:
            self.indices[row] = None

    def _is_worth_a_graph(self) -> bool:
        waits = self.graph is not None or self.eager > 0
        return self.token.is_cuda and not waits and self.left >= WORTH_A_GRAPH

    def _capture(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with captured(self.graph):
            self._step()

    def _step(self) -> None:
        """One decode step: the newest tokens enter the cache, and the next are chosen."""
        logits = self._pass() if self.step is None else self.step(self.token, self.position)
        # A reply that has ended stays where it is: its row writes over one place until another prompt takes it.
        self.position += ~self.done
        self._choose(logits)

    def _pass(self) -> torch.Tensor:
        """[B, V]: the logits by the model's own forward pass, whatever its modules are."""
        with attention_switched_to(SLOTS, self.student):
            return self.student(
                input_ids=self.token,
                attention_mask={"full_attention": self.position + 1, "linear_attention": None},
                position_ids=self.position[:, None],
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]

    def _choose(self, logits: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Writes the next token of each reply, or of those in `rows` [N], from logits [B or N, V]."""
        own = slice(None) if rows is None else rows
        counts, done = self.counts[own], self.done[own]  # [B or N]
        if self.how.sampling is None:
            token = logits.argmax(-1)
        else:
            last = self.how.max_new_tokens - 1
            draws = self.draws[own].gather(1, counts.clamp(max=last)[:, None])  # [B or N, 1]
            token = _draw(logits, draws, self.how.sampling)
        token = token.masked_fill(done, self.how.pad)[:, None]
        place = counts.clamp(max=self.how.max_new_tokens - 1)[:, None]
        # A reply that has ended writes what stands there.
        token_or_old = torch.where(done[:, None], self.replies[own].gather(1, place), token)
        self.replies[own] = self.replies[own].scatter(1, place, token_or_old)
        counts = counts + ~done
        self.counts[own] = counts
        self.token[own] = token
        self.done[own] = done | (token == self.ends).any(1) | (counts >= self.how.max_new_tokens)


def room_for(tokens: int) -> int:
    """Places for so many tokens and up to an eighth more, so that calls of similar length have caches of one size."""
    step = max(ALIGNED, 2 ** max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def _draws(keys: Sequence[str], steps: int) -> torch.Tensor:
    """[B, steps] uniform numbers between 0 and 1, each prompt's by its own key."""
    sources = map(random.Random, keys)
    return torch.tensor([[source.random() for _ in range(steps)] for source in sources], dtype=torch.float32)


def _draw(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Top-p sampling, [B, V] -> [B]: the token at which the cumulative probability passes `draws` [B, 1]."""
    probabilities = (logits.float() / sampling.temperature).softmax(-1)  # [B, V]
    if sampling.top_p == 1:
        # Nothing is cut off, so no order is needed: sorting takes as long as the rest of a step. In float64, as sums
        # over so many small numbers may otherwise fall by rounding, and a token of no probability be drawn there.
        reached = probabilities.double().cumsum(-1)  # [B, V]
        index = (reached < draws * reached[:, -1:]).sum(-1)  # [B]
        return index.clamp(max=logits.shape[-1] - 1)
    # Stable, so that equal probabilities come in one order on every device.
    likely, tokens = probabilities.sort(dim=-1, descending=True, stable=True)  # [B, V] each
    before = likely.cumsum(-1) - likely  # [B, V], of all likelier tokens; 0 for the first, which therefore stays
    likely = likely.masked_fill(before >= sampling.top_p, 0)
    reached = likely.cumsum(-1)  # [B, V]
    # Times the whole sum and not divided by it: what is left after the cut need not sum to 1.
    index = (reached < draws * reached[:, -1:]).sum(-1, keepdim=True)  # [B, 1]
    return tokens.gather(-1, index.clamp(max=logits.shape[-1] - 1)).squeeze(-1)
