"""Boundaries between documents packed into one sequence."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Documents:
    """Where documents start in a batch of packed sequences; a sequence's first token always starts one.

    One batch, three views of it: masks need `starts`, convolutions `positions`, kernels `cu_seqlens`.

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

        Returns None if every sequence is one document, so that the plain path can be taken.
        """
        continues = torch.zeros_like(position_ids, dtype=torch.bool)  # [B, T]
        continues[:, 1:] = position_ids[:, 1:] == position_ids[:, :-1] + 1
        starts = ~continues
        if not starts[:, 1:].any():  # the host waits for the device here
            return None
        index = torch.arange(starts.shape[1], device=starts.device)  # [T]
        # A token's distance to the last start before it; position ids themselves may start at any number.
        positions = index - torch.where(starts, index, 0).cummax(dim=1).values  # [B, T]
        first_tokens = starts.flatten().nonzero().flatten()  # [N], in the flattened batch
        cu_seqlens = torch.cat([first_tokens, first_tokens.new_tensor([starts.numel()])])  # [N + 1]
        return cls(starts, positions, cu_seqlens)
