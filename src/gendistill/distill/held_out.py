"""Losses on what no stage trains on, measured between two steps of the loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gendistill.models.modeling import GendistillForCausalLM


@dataclass(frozen=True)
class HeldOutLosses:
    """Losses on what no stage trains on, on their way to the host.

    Attributes:
        records: on records held out; None if there are none.
        distant: on distant answers, by what the student has for them; empty if there are none.
    """

    records: torch.Tensor | None
    distant: dict[str, torch.Tensor]

    def to_numbers(self) -> tuple[float | None, dict[str, float] | None]:
        """Of the records, and of the distant answers; waits for the device."""
        # A run without distant answers has lines as before there were any.
        records = None if self.records is None else self.records.item()
        return records, {name: loss.item() for name, loss in self.distant.items()} or None


@contextmanager
def without_dropout(student: GendistillForCausalLM) -> Iterator[None]:
    """Inside the block the student's attention drops nothing; all else is as in training."""
    before = student.config.attention_dropout
    student.config.attention_dropout = 0.0
    try:
        yield
    finally:
        student.config.attention_dropout = before
