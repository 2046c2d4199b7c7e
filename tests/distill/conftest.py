"""A small teacher and its student, with packed batches of random tokens."""

import pytest
import torch

from gendistill.recipe import Stage


@pytest.fixture
def make_stage():
    def make(**settings):
        defaults = dict(
            objective="forward_kl",
            train=["mixer", "mlp", "norm"],
            data="text",
            tokens=24 * 8 * 4,
            sequence_length=24,
            sequences_per_step=8,
            micro_batch=8,
            learning_rate=1e-3,
        )
        return Stage(**(defaults | settings))

    return make


class Rows:
    """A data set in memory: packed random documents, some of whose tokens do not count."""

    def __init__(self, rows, length=24, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(2, 97, (rows, length), generator=generator)
        cut = torch.randint(1, length, (rows,), generator=generator)
        index = torch.arange(length)[None]
        self.positions = torch.where(index < cut[:, None], index, index - cut[:, None])
        counts = torch.rand(rows, length, generator=generator) < 0.4
        self.mask = counts & (self.positions > 0)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, rows):
        columns = {"input_ids": self.ids, "position_ids": self.positions, "loss_mask": self.mask}
        return {name: column[rows].numpy() for name, column in columns.items()}


@pytest.fixture
def rows():
    return Rows
