"""Packed sequences of a data set as micro-batches, prepared ahead of the step that needs them.

Shapes: B packed sequences of T tokens, N documents in them, P predictors.

A predictor is a position whose next token is a loss target. Only predictors are projected to the vocabulary, so a batch
lists them instead of weighting all positions: on prompts and padding no logits are spent.
"""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import get_args

import numpy as np
import torch

from gendistill.data.dataset import PackedDataset
from gendistill.names import Pass
from gendistill.ops import Documents
from gendistill.recipe.stage import Stage

STEPS_AHEAD = 2  # made before they are asked for, so that a slow read does not hold up the device
# With fixed shapes, predictors are filled up to a multiple of an eighth of a batch's tokens: few shapes, so few CUDA
# graphs to capture, and never more than an eighth of the logits for nothing.
PREDICTOR_SIZES = 8
# What the loss on distant answers is measured with: the student as it is, and with its windows switched off.
AS_IS, WITHOUT_WINDOW = "as_is", "without_window"
ROWS_AT_ONCE = 64  # of the memory-mapped data set, when all of it is looked through; of 32K tokens they are 19 MB


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B sequences of T tokens; all about it is known on the host before the device sees it.

    Attributes:
        input_ids: [B, T] int64.
        position_ids: [B, T] int64; None if every sequence is one document.
        cu_seqlens: [N + 1] int64, boundaries of documents as in `Documents`; None if every sequence is one document.
        valid_mask: [B, T] float32, 1 for the tokens of documents and 0 for padding.
        predictors: [P] int64, indices into the flattened batch, of positions whose next token is a loss target.
        targets: [P] int64, those next tokens.
        weights: [P] float32, 1; 0 for entries that only fill up to a fixed shape.
        without_window: [B] bool, sequences in which the student's windows are dropped; None: in none.
        fixed_shape: entries fill it up; kernels must not read from the device how much of it is real.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    valid_mask: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    without_window: torch.Tensor | None = None
    fixed_shape: bool = False

    @property
    def documents(self) -> Documents | None:
        if self.cu_seqlens is None:
            return None
        return Documents(self.position_ids == 0, self.position_ids, self.cu_seqlens, self.fixed_shape)

    def tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def map(self, change) -> "Batch":
        """The batch with `change` applied to each of its tensors."""
        return Batch(**(vars(self) | {name: change(tensor) for name, tensor in self.tensors().items()}))


@dataclass(frozen=True)
class Step:
    """One process's share of an optimizer step."""

    index: int
    batches: list[Batch]
    loss_tokens: int  # of the whole step, over all processes
    replies: Mapping[str, int] = field(default_factory=dict)  # counts of what the student wrote for it, likewise


@dataclass(frozen=True)
class HeldOut:
    """One process's share of the packed sequences of records that no stage trains on.

    Attributes:
        batches: as many on every process; windows are dropped in none of their sequences, or in all.
        loss_tokens: of all processes' sequences.
    """

    batches: list[Batch]
    loss_tokens: int


def rows_as_tensors(dataset: PackedDataset, size: int, device: str) -> list[dict[str, torch.Tensor]]:
    """The whole data set, at most `size` sequences at a time: input_ids, position_ids and loss_mask, int64 [B, T]."""
    pieces = (dataset[row : row + size] for row in range(0, len(dataset), size))
    return [{name: torch.from_numpy(a).long().to(device) for name, a in arrays.items()} for arrays in pieces]


def ways_to_measure(windows: bool) -> list[str]:
    """With what the loss on distant answers is measured, of a student with or without windows beside its recurrence."""
    return [AS_IS, WITHOUT_WINDOW] if windows else [AS_IS]


class Loader:
    """Cuts the sequences of each step into micro-batches, in a thread, ahead of time.

    Args:
        dataset: sequences in the order of consumption; step s takes those from s * sequences_per_step onwards.
        held_out: sequences of records that no stage trains on; None if there are none.
        distant: sequences with distant answers that no stage trains on; None if there are none.
        windows: whether a window stands beside the student's recurrence, which can do without it.
        rank, processes: each process takes an equal, contiguous share of a step's sequences.
        fixed_shape: all batches of as many sequences get tensors of one of a few shapes, for CUDA graphs and
            compiled layers.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        stage: Stage,
        *,
        held_out: PackedDataset | None = None,
        distant: PackedDataset | None = None,
        windows: bool = False,
        rank: int = 0,
        processes: int = 1,
        fixed_shape: bool = False,
    ):
        self.dataset, self.stage, self.fixed_shape = dataset, stage, fixed_shape
        self.share = stage.sequences_per_step // processes
        self.offset = rank * self.share
        self.packed, self.documents = None, None
        if fixed_shape:
            # Of all that there is: what one batch has too much of would change its shapes.
            of_each = [_documents(rows, stage.micro_batch) for rows in (dataset, held_out, distant) if rows is not None]
            packed, documents = zip(*of_each, strict=True)
            self.packed, self.documents = any(packed), max(documents)
        # Where some batch says of each sequence whether it does without windows, all do: one graph for all of them.
        self.says_windows = bool(stage.window_dropout) or (windows and distant is not None)
        self.held_out = None if held_out is None else self._held_out(held_out, rank, processes)
        self.distant: dict[str, HeldOut] = {}
        for way in [] if distant is None else ways_to_measure(windows):
            self.distant[way] = self._held_out(distant, rank, processes, dropped=way == WITHOUT_WINDOW)

    def steps(self, first: int) -> Iterator[Step]:
        """Steps from `first` to the stage's last, in pinned memory where there is a CUDA device."""
        with ThreadPoolExecutor(1) as pool:
            waiting: deque = deque()
            for index in range(first, self.stage.steps):
                waiting.append(pool.submit(self.step, index))
                if len(waiting) > STEPS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def step(self, index: int) -> Step:
        """The micro-batches that this process runs of a step."""
        return self._step(index, self._rows(index))

    def _rows(self, index: int) -> dict[str, np.ndarray]:
        """A step's sequences of all processes, [S, T] each."""
        start = index * self.stage.sequences_per_step
        return self.dataset[start : start + self.stage.sequences_per_step]

    def _step(self, index: int, rows: Mapping[str, np.ndarray], replies: Mapping[str, int] | None = None) -> Step:
        """This process's share of the step of sequences [S, T]."""
        # Every process counts the whole step by itself, so the loss's divisor needs no communication.
        loss_tokens = int(self._counts(rows["loss_mask"]).sum())
        start = index * self.stage.sequences_per_step
        mine = range(self.offset, self.offset + self.share)
        numbers = range(start, start + self.stage.sequences_per_step)
        return Step(index, self._cut(rows, mine, self._without_window(numbers)), loss_tokens, replies or {})

    def _held_out(self, dataset: PackedDataset, rank: int, processes: int, dropped: bool = False) -> HeldOut:
        rows = dataset[:]  # each [H, T]
        loss_tokens = int(self._counts(rows["loss_mask"]).sum())
        # Each process runs as many sequences, since they wait for each other: the first one again, counting nothing.
        missing = -len(dataset) % processes
        rows = {name: np.concatenate([array] + [array[:1]] * missing) for name, array in rows.items()}
        rows["loss_mask"][len(dataset) :] = 0
        share = len(rows["loss_mask"]) // processes
        without_window = torch.full((share * processes,), dropped) if self.says_windows else None
        return HeldOut(self._cut(rows, range(rank * share, (rank + 1) * share), without_window), loss_tokens)

    def _cut(self, rows: Mapping[str, np.ndarray], mine: range, without_window: torch.Tensor | None) -> list[Batch]:
        """Micro-batches of some of the rows [S, T]; `without_window` [S] is of all of them."""
        batches = []
        for first in range(mine.start, mine.stop, self.stage.micro_batch):
            part = slice(first, min(first + self.stage.micro_batch, mine.stop))
            dropped = None if without_window is None else without_window[part]
            batch = self._batch({name: array[part] for name, array in rows.items()}, dropped)
            # Pinned memory lets the copy to the device run beside the arithmetic.
            batches.append(batch.map(torch.Tensor.pin_memory) if torch.cuda.is_available() else batch)
        return batches

    def _counts(self, loss_mask: np.ndarray) -> np.ndarray:
        """Which tokens the loss is divided by: [S, T - 1] or [S, T]."""
        match self.stage.compares:
            case "end_to_end":
                return loss_mask[:, 1:]  # nothing predicts a sequence's first token
            case "mixer" | "block":
                return _valid_mask(loss_mask)
        raise ValueError(f"unknown pass '{self.stage.compares}'; known: {', '.join(get_args(Pass))}")

    def _batch(self, rows: dict[str, np.ndarray], without_window: torch.Tensor | None) -> Batch:
        """The sequences of some rows [B, T], and in which of them [B] windows are dropped."""
        batch = make_batch(rows, self.documents if self.fixed_shape else None, self.packed)
        return replace(batch, without_window=without_window)

    def _without_window(self, rows: range) -> torch.Tensor | None:
        """[S]: whether each sequence does without windows, drawn by its number in the data set alone."""
        share = self.stage.window_dropout
        if not self.says_windows:
            return None
        return torch.tensor([random.Random(f"window dropout {row}").random() < share for row in rows])


def make_batch(rows: Mapping[str, np.ndarray], documents: int | None = None, packed: bool | None = None) -> Batch:
    """The batch of some sequences, [B, T] each: input_ids, position_ids and loss_mask.

    Args:
        documents: fill it up to a fixed shape, with boundaries of so many documents; None: leave it as it is.
        packed: give positions and boundaries with it; None: if there are more documents than sequences.
    """
    ids = rows["input_ids"].astype(np.int64)  # [B, T]
    positions = rows["position_ids"].astype(np.int64)  # [B, T]
    mask = rows["loss_mask"].astype(np.int64)  # [B, T]
    # The mask is of the tokens that are predicted. Their predictors stand one before, in the same sequence: the
    # last position of each predicts nothing.
    predicts = np.pad(mask[:, 1:], ((0, 0), (0, 1)))  # [B, T]
    predictors = np.flatnonzero(predicts)  # [P]
    weights = np.ones(len(predictors), np.float32)  # [P]
    boundaries = np.append(np.flatnonzero(positions == 0), positions.size)  # [N + 1]
    # Positions and boundaries of sequences of one document each say nothing, and cost a slower way through attention.
    if packed is None:
        packed = len(boundaries) > len(ids) + 1
    if documents is not None:
        predictors, weights = _fill_up(predictors, weights, positions.size)
        # Documents without tokens behind the last one, up to the most that any batch has.
        missing = max(0, documents + 1 - len(boundaries))
        boundaries = np.pad(boundaries, (0, missing), constant_values=positions.size)
    # Those that only fill up predict whatever comes; beyond the batch nothing does.
    following = np.minimum(predictors + 1, ids.size - 1)  # [P]
    targets = ids.flatten()[following]  # [P]
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions) if packed else None,
        cu_seqlens=torch.from_numpy(boundaries) if packed else None,
        valid_mask=torch.from_numpy(_valid_mask(mask)),
        predictors=torch.from_numpy(predictors),
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        fixed_shape=documents is not None,
    )


def _fill_up(predictors: np.ndarray, weights: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictors and weights [P] with entries of weight 0, up to the next of the few sizes that there are."""
    size = max(1, tokens // PREDICTOR_SIZES)
    missing = -len(predictors) % size
    return np.pad(predictors, (0, missing)), np.pad(weights, (0, missing))


def _valid_mask(loss_mask: np.ndarray) -> np.ndarray:
    """[B, T] float32: tokens that are learnt or help to predict one that is; padding does neither."""
    valid_mask = loss_mask.astype(np.float32)
    # A document's first token is never learnt, but it predicts the second.
    valid_mask[:, :-1] = np.maximum(valid_mask[:, :-1], loss_mask[:, 1:])
    return valid_mask


def _documents(dataset: PackedDataset, size: int) -> tuple[bool, int]:
    """Whether any sequence holds more than one document, and the most documents in `size` sequences in a row."""
    pieces = range(0, len(dataset), ROWS_AT_ONCE)
    starts = ((dataset[row : row + ROWS_AT_ONCE]["position_ids"] == 0).sum(1) for row in pieces)
    in_sequence = np.concatenate(list(starts))  # [sequences]
    window = np.ones(min(size, len(in_sequence)), int)
    most = np.convolve(in_sequence, window, "valid").max()  # of the sums over `size` neighbours
    return bool(in_sequence.max() > 1), int(most)
