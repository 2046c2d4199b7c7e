"""Chooses the backend of the recurrence by where the tensors live, never by what can be imported."""

from collections.abc import Callable

import torch

from gendistill.errors import UserError
from gendistill.names import BACKENDS, look_up
from gendistill.ops.chunked import chunked_linear_attention
from gendistill.ops.decay import DecayGate, log_decay
from gendistill.ops.documents import Documents
from gendistill.ops.kernels import kernel_linear_attention, load_kernels
from gendistill.ops.reference import recurrent_linear_attention

# Those in plain PyTorch, which run on any device. A dictionary, so that tests can watch which one is taken.
_PLAIN: dict[str, Callable] = {"reference": recurrent_linear_attention, "chunked": chunked_linear_attention}
_chosen = "auto"  # of the whole process: a model's layers are called by transformers, which passes no backend on


def set_backend(backend: str) -> None:
    """Chooses the backend that `linear_attention` takes from now on in this process.

    auto: fla's kernels for CUDA tensors; elsewhere as plain: the reference for one token and chunks for more.

    Raises:
        UserError: there is no such backend, or kernels are asked for and there is no CUDA device or no fla-core.
    """
    global _chosen
    look_up(BACKENDS, backend, "backend")
    if backend == "kernels":
        if not torch.cuda.is_available():
            raise UserError(
                "backend 'kernels' needs a CUDA device, and torch sees none. Use auto, chunked or reference."
            )
        load_kernels()  # now, and not in the middle of the first step, does it show whether they can be loaded
    _chosen = backend


def takes_kernels(x: torch.Tensor) -> bool:
    """Whether the chosen backend runs kernels on this tensor."""
    return x.is_cuda and _chosen in ("auto", "kernels")


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | DecayGate,
    beta: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`recurrent_linear_attention` by the chosen backend.

    Args:
        g: log decays, or what they come from: faster kernels are for bounded ones, and in training begin and end there.

    Raises:
        UserError: kernels are asked for by name and the tensors are not on a CUDA device, or fla-core is missing.
    """
    if takes_kernels(q):
        return kernel_linear_attention(q, k, v, g, beta, initial_state, documents)
    if _chosen == "kernels":  # silently slow would be worse than no answer
        raise UserError(
            f"backend 'kernels' needs CUDA tensors, these are on {q.device}. Use auto, chunked or reference."
        )
    if _chosen in ("auto", "plain"):  # a chunk of one token costs more than the token
        plain = recurrent_linear_attention if q.shape[1] == 1 else chunked_linear_attention
    else:
        plain = _PLAIN[_chosen]
    return plain(q, k, v, log_decay(g), beta, initial_state, documents)
