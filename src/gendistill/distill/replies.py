"""Replies that a student writes while it trains: their prompts, how they are written, counted, laid out and kept.

In a packed sequence each conversation's last reply gives place to the student's own. Whatever comes of it depends on
the sequence's number in the data set and on the weights alone, not on how a step is cut or over how many processes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.initialization import no_init_weights

from gendistill.analysis.repetition import repeats
from gendistill.data.dataset import PackedDataset
from gendistill.data.packing import Piece, lay_out_row, make_piece
from gendistill.distributed import as_rank_zero_says, is_rank_zero
from gendistill.errors import UserError
from gendistill.files import checked_line, make_folder, read_checked_line
from gendistill.inference.decoding import Sampling
from gendistill.inference.generation import sample_ids
from gendistill.inference.kept import release
from gendistill.models.modeling import GendistillForCausalLM, describe
from gendistill.recipe.stage import OnPolicy

ROWS_LOOKED_AT = 64  # packed sequences, to see how long prompts are
Rows = Mapping[str, np.ndarray]  # input_ids, position_ids and loss_mask, [S, T] each


@dataclass(frozen=True)
class ReplyTokens:
    """What of a tokenizer replies are written with.

    Attributes:
        ends: ids that end a reply.
        pad: id of padding.
        decode: ids to text.
    """

    ends: Sequence[int]
    pad: int
    decode: Callable[[list[int]], str]


@dataclass(frozen=True)
class Prompt:
    """What a reply is written to.

    Attributes:
        row: number of its packed sequence in the data set.
        place: which of the sequence's conversations it is.
        reference: tokens of the reply that the data have, its end included.
    """

    row: int
    place: int
    ids: list[int]
    reference: int


def prompts_of(rows: Rows, first: int) -> Iterator[list[Prompt]]:
    """The prompts of each packed sequence, in its order; `first` is the number of the first sequence."""
    for row, (ids, positions, mask) in enumerate(
        zip(rows["input_ids"], rows["position_ids"], rows["loss_mask"], strict=True)
    ):
        starts = np.flatnonzero(positions == 0)
        # Each ends where the next begins, the last one with the sequence.
        documents = [slice(*ends) for ends in zip(starts, [*starts[1:], len(ids)], strict=True)]
        prompts = []
        for place, document in enumerate(documents):
            targets = mask[document] > 0  # [tokens of the document]
            if not targets.any():  # padding
                continue
            last = int(np.flatnonzero(targets)[-1])
            # Behind the last token before the last reply; a document's first token is never a target.
            begin = int(np.flatnonzero(~targets[:last])[-1]) + 1
            prompts.append(Prompt(first + row, place, ids[document][:begin].tolist(), last + 1 - begin))
        yield prompts


def check_prompts(name: str, dataset: PackedDataset, settings: OnPolicy) -> None:
    """Raises UserError if most prompts are so long that a packed sequence has no room for replies to them."""
    most, length = settings.new_tokens[1], dataset.sequence_length
    found = [len(prompt.ids) for prompts in prompts_of(dataset[:ROWS_LOOKED_AT], 0) for prompt in prompts]
    too_long = sum(length - tokens < most for tokens in found)
    if 2 * too_long > len(found):
        raise UserError(
            f"stages.{name}: {too_long} of {len(found)} prompts leave no room for new_tokens {most} in sequence_length "
            f"{length}; they have {median(found):g} tokens at the median. Take a longer sequence_length, shorter "
            "replies, or a mixture of shorter prompts"
        )


class ReplyWriter:
    """Writes replies with the weights that a student in training has at the moment.

    They are read where they lie, by the decoding loop. Of a sharded student each process has a whole copy, filled anew
    before each use: processes end their replies at different steps, and so cannot gather weights while they write.

    Args:
        dtype: of the arithmetic.
    """

    def __init__(self, student: GendistillForCausalLM, tokens: ReplyTokens, dtype: torch.dtype):
        self.student, self.tokens = student, tokens
        # Shares of FSDP's are DTensors; on one process there are none.
        is_sharded = any(isinstance(parameter, DTensor) for parameter in student.parameters())
        self.copy = _empty_copy(student, dtype) if is_sharded else None

    def write(self, prompts: Sequence[list[int]], new_tokens: int, temperature: float, keys: Sequence[str]) -> list:
        """The new ids of a reply to each prompt, at most so many, its end included; all processes must call it.

        Args:
            keys: one for each prompt; with the prompt and the weights they decide the reply.
        """
        self._gather()
        if not prompts:
            return []
        model = self.student if self.copy is None else self.copy
        how = dict(ends=self.tokens.ends, pad=self.tokens.pad, sampling=Sampling(temperature, 1.0, keys))
        try:
            with evaluating(model):
                return sample_ids(model, prompts, new_tokens, **how)
        finally:
            # Training wants the memory, and the next step has other weights and shapes.
            release(model)

    @torch.no_grad()
    def _gather(self) -> None:
        if self.copy is None:
            return
        # All processes gather, in one order; also one that has nothing to write.
        for own, sharded in zip(self.copy.parameters(), self.student.parameters(), strict=True):
            own.copy_(sharded.full_tensor() if isinstance(sharded, DTensor) else sharded)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model has no dropout, and checkpoints no activations, which would forbid caches."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _empty_copy(student: GendistillForCausalLM, dtype: torch.dtype) -> GendistillForCausalLM:
    device = next(student.parameters()).device
    # Random numbers for weights that are written over before they are read would take as long as a step.
    with torch.device(device), no_init_weights():
        copy = GendistillForCausalLM._from_config(student.config)
    copy.tie_weights()
    for name, parameter in copy.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if describe(name).stays_float32 else dtype)
    return copy.requires_grad_(False)


def lay_out(row: Rows, prompts: Sequence[Prompt], replies: Sequence[list[int]], pad: int) -> dict[str, np.ndarray]:
    """The packed sequence [T] of prompts with their replies, of which the replies' tokens are loss targets.

    What reaches over the sequence's end is cut off, and a conversation of which no token of the reply would be left is
    left out: a reply's beginning is worth as much as the rest of it.
    """
    length = len(row["input_ids"])
    pieces: list[Piece] = []
    room = length
    for prompt, reply in zip(prompts, replies, strict=True):
        if room <= len(prompt.ids):
            continue  # a shorter one behind it may still fit
        ids = [*prompt.ids, *reply][:room]  # of the reply at least one token
        mask = [0] * len(prompt.ids) + [1] * (len(ids) - len(prompt.ids))
        pieces.append(make_piece(ids, mask))
        room -= len(ids)
    return lay_out_row(pieces, length, pad)


# What is counted of a step's replies.
COUNTS = {
    "written": "replies",
    "ended_early": "at half the length of the data's reply, or before",
    "at_limit": "not ended within their budget",
    "looping": "of those, caught in a repetition loop",
    "tokens": "of all replies, their ends included",
}


def count_replies(
    prompts: Sequence[Prompt], replies: Sequence[list[int]], new_tokens: int, tokens: ReplyTokens
) -> dict[str, int]:
    """`COUNTS` of replies of at most `new_tokens`."""
    counts = dict.fromkeys(COUNTS, 0)
    for prompt, reply in zip(prompts, replies, strict=True):
        has_ended = reply[-1] in tokens.ends  # a reply has one token at least
        counts["written"] += 1
        counts["tokens"] += len(reply)
        counts["ended_early"] += has_ended and 2 * len(reply) <= prompt.reference
        counts["at_limit"] += len(reply) == new_tokens and not has_ended
        counts["looping"] += not has_ended and repeats(tokens.decode(reply))  # one that ended has left its loop
    return counts


def describe_counts(counts: Mapping[str, int]) -> str:
    """ ", 320 replies of 41 tokens: 3 % ended early, ..." for a line of progress; "" where there are none."""
    written = counts.get("written", 0)
    if not written:
        return ""
    shares = {name: f"{counts[name] / written:.0%}" for name in ("ended_early", "at_limit", "looping")}
    return (
        f"; {written:,} replies of {counts['tokens'] / written:.0f} tokens: {shares['ended_early']} ended early, "
        f"{shares['at_limit']} at the limit, {shares['looping']} looping"
    )


class ReplyLog:
    """replies.jsonl of a stage: a line a step with what the student wrote for it.

    So a stage that was killed resumes with the very replies that it had, and they can be read.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str]):
        """With another fingerprint replies are of another student, and are dropped."""
        self.path = path
        self.key = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
        self.found: dict[int, dict[tuple[int, int], list[int]]] = {}

    def open(self, first: int) -> None:
        """Reads the replies of steps from `first` on; all processes must call it."""
        self.found = as_rank_zero_says(lambda: self._read(first))

    def _read(self, first: int) -> dict[int, dict[tuple[int, int], list[int]]]:
        if not self.path.exists():
            return {}
        found, end = {}, 0  # end: of what is whole and this trajectory's own
        with self.path.open("rb") as file:
            for line in file:
                # JSON may be whole without its line break, but then another line would be put behind it.
                record = read_checked_line(line.removesuffix(b"\n")) if line.endswith(b"\n") else None
                if record is None or record["key"] != self.key:
                    break  # what stands behind it was written later, and is no better
                end += len(line)
                if record["step"] >= first:
                    found[record["step"]] = {(row, place): ids for row, place, ids in record["replies"]}
        # Cut back, so that the next line begins at the start of one.
        with self.path.open("r+b") as file:
            file.truncate(end)
        return found

    def add(self, step: int, replies: Mapping[tuple[int, int], list[int]]) -> None:
        """Writes a step's replies, by row and place."""
        if not is_rank_zero():
            return
        # A list of lists: JSON's keys are texts.
        written = [[row, place, ids] for (row, place), ids in replies.items()]
        make_folder(self.path.parent)
        with self.path.open("a") as file:
            file.write(checked_line({"key": self.key, "step": step, "replies": written}))
