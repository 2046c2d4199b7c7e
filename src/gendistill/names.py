"""What can be named in a recipe, with what the package must know of each; imports nothing heavy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from gendistill.errors import UserError

if TYPE_CHECKING:  # what names a recipe may hold must be known without loading torch
    import torch

Row = TypeVar("Row")


def look_up(table: Mapping[str, Row], name: str, what: str) -> Row:
    """The row of a table; `what` says in the error what the table lists ("mixer").

    Raises:
        UserError: there is no such row; says which there are.
    """
    if name not in table:
        raise UserError(f"unknown {what} '{name}'; known: {', '.join(table)}")
    return table[name]


class LinearMixer(NamedTuple):
    """A mixer of the shared linear layer, by the two things in which its state update differs from the others'."""

    label: str  # as its paper writes it, for reports and plots
    delta_rule: bool  # a write replaces what the state holds under a key, rather than adding to it
    decay: Literal["channel", "head", "fixed"]  # what has a forget gate of its own; a fixed decay has none


class Window(NamedTuple):
    """The teacher's own attention over a window of tokens."""

    label: str


# What replaces softmax attention. Of linear mixers everything else (projections, convolutions, normalised q and k,
# output gate and norm, initialisation) is shared, so comparing them compares state updates. Mamba-2 is its discrete
# form as used for conversion (arXiv 2408.10189): the decay alone depends on the input, values are written unscaled.
MIXERS: dict[str, LinearMixer | Window] = {
    "kda": LinearMixer("Kimi Delta Attention", delta_rule=True, decay="channel"),  # arXiv 2510.26692
    "gated_deltanet": LinearMixer("Gated DeltaNet", delta_rule=True, decay="head"),  # arXiv 2412.06464
    "gla": LinearMixer("Gated Linear Attention", delta_rule=False, decay="channel"),  # arXiv 2312.06635
    "mamba2": LinearMixer("Mamba-2", delta_rule=False, decay="head"),  # arXiv 2405.21060
    "lightning": LinearMixer("Lightning Attention", delta_rule=False, decay="fixed"),  # arXiv 2405.17381
    "window": Window("sliding-window attention"),
}
_MIXER_ROLES = ("mixer_qk", "mixer_value", "mixer_conv", "mixer_gate")
# How many processes hold teacher and student.
STRATEGIES = {
    "auto": "replicas where plan says that they fit, else hybrid on several hosts, else zero2, else fsdp",
    "replicas": "teacher and student whole in every process; masters and optimizer state shared out",
    "hybrid": "as fsdp within a host; hosts have replicas of it, and only gradients pass between them",
    "zero2": "layers whole over a step in every process; gradients, masters and optimizer state shared out, by FSDP2",
    "fsdp": "each process holds a part of every layer, and gathers a layer when its turn comes",
}
# What can train. A parameter has one role (`gendistill.models.modeling.describe`); a name stands for one or several.
ROLES: dict[str, tuple[str, ...]] = {"mixer": _MIXER_ROLES} | {
    role: (role,) for role in (*_MIXER_ROLES, "attention", "mlp", "norm", "embedding", "head")
}

# How a new tensor may start (`gendistill.models.calibration`).
INITIALISATIONS = {
    "standard": "half-lives as published, heads that point away from the teacher's turned round, layers scaled",
    "centred": "as standard, and keys without what all of them have in common, to which softmax is blind",
    "teacher": "half-lives by the teacher's attention distance, heads scaled by least squares (arXiv 2606.16429)",
}

# What computes the recurrence (`gendistill.ops.set_backend`).
BACKENDS = {
    "auto": "kernels for CUDA tensors; elsewhere the reference for one token and chunks for more",
    "plain": "the reference for one token and chunks for more, on any device",
    "reference": "one token at a time, in plain PyTorch",
    "chunked": "chunks of tokens, in plain PyTorch",
    "kernels": "flash-linear-attention's kernels, for CUDA tensors only",
}

# Objectives of a stage. One row each: the recipe, the engine, the plan and the plots read nothing else of them.

Pass = Literal["mixer", "block", "end_to_end"]
Matched = Literal["mixer_output", "block_output", "hidden_states", "vocabulary"]
# The pass over the data that shows both sides: single mixers or blocks fed the teacher's input, or the whole student.
PASS_OF: dict[Matched, Pass] = {
    "mixer_output": "mixer",
    "block_output": "block",
    "hidden_states": "end_to_end",
    "vocabulary": "end_to_end",
}


class Predictions(NamedTuple):
    """What losses over the vocabulary are made of; n tokens, V words. What no term of a stage needs is None.

    Attributes:
        log_p, p: [n, V] of the teacher, at the stage's temperature.
        log_q, q: [n, V] of the student, at the stage's temperature.
        log_likelihood: [n, V] of the student, at temperature 1.
        targets, is_target: [n], the next tokens; and [n, V], where they are.
    """

    log_p: "torch.Tensor | None"
    p: "torch.Tensor | None"
    log_q: "torch.Tensor | None"
    q: "torch.Tensor | None"
    log_likelihood: "torch.Tensor | None"
    targets: "torch.Tensor"
    is_target: "torch.Tensor | None"


@dataclass(frozen=True)
class Objective:
    """A term that a stage can minimise.

    Attributes:
        label: of a plot's axis, with the unit.
        matches: what of the student is compared.
        compute: with `matches` "vocabulary" a function of `Predictions` that returns the tokens' values [n] and their
            slopes [n, V], which are the gradient by the student's logits (at the stage's temperature for divergences).
            Otherwise a distance of student's and teacher's [..., D], given the teacher's mean square: -> [...].
        needs_teacher: False if the data alone say what is right.
        divergence: of two distributions over the vocabulary, at the stage's temperature.
    """

    label: str
    matches: Matched
    compute: Callable[..., "tuple[torch.Tensor, torch.Tensor] | torch.Tensor"]
    needs_teacher: bool = True
    divergence: bool = False

    @property
    def runs(self) -> Pass:
        """The pass over the data that the objective needs."""
        return PASS_OF[self.matches]


def _squared_error(student, teacher, mean_square):
    return (student - teacher).square().mean(-1) / mean_square  # 1: no better than an output of zeros


def _cosine_distance(student, teacher, mean_square):
    from torch.nn.functional import cosine_similarity  # here, since a recipe must load without torch

    return 1 - cosine_similarity(student, teacher, dim=-1)  # blind to size, so the mean square has no part


def _forward_kl(x: Predictions):
    return (x.p * (x.log_p - x.log_q)).sum(-1), x.q - x.p


def _reverse_kl(x: Predictions):
    values = (x.q * (x.log_q - x.log_p)).sum(-1)
    return values, x.q * (x.log_q - x.log_p - values[:, None])


def _jensen_shannon(x: Predictions):
    log_m = x.log_p.logaddexp(x.log_q) - math.log(2)  # of the even mixture
    from_p = (x.p * (x.log_p - log_m)).sum(-1)
    from_q = (x.q * (x.log_q - log_m)).sum(-1)
    # m depends on q too, but what that adds to the gradient cancels between the two sums.
    return (from_p + from_q) / 2, x.q * (x.log_q - log_m - from_q[:, None]) / 2


def _cross_entropy(x: Predictions):
    values = -x.log_likelihood.gather(1, x.targets[:, None])[:, 0]
    return values, x.log_likelihood.exp() - x.is_target.to(x.log_likelihood.dtype)


RELATIVE_ERROR, COSINE_DISTANCE = "relative squared error", "1 - cosine"
OBJECTIVES: dict[str, Objective] = {
    "mixer_l2": Objective(RELATIVE_ERROR, "mixer_output", _squared_error),
    "mixer_cosine": Objective(COSINE_DISTANCE, "mixer_output", _cosine_distance),
    "block_l2": Objective(RELATIVE_ERROR, "block_output", _squared_error),
    "block_cosine": Objective(COSINE_DISTANCE, "block_output", _cosine_distance),
    "forward_kl": Objective("KL(teacher || student), nats per token", "vocabulary", _forward_kl, divergence=True),
    "reverse_kl": Objective("KL(student || teacher), nats per token", "vocabulary", _reverse_kl, divergence=True),
    "jensen_shannon": Objective(
        "Jensen-Shannon divergence, nats per token", "vocabulary", _jensen_shannon, divergence=True
    ),
    "cross_entropy": Objective("cross entropy, nats per token", "vocabulary", _cross_entropy, needs_teacher=False),
    "hidden_l2": Objective(RELATIVE_ERROR, "hidden_states", _squared_error),
    "hidden_cosine": Objective(COSINE_DISTANCE, "hidden_states", _cosine_distance),
}

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the options of a multiple-choice question
