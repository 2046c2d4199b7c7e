"""One call of a client: its replies, as many as prompts times n, from tokens to text."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from gendistill.serve.engine import Engine, LiveRequest, Piece
from gendistill.serve.errors import ApiError
from gendistill.serve.metrics import Metrics
from gendistill.serve.protocol import Body
from gendistill.serve.text import ReplyText, Token


class Delta(NamedTuple):
    """What came of a reply.

    Attributes:
        index: of the reply.
        tokens: whose text this is, if log-probabilities were asked for.
        finish: None until it has ended; "stop" by an end of sequence or a stop string, "length" by the budget.
    """

    index: int
    text: str
    tokens: list[Token]
    finish: str | None


class Call:
    """The replies that a body asks for.

    Args:
        budgets: new tokens of each prompt's replies.
        ends: ids that end these replies.
        seed: a reply's random numbers depend on it and on the reply's index.

    Attributes:
        prompt_tokens, completion_tokens: for the usage; an end of sequence counts, what is behind a stop string does
            not.
        is_over: whether all replies have ended.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        metrics: Metrics,
        body: Body,
        prompts: Sequence[list[int]],
        budgets: Sequence[int],
        ends: Sequence[int],
        seed: int,
    ):
        self.engine, self.metrics = engine, metrics
        # One for all replies of the call, so that a stream has them in the order in which they come. It needs no limit:
        # where a client reads slowly, what waits is no more than its budget.
        self.inbox: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.requests: list[LiveRequest] = []
        self.texts: list[ReplyText] = []
        # Pieces as they come where the client sees them, or where a stop string may end the reply in the middle.
        is_streamed = body.stream or bool(body.stop)
        settings = dict(temperature=body.temperature, top_p=body.top_p, logprobs=body.top is not None)
        for ids, budget in zip(prompts, budgets, strict=True):
            for _ in range(body.n):
                index = len(self.requests)
                # The index too, or the n samples of a prompt would be the same.
                how = dict(ends=ends, key=f"{seed} {index}", deliver=partial(self._deliver, index), **settings)
                how |= dict(is_streamed=is_streamed)
                self.requests.append(LiveRequest(ids, budget, **how))
                self.texts.append(ReplyText(tokenizer, body.stop))
        self.prompt_tokens = sum(map(len, prompts))  # each prompt once, however many replies it has
        self.completion_tokens = 0
        self.is_over = False
        self.began = time.monotonic()

    def _deliver(self, index: int, piece: Piece) -> None:
        self.inbox.put_nowait((index, piece))

    def submit(self) -> None:
        """Hands the requests to the engine.

        Raises:
            ApiError: see `Engine.submit`.
        """
        self.engine.submit(self.requests)
        # Only what was taken in counts.
        self.metrics.prompt_tokens += self.prompt_tokens

    def cancel(self) -> None:
        """Has all rows given away whose replies have not ended."""
        for request in self.requests:
            self.engine.cancel(request)

    async def deltas(self) -> AsyncIterator[Delta]:
        """What comes of the replies, in any order, until all have ended.

        Raises:
            ApiError: 500: the server failed.
        """
        going = set(range(len(self.requests)))
        while going:
            index, piece = await self.inbox.get()
            if index not in going:  # behind a stop string, until the engine has looked
                continue
            if piece.end == "error":
                self.is_over = True  # for all of them: the others' rows are given away by whoever reads this
                raise ApiError(500, piece.error, "server_error")
            delta = self._delta(index, piece)
            if delta.finish is not None:
                going.discard(index)
            self.is_over = not going
            yield delta
        self.metrics.duration.observe(time.monotonic() - self.began)
        # When the engine had it, whether it was sent at once or at the end.
        first = min(request.first_token for request in self.requests)
        self.metrics.first_token.observe(first - self.began)

    def _delta(self, index: int, piece: Piece) -> Delta:
        ids, reply = piece.ids, self.texts[index]
        before = reply.count
        # The token that ends a reply is counted, and is no text.
        said = ids[:-1] if piece.end == "stop" else ids
        text, tokens = reply.add(said, piece.likelihoods[: len(said)], is_last=piece.end is not None)
        finish = piece.end
        new = reply.count - before
        if reply.is_stopped:
            # The engine knows no text: this is how it learns that the row is free.
            self.engine.cancel(self.requests[index])
            finish = "stop"
        elif piece.end == "stop":
            new += 1
        self.completion_tokens += new
        self.metrics.generated_tokens += new
        return Delta(index, text, tokens, finish)
