"""Rows of a packed data set as micro-batches, prepared ahead of the step that needs them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch

from gendistill.data.dataset import PackedDataset
from gendistill.ops import Documents
from gendistill.recipe.stage import Stage

STEPS_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B rows of T tokens; everything about it is known on the host before the device sees it.

    Attributes:
        input_ids: [B, T] int64.
        position_ids: [B, T] int64; None if every row is one document.
        cu_seqlens: [N + 1] int64, boundaries of documents as in `Documents`; None if every row is one document.
        valid_mask: [B, T] float32, 1 for the tokens of documents and 0 for filler.
        predictors: [P] int64, places in the flattened batch whose next token is a loss target.
        targets: [P] int64, those next tokens.
        weights: [P] float32, 1; 0 for entries that only fill up to a fixed shape.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    valid_mask: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
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


def rows_as_tensors(dataset: PackedDataset, size: int, device: str) -> list[dict[str, torch.Tensor]]:
    """The whole data set in pieces of at most `size` rows: input_ids, position_ids and loss_mask, int64 [B, T]."""
    pieces = (dataset[row : row + size] for row in range(0, len(dataset), size))
    return [{name: torch.from_numpy(a).long().to(device) for name, a in arrays.items()} for arrays in pieces]


class Loader:
    """Cuts the rows of each step into micro-batches, in a thread, ahead of time.

    Args:
        dataset: rows in the order of consumption; step s takes rows s * sequences_per_step onwards.
        rank, processes: each process takes an equal, contiguous share of a step's rows.
        fixed_shape: all batches of equal rows get tensors of one of a few shapes, for CUDA graphs.
    """

    def __init__(
        self, dataset: PackedDataset, stage: Stage, *, rank: int = 0, processes: int = 1, fixed_shape: bool = False
    ):
        self.dataset, self.stage, self.fixed_shape = dataset, stage, fixed_shape
        self.share = stage.sequences_per_step // processes
        self.offset = rank * self.share
        self.packed, self.documents = _documents(dataset, stage.micro_batch) if fixed_shape else (None, None)

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
        start = index * self.stage.sequences_per_step
        rows = self.dataset[start : start + self.stage.sequences_per_step]
        ends_in_logits = self.stage.compares == "end_to_end"
        counts = rows["loss_mask"][:, 1:] if ends_in_logits else _valid_mask(rows["loss_mask"])
        mine = range(self.offset, self.offset + self.share)
        batches = []
        for first in range(mine.start, mine.stop, self.stage.micro_batch):
            last = min(first + self.stage.micro_batch, mine.stop)
            batch = self._batch({name: array[first:last] for name, array in rows.items()})
            batches.append(batch.map(torch.Tensor.pin_memory) if torch.cuda.is_available() else batch)
        return Step(index, batches, int(counts.sum()))

    def _batch(self, rows: dict[str, np.ndarray]) -> Batch:
        ids, positions, mask = (rows[name].astype(np.int64) for name in ("input_ids", "position_ids", "loss_mask"))
        predictors = np.flatnonzero(np.pad(mask[:, 1:], ((0, 0), (0, 1))))
        weights = np.ones(len(predictors), np.float32)
        borders = np.append(np.flatnonzero(positions == 0), positions.size)
        packed = len(borders) > len(ids) + 1
        if self.fixed_shape:
            packed = self.packed
            filled = -len(predictors) % max(1, positions.size // 8)
            predictors, weights = np.pad(predictors, (0, filled)), np.pad(weights, (0, filled))
            borders = np.pad(borders, (0, max(0, self.documents + 1 - len(borders))), constant_values=positions.size)
        targets = ids.flatten()[np.minimum(predictors + 1, ids.size - 1)]
        return Batch(
            input_ids=torch.from_numpy(ids),
            position_ids=torch.from_numpy(positions) if packed else None,
            cu_seqlens=torch.from_numpy(borders) if packed else None,
            valid_mask=torch.from_numpy(_valid_mask(mask)),
            predictors=torch.from_numpy(predictors),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            fixed_shape=self.fixed_shape,
        )


def _valid_mask(loss_mask: np.ndarray) -> np.ndarray:
    """[B, T] float32: tokens that are learnt or help to predict one that is; filler does neither."""
    valid_mask = loss_mask.astype(np.float32)
    valid_mask[:, :-1] = np.maximum(valid_mask[:, :-1], loss_mask[:, 1:])
    return valid_mask


def _documents(dataset: PackedDataset, size: int) -> tuple[bool, int]:
    """Whether any row holds more than one document, and the most documents in `size` rows one after another."""
    starts = ((dataset[row : row + 1024]["position_ids"] == 0).sum(1) for row in range(0, len(dataset), 1024))
    in_row = np.concatenate(list(starts))
    most = np.convolve(in_row, np.ones(min(size, len(in_row)), int), "valid").max()
    return bool(in_row.max() > 1), int(most)
