"""Continuous batching: prompts join the batch as replies leave it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from gendistill.inference.batch import DecodingBatch
from gendistill.inference.kept import kept
from gendistill.inference.packed import packed
from gendistill.inference.prefill import Prefix, prefill
from gendistill.inference.requests import Request, RequestList, RequestQueue, StoppedRequest
from gendistill.inference.sampling import Form
from gendistill.inference.stopping import StopStrings
from gendistill.models.view import as_student

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
    """Whether the loop knows the model's layers; transformers' generate() does the rest."""
    return as_student(model) is not None


class Decoding:
    """Replies to a closed list of prompts that all are answered in one way.

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
        self.loop = ContinuousBatching(model, rows, ends=ends, pad=pad)
        self.max_new_tokens, self.sampling, self.strings = max_new_tokens, sampling, strings

    def run(self, prompts: Sequence[list[int]], prefix: Prefix | None = None) -> Iterator[dict[int, list[int]]]:
        """Yields the new ids of replies, by the prompt's index, as they end; with the end, if one came in time."""
        # By identity: two equal prompts are two requests.
        places = {self._request(prompts[i], i): i for i in range(len(prompts))}
        # Of all prompts, so that the cache need not grow for one that comes later.
        room = room_for(max(map(len, prompts)) + self.max_new_tokens)
        for ended in self.loop.run(RequestList(places), prefix, room):
            yield {places[request]: ids for request, ids in ended.items()}

    def _request(self, prompt: list[int], index: int) -> Request:
        how = {}
        if self.sampling is not None:
            settings = self.sampling
            how = dict(temperature=settings.temperature, top_p=settings.top_p, key=settings.keys[index])
        if self.strings:
            return StoppedRequest(prompt, self.max_new_tokens, self.strings, **how)
        return Request(prompt, self.max_new_tokens, **how)


class ContinuousBatching:
    """The decoding loop: requests of a queue, as many at a time as there are rows.

    Args:
        rows: most replies at a time.
        ends: ids that end a reply.
        pad: id of padding.
    """

    def __init__(self, model: PreTrainedModel, rows: int, *, ends: Sequence[int], pad: int):
        self.model, self.rows, self.ends, self.pad = model, rows, ends, pad

    def run(
        self, queue: RequestQueue, prefix: Prefix | None = None, room: int = 0
    ) -> Iterator[dict[Request, list[int]]]:
        """Yields the new ids of replies as their rows are given to others or the batch ends, until nobody waits.

        Args:
            prefix: what all prompts begin with.
            room: places that the cache has at least.
        """
        first = queue.take(self.rows)
        if not first:
            return
        batch = self._start(first, prefix, room)
        while True:
            batch.decode_steps()
            free = batch.look()
            going = len(batch.requests) - len(free)
            waiting = len(queue)
            if not waiting and not going:
                yield batch.replies_of(free)
                break
            # Each new size copies the caches and captures a new graph: replies leave when half of them have ended.
            if not waiting and going <= len(batch.requests) // 2:
                yield batch.replies_of(free)
                batch.reshape([row for row in range(len(batch.requests)) if row not in free])
            if waiting and self._is_worth_admitting(queue, batch, free):
                yield batch.replies_of(free)
                batch.retire(free)  # those that nobody takes hold replies that have been given out
                self._admit(queue, batch, free, prefix)
        if len(batch.requests) == len(first) <= KEPT_ROWS:
            batch.retire(list(range(len(first))))  # requests and what they hold are not kept
            kept(batch.student)["batch"] = self._key(len(first), batch.room, batch.steps, batch.form), batch

    def _start(self, requests: list[Request], prefix: Prefix | None, room: int) -> DecodingBatch:
        """A batch with the first requests: that of an earlier call of the same shape, graph and all, if it was kept."""
        student = as_student(self.model)
        room, steps = max(room, _room_of(requests)), _steps_of(requests)
        prompts = [request.ids for request in requests]
        # Taken out: two calls at once must not share one.
        key, batch = kept(student).pop("batch", (None, None))
        wanted = self._key(len(requests), room, steps, Form.of(requests))
        if key != wanted or batch.packed is not packed(student):
            del batch  # before another cache is made
            prefilled = prefill(self.model, prompts, prefix, room)
            how = dict(ends=self.ends, pad=self.pad, room=room, steps=steps)
            return DecodingBatch(student, prefilled, requests, **how)
        batch.admit(list(range(len(prompts))), prefill(self.model, prompts, prefix), requests)
        return batch

    def _key(self, rows: int, room: int, steps: int, form: Form) -> tuple:
        """What of a batch its graph is made for."""
        return rows, room, steps, form, tuple(self.ends), self.pad

    def _is_worth_admitting(self, queue: RequestQueue, batch: DecodingBatch, free: list[int]) -> bool:
        size = len(batch.requests)
        # Rows that are free, or could be made.
        enough = 1 if queue.joins_at_once else min(WORTH_ADMITTING, max(1, size // 8))
        return self.rows - (size - len(free)) >= enough

    def _admit(self, queue: RequestQueue, batch: DecodingBatch, free: list[int], prefix: Prefix | None) -> None:
        """Gives requests that wait the free rows, and makes more of them where there may be more.

        What does not fit in memory waits on, while other replies are going; from then on no more rows are made.
        """
        going = len(batch.requests) - len(free)
        requests = queue.take(self.rows - going)
        if not requests:  # all that waited were given up meanwhile
            return
        try:
            # Prefill first: should it run out of memory, the batch is what it was.
            prefilled = prefill(self.model, [request.ids for request in requests], prefix)
            free = self._make_room(batch, free, requests)
        except torch.OutOfMemoryError:
            if not going:
                raise
        else:
            batch.admit(free[: len(requests)], prefilled, requests)
            return
        queue.put_back(requests)
        self.rows = going
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds what was allocated

    def _make_room(self, batch: DecodingBatch, free: list[int], requests: list[Request]) -> list[int]:
        """Makes the batch large enough for the requests; returns its free rows."""
        room, steps = _room_of(requests), _steps_of(requests)
        more = len(requests) - len(free)
        if more <= 0 and room <= batch.room and steps <= batch.steps:
            return free
        size = len(batch.requests)
        if more > 0:  # otherwise it is a longer text or reply that comes
            # In powers of two, so that sizes change seldom.
            more = min(self.rows, 1 << (size + more - 1).bit_length()) - size
        batch.reshape(list(range(size)), max(0, more), room, steps)
        return [*free, *range(size, len(batch.requests))]


def _room_of(requests: Sequence[Request]) -> int:
    return room_for(max(len(request.ids) + request.max_new_tokens for request in requests))


def _steps_of(requests: Sequence[Request]) -> int:
    return max(request.max_new_tokens for request in requests)


def room_for(tokens: int) -> int:
    """Places for so many tokens and up to an eighth more, so that calls of similar length have caches of one size."""
    step = max(ALIGNED, 2 ** max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step
