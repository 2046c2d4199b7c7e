"""Losses over the vocabulary, fused with the projections to it: no [tokens, vocabulary] tensor is ever kept.

Each is a sum over tokens; z are logits, p = softmax(z_teacher / T), q = softmax(z_student / T), m = (p + q) / 2:

    forward_kl      T^2 sum p log(p / q)
    reverse_kl      T^2 sum q log(q / p)
    jensen_shannon  T^2 (sum p log(p / m) + sum q log(q / m)) / 2
    cross_entropy   -log softmax(z_student)[next token]

T is the temperature; the factor T^2 keeps the gradient's size (Hinton et al., arXiv 1503.02531).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import torch
import torch.nn.functional as F

from gendistill.distill import divergence_kernels
from gendistill.names import DIVERGENCES

CHUNK = 1024  # tokens whose logits are in memory at once
LOG_2 = math.log(2)


def vocabulary_losses(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    targets: torch.Tensor,
    token_weights: torch.Tensor,
    *,
    terms: Mapping[str, float],
    vocabulary: int,
    temperature: float,
) -> torch.Tensor:
    """Sums of the terms, [terms] in float32 or better; `student` is overwritten with the gradient of their mixture.

    Args:
        student, teacher: logits [n, V] and [n, V']; the teacher's only if a divergence is among the terms.
        targets: [n], the next tokens.
        token_weights: [n], what each token counts.
        terms: names and weights.
        vocabulary: entries beyond it are padding of the embedding, and take no part.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    logits = student[:, :vocabulary].to(dtype)
    if set(terms) & set(DIVERGENCES):
        both = (logits, teacher[:, :vocabulary].to(dtype))
        if temperature != 1:  # a division by one keeps torch.compile from finding maximum and sum in one pass
            both = [side / temperature for side in both]
        log_q, log_p = (F.log_softmax(side, dim=-1) for side in both)
        q, p = log_q.exp(), log_p.exp()
    sums, gradient = [], torch.zeros((), dtype=dtype, device=student.device)
    for name, weight in terms.items():
        if name == "forward_kl":
            values, slope = (p * (log_p - log_q)).sum(-1), q - p
        elif name == "reverse_kl":
            values = (q * (log_q - log_p)).sum(-1)
            slope = q * (log_q - log_p - values[:, None])
        elif name == "jensen_shannon":
            log_m = torch.logaddexp(log_p, log_q) - LOG_2
            from_q = (q * (log_q - log_m)).sum(-1)
            values = ((p * (log_p - log_m)).sum(-1) + from_q) / 2
            slope = q * (log_q - log_m - from_q[:, None]) / 2
        else:
            log_likelihood = F.log_softmax(logits, dim=-1)
            is_target = torch.arange(vocabulary, device=student.device) == targets[:, None]
            values = -log_likelihood.gather(1, targets[:, None])[:, 0]
            slope = log_likelihood.exp() - is_target.to(dtype)
        if name in DIVERGENCES:
            values, slope = values * temperature**2, slope * temperature
        sums.append((values * token_weights).sum())
        gradient = gradient + weight * slope
    student[:, :vocabulary] = (gradient * token_weights[:, None]).to(student.dtype)
    student[:, vocabulary:] = 0
    return torch.stack(sums)


def fused_losses(terms: Iterable[str]) -> Callable[..., torch.Tensor]:
    """`vocabulary_losses` on CUDA: our kernel if it has these terms, otherwise compiled."""
    if divergence_kernels.triton is not None and divergence_kernels.TERMS.issuperset(terms):
        return divergence_kernels.kernel_vocabulary_losses
    return compiled_losses()


@cache
def compiled_losses() -> Callable[..., torch.Tensor]:
    """`vocabulary_losses`, compiled.

    Rows are long: unsplit, a row's maximum, sum and gradient are one kernel that reads it twice and not four times.
    """
    return torch.compile(vocabulary_losses, dynamic=False, options={"split_reductions": False})


class VocabularyLoss(torch.autograd.Function):
    """Projections and losses together, a chunk of tokens at a time, gradients ready in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, teacher_hidden, teacher_weight, targets, token_weights, settings, fuse):
        """The mixture of the terms, and their sums [terms] (without gradients).

        Args:
            hidden, weight: [N, D] and [V, D] of the student.
            teacher_hidden, teacher_weight: the teacher's, or None without divergences.
            targets, token_weights: [N].
            settings: keyword arguments of `vocabulary_losses`.
            fuse: fuse the arithmetic between the projections (CUDA).
        """
        losses = fused_losses(settings["terms"]) if fuse else vocabulary_losses
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        sums = torch.zeros(len(settings["terms"]), dtype=dtype, device=hidden.device)
        hidden_grad = torch.zeros_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=dtype) if weight.requires_grad else None
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = hidden[part] @ weight.T
            teacher_logits = None if teacher_hidden is None else teacher_hidden[part] @ teacher_weight.T
            sums += losses(logits, teacher_logits, targets[part], token_weights[part], **settings)
            torch.mm(logits, weight, out=hidden_grad[part])
            if weight_grad is not None:
                weight_grad += logits.T @ hidden[part]
        ctx.save_for_backward(hidden_grad, weight_grad if weight_grad is None else weight_grad.to(weight.dtype))
        ctx.mark_non_differentiable(sums)
        return sum(w * total for w, total in zip(settings["terms"].values(), sums, strict=True)), sums

    @staticmethod
    def backward(ctx, grad, _):
        hidden_grad, weight_grad = ctx.saved_tensors
        weight_grad = None if weight_grad is None else weight_grad * grad.to(weight_grad.dtype)
        return hidden_grad * grad.to(hidden_grad.dtype), weight_grad, None, None, None, None, None, None
