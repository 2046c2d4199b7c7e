"""Requests: prompts, each with how it is to be answered; and where the decoding loop gets them from."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from gendistill.inference.stopping import StopStrings


class Likelihood(NamedTuple):
    """Log-probability of a generated token under the model itself, before temperature and top-p.

    Attributes:
        top: the likeliest tokens of that place with theirs, the likeliest first.
    """

    logprob: float
    top: list[tuple[int, float]]


class Request:
    """A prompt and how it is to be answered. A reply depends on these alone, not on the batch it is in.

    Attributes:
        ids: of the prompt.
        max_new_tokens: budget of the reply, its end included.
        temperature: divides the logits; 0 is greedy.
        top_p: drawn are the likeliest tokens that together have this probability; 1 cuts nothing off.
        key: seeds the reply's own random numbers.
        logprobs: whether `look` is to be told of log-probabilities.
        is_watched: whether `look` is to be called at all, for which tokens come to the host.
    """

    is_watched = False  # a closed list reads replies once they have ended

    def __init__(
        self,
        ids: list[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        key: str = "",
        logprobs: bool = False,
    ):
        self.ids, self.max_new_tokens = ids, max_new_tokens
        self.temperature, self.top_p, self.key, self.logprobs = temperature, top_p, key, logprobs

    def look(self, new: list[int], likelihoods: list[Likelihood], is_done: bool) -> bool:
        """Told every few steps of the reply's new tokens, its end among them; True ends the reply here.

        Args:
            likelihoods: of each new token, if the request asks for them.
            is_done: the last look: the reply has ended by a token, or its budget is spent.
        """
        return False


class StoppedRequest(Request):
    """A request whose reply ends soon after it holds a stop string: how soon depends on the batch."""

    is_watched = True

    def __init__(self, ids: list[int], max_new_tokens: int, strings: StopStrings, **how):
        super().__init__(ids, max_new_tokens, **how)
        self.strings = strings
        self.said: list[int] = []

    def look(self, new: list[int], likelihoods: list[Likelihood], is_done: bool) -> bool:
        self.said += new
        # All that was said before holds none, so only its end has to be decoded.
        return self.strings.is_reached(self.said, len(new))


class RequestQueue(Protocol):
    """Requests on their way into a batch; the loop asks at every look.

    Attributes:
        joins_at_once: whether a request takes a free row at the next look, for the sake of its latency, or waits until
            several are free, for throughput: prompts prefilled one by one cost more.
    """

    joins_at_once: bool

    def __len__(self) -> int:
        """Requests that wait now."""

    def take(self, most: int) -> list[Request]:
        """The next requests, which wait no longer; up to `most`, maybe none."""

    def put_back(self, requests: Sequence[Request]) -> None:
        """Gets requests back that did not fit in memory, to be the next ones again."""


class RequestList:
    """A closed list of requests as a `RequestQueue`."""

    joins_at_once = False

    def __init__(self, requests: Iterable[Request]):
        self.waiting = deque(requests)

    def __len__(self) -> int:
        return len(self.waiting)

    def take(self, most: int) -> list[Request]:
        # In the order given: `generate` puts the longest prompts first.
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]

    def put_back(self, requests: Sequence[Request]) -> None:
        self.waiting.extendleft(reversed(requests))
