"""The forget gate: how much of its state a token makes a layer forget."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

KERNEL_BOUND = -5.0  # log decays not below this let kernels use the tensor cores inside a chunk


class DecayGate(NamedTuple):
    """A log decay and all it comes from: -A softplus(raw + dt_bias) or, bounded, bound * sigmoid(A (raw + dt_bias)).

    A is exp(A_log). The first form is Mamba's (arXiv 2312.00752), and Kimi Delta Attention's (arXiv 2510.26692).

    Attributes:
        raw: [B, T, H, K] per channel or [B, T, H] per head, what is projected from a token.
        A_log: [H].
        dt_bias: [H * K] or [H].
        bound: below 0, the log decay's lowest value; None for the first form.
        mask: [B, T], 0 for padding, which makes a state forget nothing.
    """

    raw: torch.Tensor
    A_log: torch.Tensor
    dt_bias: torch.Tensor
    bound: float | None = None
    mask: torch.Tensor | None = None

    @property
    def is_bounded(self) -> bool:
        """See the function of that name, which needs no gate."""
        return is_bounded(self.bound)

    def log_decay(self) -> torch.Tensor:
        """As `raw`, in float32 at least: bf16 would round a decay close to 1 to 1, and the state never forget."""
        shape = self.raw.shape[2:]  # [H, K] or [H]
        raw = self.raw.to(torch.promote_types(self.raw.dtype, torch.float32)) + self.dt_bias.view(shape)
        A = self.A_log.exp().view(-1, *[1] * (len(shape) - 1))  # [H, 1] or [H]
        log_decay = -A * F.softplus(raw) if self.bound is None else self.bound * torch.sigmoid(A * raw)
        # A log decay of 0 at padding: the state passes it by unchanged.
        return log_decay if self.mask is None else log_decay * self.mask.view(*self.mask.shape[:2], *[1] * len(shape))


def is_bounded(bound: float | None) -> bool:
    """Whether with such a bound no token forgets faster than the kernels for bounded gates can take."""
    return bound is not None and bound >= KERNEL_BOUND


def log_decay(g: torch.Tensor | DecayGate) -> torch.Tensor:
    """The log decay of a forget gate; one that is ready already stays as it is."""
    return g.log_decay() if isinstance(g, DecayGate) else g
