"""The engine: one thread that owns the model, and continuous batching over the requests that wait.

The event loop hands requests in under a lock; tokens go out to it by `call_soon_threadsafe`, all that came meanwhile at
once. Text is made there, so that it is made while the device computes the next tokens.
"""

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from gendistill.inference.decoding import ContinuousBatching
from gendistill.inference.requests import Likelihood, Request
from gendistill.serve.errors import ApiError


class Piece(NamedTuple):
    """What came of a reply since the last piece.

    Attributes:
        ids: new tokens, an end of sequence among them.
        end: None until it has ended; "stop" by a token, "length" by the budget, "error" or "cancelled" otherwise.
        error: why no more comes, if it is the server's fault.
    """

    ids: list[int]
    likelihoods: list[Likelihood] = []
    end: str | None = None
    error: str = ""


class LiveRequest(Request):
    """A request of somebody who waits for its tokens.

    Args:
        ends: ids that end this reply.
        deliver: given each piece, on the event loop.
        is_streamed: whether tokens are delivered as they come, or all together at the end: pieces that nobody sees
            would keep the interpreter busy while the device waits for its next steps.

    Attributes:
        first_token: when its first token was known, by `time.monotonic`.
    """

    is_watched = True

    def __init__(
        self,
        ids: list[int],
        budget: int,
        *,
        ends: Collection[int],
        deliver: Callable[[Piece], None],
        is_streamed: bool,
        **how,
    ):
        super().__init__(ids, budget, **how)
        self.ends, self.deliver, self.is_streamed = frozenset(ends), deliver, is_streamed
        self.engine: Engine | None = None  # once it is submitted
        self.is_cancelled = False
        self.first_token: float | None = None
        self.said: list[int] = []  # and not delivered yet
        self.likelihoods: list[Likelihood] = []

    def look(self, new: list[int], likelihoods: list[Likelihood], is_done: bool) -> bool:
        if self.first_token is None:
            self.first_token = time.monotonic()
        if self.is_cancelled:
            # Nobody reads it; the engine is to know that the request is over.
            self.engine.tell(self, Piece([], end="cancelled"))
            return True
        end = "length" if is_done else None
        # Tokens that end this reply alone (a stop string that is an added token) the batch does not know, and may have
        # gone on behind.
        at = next((place for place, id in enumerate(new) if id in self.ends), None)
        if at is not None:
            new, likelihoods, end = new[: at + 1], likelihoods[: at + 1], "stop"
        self.said += new
        self.likelihoods += likelihoods
        if self.is_streamed or end is not None:
            self.engine.tell(self, Piece(self.said, self.likelihoods, end))
            self.said, self.likelihoods = [], []  # new lists: the old ones are the other thread's now
        return end is not None


class Engine:
    """Answers requests, `rows` at a time; a `RequestQueue` of those that wait.

    Args:
        ends: ids that end every reply.
        pad: id of padding.
        queue: requests that may wait, beside those that have a row.
    """

    joins_at_once = True  # somebody waits for its first token

    def __init__(self, model: PreTrainedModel, *, ends: Sequence[int], pad: int, rows: int, queue: int):
        self.model, self.ends, self.pad, self.rows, self.queue = model, ends, pad, rows, queue
        self.waiting: deque[LiveRequest] = deque()
        self.running: set[LiveRequest] = set()
        self.is_draining = self.is_stopped = False
        # Guards all of the above; the engine's thread waits on it while there is nothing to do.
        self.changed = threading.Condition()
        self.fitting = rows  # rows that memory suffices for, as far as is known
        self.loop: asyncio.AbstractEventLoop | None = None
        # Needs no lock: a deque's append and popleft are atomic.
        self.outbox: deque[tuple[LiveRequest, Piece]] = deque()
        self.is_flush_due = False
        # A daemon, so that a second signal ends the process in the middle of a reply.
        self.thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # Called on the event loop.

    def start(self) -> None:
        """Starts the thread; tokens will go to the event loop that runs now."""
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    @property
    def open(self) -> int:
        """Requests that wait or have a row."""
        return len(self.waiting) + len(self.running)

    @property
    def capacity(self) -> int:
        """Requests that may be open at a time."""
        return self.rows + self.queue

    def submit(self, requests: Sequence[LiveRequest]) -> None:
        """Takes requests in, all or none.

        Raises:
            ApiError: 503: the server is shutting down; 429: too many wait; 400: they are more than could ever wait.
        """
        with self.changed:
            if self.is_draining:
                raise ApiError(503, "the server is shutting down; ask another", "shutting_down")
            if len(requests) > self.capacity:
                message = f"{len(requests)} replies at once (prompts times n) are more than {self.capacity}"
                raise ApiError(400, f"{message}, which is all this server has room for; ask for fewer", "too_many", "n")
            # Rows count too, whether their requests have been taken yet or not: so `--queue 0` serves without a queue.
            if self.open + len(requests) > self.capacity:
                message = f"{self.open} requests are open, {len(requests)} more are too many for {self.rows} rows and a"
                raise ApiError(429, f"{message} queue of {self.queue}; try again later", "queue_full")
            for request in requests:
                request.engine = self
            self.waiting.extend(requests)
            self.changed.notify()

    def cancel(self, request: LiveRequest) -> None:
        """Takes a request out of the queue, or has its row given away at the next look."""
        with self.changed:
            request.is_cancelled = True
            # One that has a row is told at the next look; one that was answered is in neither place.
            if request in self.waiting:
                self.waiting.remove(request)

    def drain(self) -> None:
        """Takes no more requests; those that are open are answered, those in the queue too."""
        with self.changed:
            self.is_draining = True

    def stop(self) -> None:
        """Drains, and ends the thread once nothing is open."""
        with self.changed:
            self.is_draining = self.is_stopped = True
            self.changed.notify()
        self.thread.join()

    def _flush(self) -> None:
        self.is_flush_due = False  # first: what is put in the outbox from here on has a flush of its own
        while self.outbox:
            request, piece = self.outbox.popleft()
            request.deliver(piece)

    # Called on the engine's thread.

    def __len__(self) -> int:
        return len(self.waiting)

    def take(self, most: int) -> list[LiveRequest]:
        """The next requests, as a `RequestQueue`."""
        with self.changed:
            taken = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
            # Under the same lock, so that a request is never in neither place and `open` never too small.
            self.running.update(taken)
        return taken

    def put_back(self, requests: Sequence[LiveRequest]) -> None:
        """Gets requests back, as a `RequestQueue`."""
        with self.changed:
            self.running.difference_update(requests)
            self.waiting.extendleft(reversed(requests))

    def tell(self, request: LiveRequest, piece: Piece) -> None:
        """Sends a piece to the event loop; one with an end is the request's last."""
        if piece.end is not None:
            with self.changed:
                self.running.discard(request)
        self.outbox.append((request, piece))
        # Waking the event loop writes to a socket, so once for all that comes until it has run. The loop is closed if a
        # second signal came: then nobody listens.
        if not self.is_flush_due and not self.loop.is_closed():
            self.is_flush_due = True
            self.loop.call_soon_threadsafe(self._flush)

    @torch.inference_mode()
    def _work(self) -> None:
        # Inference mode belongs to a thread, so it is entered here.
        while self._wait():
            self._answer_waiting()

    def _wait(self) -> bool:
        """Waits for requests; False once the engine is to stop and has none left."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.is_stopped)
            return bool(self.waiting)

    def _answer_waiting(self) -> None:
        """Answers requests until none is left; whatever fails ends those that run, and not the server."""
        # Ends when nobody waits or runs, and gives its memory back, but for a small batch (see `ContinuousBatching`).
        loop = ContinuousBatching(self.model, self.fitting, ends=self.ends, pad=self.pad)
        try:
            for _ in loop.run(self):
                pass  # requests were told of their tokens at each look
            self.fitting = self.rows
            return
        except torch.OutOfMemoryError:
            self._make_smaller()
        except Exception as failure:  # a bug: whoever runs the server sees it, clients that something failed
            traceback.print_exc()
            self._fail(list(self.running), f"the server failed ({type(failure).__name__}); send the request again")
        torch.cuda.empty_cache()  # outside the handlers, whose tracebacks hold what the batch had allocated

    def _make_smaller(self) -> None:
        """After running out of memory: half as many rows, for those whose reply has not begun."""
        # A reply that has begun cannot begin again: its client has seen a part of it.
        fresh = [request for request in self.running if request.first_token is None]
        if len(self.running) == 1:  # it does not fit even alone
            fresh = []
        self.fitting = max(1, len(fresh) // 2)
        self.put_back(fresh)
        longest = max((len(request.ids) for request in self.running), default=0)
        self._fail(list(self.running), f"out of memory with a prompt of {longest} tokens; shorten it or try again")

    def _fail(self, requests: Sequence[LiveRequest], error: str) -> None:
        for request in requests:
            self.tell(request, Piece([], end="error", error=error))
