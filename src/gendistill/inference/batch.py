"""Replies that are decoded together, a token of each at a step; on CUDA a step is a CUDA graph.

At these sizes the host cannot give out a step's launches as fast as the device runs them, so all that a step reads or
writes stays at one address and is changed in place. Rows have lengths of their own (see `prefill`), so that a new
prompt can take the row of a reply that has ended, and the graph continues.

Shapes: B rows of the batch, S places of the cache, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from gendistill.inference.packed import packed
from gendistill.inference.prefill import Prefilled
from gendistill.inference.requests import Request
from gendistill.inference.sampling import Form, RowLikelihoods, RowSampling
from gendistill.inference.step import DecodeStep
from gendistill.models.attention import SLOTS, attention_switched_to
from gendistill.models.cache import select_rows
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops.capture import captured

EAGER_STEPS = 4  # decode steps before a graph is captured: replies of a token or two have ended by then
STEPS_PER_CHECK = 8  # decode steps between two looks at which replies have ended, each of which makes the host wait
MOST_NEW = STEPS_PER_CHECK + 1  # tokens of a row between two looks: the first comes of the prompt itself
WORTH_A_GRAPH = 12  # decode steps; capturing costs about two


class DecodingBatch:
    """Replies that are decoded together, a token of each at a step.

    Args:
        room: places S of the cache.
        steps: tokens of the longest reply, at least.

    Attributes:
        requests: in each row; None where the row's reply was given out and nothing took its place.
        replies: [B, steps], the new tokens; padding behind a reply's end.
        counts: [B] int64, the new tokens of each row.
        limit: [B] int64, the budget of each row's reply.
        told: the new tokens of each row that its request has been told of; None once it was told the last.
        form: what its requests need at a step, which is what a graph is captured for.
    """

    def __init__(
        self,
        student: GendistillForCausalLM,
        prefilled: Prefilled,
        requests: Sequence[Request],
        *,
        ends: Sequence[int],
        pad: int,
        room: int,
        steps: int = 0,
    ):
        self.student, self.pad, self.cache = student, pad, prefilled.cache
        rows, device = len(requests), prefilled.lengths.device
        self.room = room
        self.steps = max(steps, *(request.max_new_tokens for request in requests))
        # Every row begins free and is filled as later ones are, by `_fill`.
        self.requests: list[Request | None] = [None] * rows
        self.told: list[int | None] = [None] * rows
        self.form = Form()
        self.ends = torch.tensor(ends, device=device)  # [ends]
        self.position = torch.zeros(rows, dtype=torch.long, device=device)  # [B], of the next token
        self.cache.start = self.position  # the cache's tokens go there
        self.counts = torch.zeros(rows, dtype=torch.long, device=device)
        self.limit = torch.zeros(rows, dtype=torch.long, device=device)
        self.token = torch.full((rows, 1), pad, device=device)  # [B, 1], the newest
        self.replies = torch.full((rows, self.steps), pad, device=device)
        self.done = torch.ones(rows, dtype=torch.bool, device=device)  # [B]
        self.sampling = RowSampling(rows, self.steps, device)
        self.likelihoods: RowLikelihoods | None = None  # until a request asks for them
        self.packed = packed(student)
        self.step = None if self.packed is None else DecodeStep(student, self.cache, self.packed)
        self.graph = None
        self.eager = EAGER_STEPS  # steps to take before the next capture
        self.left = 0  # steps that the newest reply may take
        self._fill(list(range(rows)), prefilled, requests)

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

    def look(self) -> list[int]:
        """Rows whose replies have ended: by a token, by the budget, or because their request says so, which is told
        here of its new tokens. Makes the host wait."""
        # Otherwise one number a row comes to the host, and no token.
        if any(request is not None and request.is_watched for request in self.requests):
            self._tell()
        return [row for row, done in enumerate(self.done.tolist()) if done]

    def _tell(self) -> None:
        last = self.counts[:, None] + torch.arange(-MOST_NEW, 0, device=self.counts.device)  # [B, MOST_NEW] places
        newest = self.replies.gather(1, last.clamp(min=0))  # [B, MOST_NEW]
        # One tensor, for each makes the host wait.
        state = torch.cat([self.counts[:, None], self.done[:, None].long(), newest], dim=1).tolist()
        over = []  # rows whose requests say so
        for row, (count, done, *tokens) in enumerate(state):
            request, told = self.requests[row], self.told[row]
            if request is None or told is None or not request.is_watched:
                continue
            new = tokens[len(tokens) - (count - told) :]  # the last ones, those that it was not told of
            likelihoods = self.likelihoods.read(row, told, count) if request.logprobs else []
            self.told[row] = None if done else count
            if request.look(new, likelihoods, bool(done)) and not done:
                over.append(row)
                self.told[row] = None
        if over:
            self.done[torch.tensor(over, device=self.done.device)] = True

    def replies_of(self, rows: list[int]) -> dict[Request, list[int]]:
        """The new ids in rows, by their requests; of rows whose reply was not given out yet."""
        rows = [row for row in rows if self.requests[row] is not None]
        if not rows:
            return {}
        # No more than these replies have: a server's batch has room for far longer ones.
        counts = self.counts[rows].tolist()
        replies = self.replies[rows, : max(counts)].tolist()
        ids = [reply[:count] for reply, count in zip(replies, counts, strict=True)]
        return {self.requests[row]: own for row, own in zip(rows, ids, strict=True)}

    def reshape(self, rows: list[int], free: int = 0, room: int = 0, steps: int = 0) -> None:
        """Lets all other replies leave the batch, and makes room for more, for longer texts and longer replies.

        Args:
            rows: those that stay.
            free: rows to be added, which wait for requests.
            room, steps: at least so many; see the class.
        """
        self.graph = None  # it is of the old shape
        self.eager = 1  # kernels for a new shape must load outside a capture
        # Free rows begin as copies of some row: what is in them does not count until a prompt takes them.
        index = rows + [0] * free
        # First, since this may run out of memory: then the batch is what it was.
        cache = select_rows(self.cache, index)
        cache.resize(max(room, self.room))
        self.cache, self.room = cache, max(room, self.room)
        self.requests = [self.requests[row] for row in rows] + [None] * free
        self.told = [self.told[row] for row in rows] + [None] * free
        chosen = torch.tensor(index, dtype=torch.long, device=self.token.device)
        for name in ("position", "counts", "limit", "token", "replies", "done"):
            setattr(self, name, getattr(self, name)[chosen])
        self.done[len(rows) :] = True
        self.sampling.select(chosen)
        if self.likelihoods is not None:
            self.likelihoods.select(chosen)
        if steps > self.steps:
            self._lengthen(steps)
        # Here it may become less, since a new graph is captured anyway.
        self.form = Form.of(self.requests)
        self.cache.start = self.position
        if self.step is not None:
            self.step = DecodeStep(self.student, self.cache, self.packed)

    def _lengthen(self, steps: int) -> None:
        # Only behind what is there, so that all places stay what they are.
        self.replies = F.pad(self.replies, (0, steps - self.steps), value=self.pad)
        self.sampling.lengthen(steps, self.requests)
        if self.likelihoods is not None:
            self.likelihoods.lengthen(steps)
        self.steps = steps

    def admit(self, rows: list[int], prefilled: Prefilled, requests: Sequence[Request]) -> None:
        """Puts new requests into rows whose replies have been given out; all stays at its address."""
        self.cache.put(torch.tensor(rows, dtype=torch.long, device=self.token.device), prefilled.cache)
        self._fill(rows, prefilled, requests)

    def _fill(self, rows: list[int], prefilled: Prefilled, requests: Sequence[Request]) -> None:
        """What `admit` does, with prompts that are in the cache."""
        index = torch.tensor(rows, dtype=torch.long, device=self.token.device)
        for row, request in zip(rows, requests, strict=True):
            self.requests[row], self.told[row] = request, 0
        # What a step computes only ever becomes more, until the batch changes its shape: each change is a new graph.
        form = self.form | Form.of(requests)
        if form != self.form:
            self.graph, self.form = None, form
            self.eager = max(1, self.eager)  # kernels that were not needed so far must load outside a capture
        if form.logprobs and self.likelihoods is None:
            vocabulary = prefilled.logits.shape[-1]
            self.likelihoods = RowLikelihoods(len(self.token), self.steps, vocabulary, self.token.device)
        self.position[index] = prefilled.lengths
        self.counts[index] = 0
        self.limit[index] = torch.tensor([request.max_new_tokens for request in requests], device=index.device)
        self.replies[index] = self.pad
        self.done[index] = False
        self.sampling.put(index, requests)
        self.left = max(self.left, *(request.max_new_tokens - 1 for request in requests))
        self._choose(prefilled.logits, index)

    def retire(self, rows: list[int]) -> None:
        """Marks rows whose replies have been given out, and which stay as they are."""
        for row in rows:
            self.requests[row] = None

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
        token = self.sampling.choose(logits, counts, own, self.form)
        if self.form.logprobs:
            # Before the count is raised: it is the place of this token.
            index = torch.arange(len(counts), device=counts.device) if rows is None else rows
            self.likelihoods.write(logits, token, counts, index)
        token = token.masked_fill(done, self.pad)[:, None]
        place = counts.clamp(max=self.steps - 1)[:, None]
        # A reply that has ended writes what stands there.
        token_or_old = torch.where(done[:, None], self.replies[own].gather(1, place), token)
        self.replies[own] = self.replies[own].scatter(1, place, token_or_old)
        counts = counts + ~done
        self.counts[own] = counts
        self.token[own] = token
        self.done[own] = done | (token == self.ends).any(1) | (counts >= self.limit[own])
