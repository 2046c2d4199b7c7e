"""Chooses the form of the recurrence by where the tensors live, never by what can be imported."""

import torch

from gendistill.ops.chunked import chunked_gated_delta_rule
from gendistill.ops.documents import Documents
from gendistill.ops.kernels import kernel_gated_delta_rule
from gendistill.ops.reference import recurrent_gated_delta_rule


def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`recurrent_gated_delta_rule` by the fastest form for the tensors' device: kernels on CUDA, chunks elsewhere."""
    if q.is_cuda:
        form = kernel_gated_delta_rule
    elif q.shape[1] == 1:
        form = recurrent_gated_delta_rule
    else:
        form = chunked_gated_delta_rule
    return form(q, k, v, g, beta, initial_state, documents)
