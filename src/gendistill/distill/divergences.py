"""Losses over the vocabulary, fused with the projections to it: no [tokens, vocabulary] tensor is ever kept.

What each is for one token is its row of `OBJECTIVES`; here they are summed over tokens, weighted, and turned into the
gradients of what was projected. z are logits, p = softmax(z_teacher / T), q = softmax(z_student / T), m = (p + q) / 2:

    forward_kl      T^2 sum p log(p / q)
    reverse_kl      T^2 sum q log(q / p)
    jensen_shannon  T^2 (sum p log(p / m) + sum q log(q / m)) / 2
    cross_entropy   -log softmax(z_student)[next token]

T is the temperature; the factor T^2 keeps the gradient's size (Hinton et al., arXiv 1503.02531).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache

import torch
import torch.nn.functional as F

from gendistill.distill import divergence_kernels
from gendistill.names import OBJECTIVES, Predictions

# Tokens whose logits are in memory at once: with a vocabulary of 152K, 0.3 GB in bfloat16. A micro-batch of 16K tokens
# would have 5 GB of them, for teacher and student each.
CHUNK = 1024


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
    found = predictions(student, teacher, targets, terms, vocabulary, temperature)
    dtype = torch.promote_types(student.dtype, torch.float32)
    gradient = torch.zeros((), dtype=dtype, device=student.device)
    sums = []
    for name, weight in terms.items():
        objective = OBJECTIVES[name]
        values, slopes = objective.compute(found)  # [n], [n, V]
        if objective.divergence:
            values = values * temperature**2
            slopes = slopes * temperature  # T^2, and 1 / T from the logits' division
        sums.append((values * token_weights).sum())
        gradient = gradient + weight * slopes
    # In place of the logits, which nothing needs any more.
    student[:, :vocabulary] = (gradient * token_weights[:, None]).to(student.dtype)
    student[:, vocabulary:] = 0
    return torch.stack(sums)


def predictions(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    targets: torch.Tensor,
    terms: Collection[str],
    vocabulary: int,
    temperature: float,
) -> Predictions:
    """What the terms need, from the logits of `vocabulary_losses`."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    logits = student[:, :vocabulary].to(dtype)
    divergence = [OBJECTIVES[name].divergence for name in terms]
    log_p = p = log_q = q = log_likelihood = is_target = None
    if any(divergence):
        sides = (logits, teacher[:, :vocabulary].to(dtype))
        if temperature != 1:  # a division by one keeps torch.compile from finding maximum and sum in one pass
            sides = [side / temperature for side in sides]
        log_q, log_p = (F.log_softmax(side, dim=-1) for side in sides)  # [n, V]
        q, p = log_q.exp(), log_p.exp()
    if not all(divergence):
        log_likelihood = F.log_softmax(logits, dim=-1)  # at temperature 1, whatever the divergences' is
        # By comparison and not by a scatter into zeros, so that torch.compile fuses it with what reads it.
        is_target = torch.arange(vocabulary, device=student.device) == targets[:, None]
    return Predictions(log_p, p, log_q, q, log_likelihood, targets, is_target)


def fused_losses(terms: Iterable[str]) -> Callable[..., torch.Tensor]:
    """`vocabulary_losses` on CUDA: our kernel if it has all of these terms, otherwise compiled."""
    if divergence_kernels.triton is not None and divergence_kernels.TERMS.issuperset(terms):
        return divergence_kernels.kernel_vocabulary_losses
    return compiled_losses()


@cache
def compiled_losses() -> Callable[..., torch.Tensor]:
    """`vocabulary_losses`, compiled.

    A token's logits are many: unsplit, their maximum, sum and gradient are one kernel that reads them twice and not
    four times.
    """
    # dynamic=False: by default the first chunk of another size would make torch compile all with symbolic sizes.
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
        sums = torch.zeros(len(settings["terms"]), dtype=dtype, device=hidden.device)  # [terms]
        hidden_grad = torch.zeros_like(hidden)  # [N, D]
        # Summed over chunks in float32: bfloat16 would lose the later chunks' small contributions.
        weight_grad = torch.zeros_like(weight, dtype=dtype) if weight.requires_grad else None  # [V, D]
        teacher_logits = None
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = hidden[part] @ weight.T  # [n, V]
            if teacher_hidden is not None:
                teacher_logits = teacher_hidden[part] @ teacher_weight.T  # [n, V']
            sums += losses(logits, teacher_logits, targets[part], token_weights[part], **settings)
            # From here on `logits` holds the gradient by the logits: `losses` has written it in their place.
            torch.mm(logits, weight, out=hidden_grad[part])  # [n, D]
            if weight_grad is not None:
                weight_grad += logits.T @ hidden[part]  # [V, D]
        # The gradients are known already; `backward` only scales them.
        ctx.save_for_backward(hidden_grad, weight_grad if weight_grad is None else weight_grad.to(weight.dtype))
        ctx.mark_non_differentiable(sums)
        mixture = sum(w * total for w, total in zip(settings["terms"].values(), sums, strict=True))
        return mixture, sums

    @staticmethod
    def backward(ctx, grad, _):
        hidden_grad, weight_grad = ctx.saved_tensors
        if weight_grad is not None:
            weight_grad = weight_grad * grad.to(weight_grad.dtype)
        hidden_grad = hidden_grad * grad.to(hidden_grad.dtype)
        # One for each argument of `forward`; only the student's two have gradients.
        return hidden_grad, weight_grad, None, None, None, None, None, None
