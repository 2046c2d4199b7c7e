"""Padding in a batch of sequences, as linear layers and windows need to know it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Padding:
    """Which of a call's tokens are padding.

    Attributes:
        valid: [B, T] bool, False for padding.
        order: [B, T] int64, columns in the order in which padding stands behind a sequence's tokens; None: it does.
    """

    valid: torch.Tensor
    order: torch.Tensor | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """[B]: how many tokens of each row are no padding."""
        return self.valid.sum(1)

    @classmethod
    def from_mask(cls, mask: torch.Tensor) -> "Padding | None":
        """Padding anywhere, by a mask [B, T] that is 0 there; None if there is none and that is worth a look."""
        valid = mask.bool()
        if valid.shape[1] == 1:  # it stands behind nothing, and the device need not be asked
            return cls(valid)
        # While a graph is compiled for any mask there is nothing to look at.
        if not torch.compiler.is_compiling() and valid.all():
            return None
        return cls(valid, (~valid).int().argsort(dim=1, stable=True))

    def to_the_end(self, x: torch.Tensor) -> torch.Tensor:
        """[B, G, T, D] with every sequence's padding moved behind its tokens."""
        if self.order is None:
            return x
        return x.gather(2, self.order[:, None, :, None].expand_as(x))

    def put_back(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, H, D] as `to_the_end` left it, with every token where it was."""
        if self.order is None:
            return x
        return torch.empty_like(x).scatter(1, self.order[:, :, None, None].expand_as(x), x)
