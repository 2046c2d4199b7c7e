"""How a batch chooses its next tokens: each row greedily or by top-p sampling, with settings of its own.

Settings lie in tensors that are changed in place, so that a row can be given to another request under a CUDA graph.
Only what is computed at all (`Form`) is fixed in a graph.

Shapes: B rows of a batch, N of them, V vocabulary, K likeliest tokens.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gendistill.inference.requests import Likelihood, Request

TOP = 20  # likeliest tokens whose log-probabilities can be asked for


class Form(NamedTuple):
    """What the requests of a batch need to have computed at a step."""

    greedy: bool = False
    draws: bool = False  # samples from all tokens
    cuts: bool = False  # samples with a top-p below 1, for which all probabilities are sorted
    logprobs: bool = False

    @classmethod
    def of(cls, requests: Iterable[Request | None]) -> "Form":
        form = cls()
        for request in requests:
            if request is not None:
                samples = request.temperature > 0
                cuts = samples and request.top_p < 1
                form |= cls(not samples, samples and not cuts, cuts, request.logprobs)
        return form

    def __or__(self, other: "Form") -> "Form":
        return Form(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


class RowSampling:
    """Settings of each row.

    Attributes:
        temperature, top_p: [B, 1] float32.
        is_greedy: [B] bool.
        draws: [B, steps] float32, uniform between 0 and 1, drawn ahead: a reply's numbers are its own.
    """

    def __init__(self, rows: int, steps: int, device: torch.device):
        # Free rows count as greedy.
        self.temperature = torch.ones(rows, 1, device=device)
        self.top_p = torch.ones(rows, 1, device=device)
        self.is_greedy = torch.ones(rows, dtype=torch.bool, device=device)
        self.draws = torch.zeros(rows, steps, device=device)

    def put(self, rows: torch.Tensor, requests: Sequence[Request]) -> None:
        """Takes over the settings of the requests in `rows` [N]."""
        self.is_greedy[rows] = torch.tensor([request.temperature == 0 for request in requests], device=rows.device)
        # A greedy row computes along with the others: what it would draw is not taken.
        settings = torch.tensor([(request.temperature or 1.0, request.top_p) for request in requests])  # [N, 2]
        self.temperature[rows], self.top_p[rows] = settings.to(rows.device)[:, :, None].unbind(1)
        sampled = [place for place, request in enumerate(requests) if request.temperature > 0]
        if sampled:
            draws = uniform_draws([requests[place].key for place in sampled], self.draws.shape[1])
            self.draws[rows[sampled]] = draws.to(rows.device)

    def select(self, rows: torch.Tensor) -> None:
        """Keeps the rows [N], any of them any number of times."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor[rows])

    def lengthen(self, steps: int, requests: Sequence[Request | None]) -> None:
        """Makes the numbers of the requests, one a row, suffice for so many steps."""
        self.draws = F.pad(self.draws, (0, steps - self.draws.shape[1]))
        rows = [row for row, request in enumerate(requests) if request is not None]
        if rows:
            self.put(torch.tensor(rows, device=self.draws.device), [requests[row] for row in rows])

    def choose(
        self, logits: torch.Tensor, counts: torch.Tensor, rows: slice | torch.Tensor, form: Form
    ) -> torch.Tensor:
        """[N]: the next tokens of rows that have `counts` [N] so far, from logits [N, V]."""
        # Computed is only what some row needs, for all rows: which those are, a graph reads on the device.
        chosen: list[tuple[torch.Tensor, torch.Tensor]] = []  # tokens [N], and of which rows they count [N]
        if form.greedy:
            chosen.append((logits.argmax(-1), self.is_greedy[rows]))
        if form.draws or form.cuts:
            draws = self.draws[rows].gather(1, counts.clamp(max=self.draws.shape[1] - 1)[:, None])  # [N, 1]
            probabilities = (logits.float() / self.temperature[rows]).softmax(-1)  # [N, V]
        # Each row by the way that is its own, whatever the others need: a sample does not depend on its batch.
        if form.draws:
            chosen.append((draw_from_all(probabilities, draws), self.top_p[rows][:, 0] == 1))
        if form.cuts:
            top_p = self.top_p[rows]
            chosen.append((draw_from_likeliest(probabilities, draws, top_p), top_p[:, 0] < 1))
        token, _ = chosen.pop()  # where there is one way only, no row is looked at
        for others, own in chosen[::-1]:
            token = torch.where(own, others, token)
        return token


def uniform_draws(keys: Sequence[str], steps: int) -> torch.Tensor:
    """[B, steps] uniform numbers between 0 and 1, each row's by its own key."""
    sources = map(random.Random, keys)
    return torch.tensor([[source.random() for _ in range(steps)] for source in sources], dtype=torch.float32)


def draw_from_all(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Sampling from probabilities [B, V] -> [B]: the token at which their sum, in order of ids, passes `draws` [B, 1].

    Nothing is cut off, so they need not be sorted, which takes as long as the rest of a step.
    """
    # In float64, as sums over so many small numbers may otherwise fall by rounding, and a token of no probability be
    # drawn there.
    reached = probabilities.double().cumsum(-1)  # [B, V]
    index = (reached < draws * reached[:, -1:]).sum(-1)  # [B]
    return index.clamp(max=probabilities.shape[-1] - 1)


def draw_from_likeliest(probabilities: torch.Tensor, draws: torch.Tensor, top_p: torch.Tensor | float) -> torch.Tensor:
    """Top-p (nucleus) sampling from probabilities [B, V] -> [B] (Holtzman et al., arXiv 1904.09751).

    The token at which the sum of the likeliest, which together have the probability `top_p`, passes `draws` [B, 1].
    """
    # Stable, so that equal probabilities come in one order on every device.
    likely, tokens = probabilities.sort(dim=-1, descending=True, stable=True)  # [B, V] each
    before = likely.cumsum(-1) - likely  # [B, V], of all likelier tokens; 0 for the first, which therefore stays
    likely = likely.masked_fill(before >= top_p, 0)
    reached = likely.cumsum(-1)  # [B, V]
    # Times the whole sum and not divided by it: what is left after the cut need not sum to 1.
    index = (reached < draws * reached[:, -1:]).sum(-1, keepdim=True)  # [B, 1]
    return tokens.gather(-1, index.clamp(max=probabilities.shape[-1] - 1)).squeeze(-1)


class RowLikelihoods:
    """Log-probabilities of generated tokens and of the likeliest at each place.

    Attributes:
        chosen: [B, steps + 1]; the last place takes what rows write that have spent their budget.
        top: [B, steps + 1, K].
        tokens: [B, steps + 1, K] int64, whose the log-probabilities in `top` are.
    """

    def __init__(self, rows: int, steps: int, vocabulary: int, device: torch.device):
        top = min(TOP, vocabulary)  # as many for every row: how many a client wants would be another graph
        self.chosen = torch.zeros(rows, steps + 1, device=device)
        self.top = torch.zeros(rows, steps + 1, top, device=device)
        self.tokens = torch.zeros(rows, steps + 1, top, dtype=torch.long, device=device)

    def write(self, logits: torch.Tensor, token: torch.Tensor, counts: torch.Tensor, rows: torch.Tensor) -> None:
        """Takes those of the tokens [N] that come at places `counts` [N] of `rows` [N], from logits [N, V]."""
        # In float32, as in bfloat16 two likely tokens could not be told apart.
        logprobs = logits.float().log_softmax(-1)  # [N, V]
        self.chosen[rows, counts] = logprobs.gather(1, token[:, None])[:, 0]
        self.top[rows, counts], self.tokens[rows, counts] = logprobs.topk(self.top.shape[-1], dim=-1)

    def read(self, row: int, start: int, end: int) -> list[Likelihood]:
        """Those of a row's tokens from `start` up to `end`. Makes the host wait."""
        parts = (part[row, start:end].tolist() for part in (self.chosen, self.tokens, self.top))
        return [Likelihood(own, list(zip(*top, strict=True))) for own, *top in zip(*parts, strict=True)]

    def select(self, rows: torch.Tensor) -> None:
        """Keeps the rows [N], any of them any number of times."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor[rows])

    def lengthen(self, steps: int) -> None:
        """Makes places for replies of so many tokens."""
        more = steps + 1 - self.chosen.shape[1]
        self.chosen = F.pad(self.chosen, (0, more))
        self.top, self.tokens = (F.pad(part, (0, 0, 0, more)) for part in (self.top, self.tokens))
