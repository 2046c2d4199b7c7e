"""Chooses the form of the recurrence by where the tensors live, never by what can be imported."""

from collections.abc import Callable
from typing import get_args

import torch

from gendistill.errors import UserError
from gendistill.names import Backend
from gendistill.ops.chunked import chunked_linear_attention
from gendistill.ops.decay import DecayGate, log_decay
from gendistill.ops.documents import Documents
from gendistill.ops.kernels import kernel_linear_attention, load_kernels
from gendistill.ops.reference import recurrent_linear_attention

_FORMS = {"reference": recurrent_linear_attention, "chunked": chunked_linear_attention}
_chosen: Backend = "auto"


def set_backend(backend: Backend) -> None:
    """Chooses the form that `linear_attention` takes from now on in this process.

    auto: fla's kernels for CUDA tensors; elsewhere the recurrence for one token and chunks for more.

    Raises:
        UserError: there is no such back end, or kernels are asked for and there is no CUDA device or no fla-core.
    """
    global _chosen
    if backend not in get_args(Backend):
        raise UserError(f"backend '{backend}': choose one of {', '.join(get_args(Backend))}")
    if backend == "kernels":
        if not torch.cuda.is_available():
            raise UserError(
                "backend 'kernels' needs a CUDA device, and torch sees none. Use auto, chunked or reference."
            )
        load_kernels()
    _chosen = backend


def takes_kernels(x: torch.Tensor) -> bool:
    """Whether the chosen back end runs kernels on this tensor."""
    return x.is_cuda and _chosen not in _FORMS


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | DecayGate,
    beta: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`recurrent_linear_attention` by the chosen back end.

    Args:
        g: log decays, or what they come from: faster kernels are for bounded ones, and in training begin and end there.

    Raises:
        UserError: kernels are asked for by name and the tensors are not on a CUDA device, or fla-core is missing.
    """
    if takes_kernels(q):
        return kernel_linear_attention(q, k, v, g, beta, initial_state, documents)
    if _chosen == "kernels":
        raise UserError(
            f"backend 'kernels' needs CUDA tensors, these are on {q.device}. Use auto, chunked or reference."
        )
    by_length: Callable = recurrent_linear_attention if q.shape[1] == 1 else chunked_linear_attention
    return _FORMS.get(_chosen, by_length)(q, k, v, log_decay(g), beta, initial_state, documents)
