"""Borders between documents that share a row."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Documents:
    """Where documents start in a batch of packed rows; a row's first token always starts one.

    Attributes:
        starts: [B, T] bool, True at each document's first token.
        positions: [B, T] int64, position of each token in its document.
        cu_seqlens: [N + 1] int64, boundaries of the N documents in the flattened batch.
        fixed_shape: cu_seqlens ends in empty documents, so that its length says nothing about the batch: the kernels of
            Kimi Delta Attention then read nothing on the host, and CUDA graphs can capture them.
    """

    starts: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    fixed_shape: bool = False

    @classmethod
    def from_position_ids(cls, position_ids: torch.Tensor) -> "Documents | None":
        """Boundaries by position ids [B, T], as transformers' masks see them: a document continues while they count up.

        Returns None if every row is one document that starts at position 0, so that the plain path can be taken.
        """
        goes_on = torch.zeros_like(position_ids, dtype=torch.bool)
        goes_on[:, 1:] = position_ids[:, 1:] == position_ids[:, :-1] + 1
        starts = ~goes_on
        if not starts[:, 1:].any():
            return None
        index = torch.arange(starts.shape[1], device=starts.device)
        positions = index - torch.where(starts, index, 0).cummax(dim=1).values
        borders = starts.flatten().nonzero().flatten()
        cu_seqlens = torch.cat([borders, borders.new_tensor([starts.numel()])])
        return cls(starts, positions, cu_seqlens)
