"""What can be named in a recipe, with what the package must know of each; imports nothing heavy."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

from gendistill.errors import UserError

Row = TypeVar("Row")


def look_up(table: Mapping[str, Row], name: str, what: str) -> Row:
    """The row of a table; `what` says in the error what the table lists ("mixer").

    Raises:
        UserError: there is no such row; says which there are.
    """
    if name not in table:
        raise UserError(f"unknown {what} '{name}'; known: {', '.join(table)}")
    return table[name]


class Mixer(NamedTuple):
    """A linear mixer of the shared layer, by the two things in which its state update differs from the others'."""

    label: str  # as its paper writes it, for reports and plots
    delta_rule: bool  # a write replaces what the state holds under a key, rather than adding to it
    decay: Literal["channel", "head", "fixed"]  # what has a forget gate of its own; a fixed decay has none


# What replaces softmax attention. Everything else (projections, convolutions, normalised q and k, output gate and norm,
# initialisation) is shared, so comparing mixers compares state updates. Mamba-2 is its discrete form as used for
# conversion (arXiv 2408.10189): the decay alone depends on the input, and values are written unscaled.
MIXERS: dict[str, Mixer] = {
    "kda": Mixer("Kimi Delta Attention", delta_rule=True, decay="channel"),  # arXiv 2510.26692
    "gated_deltanet": Mixer("Gated DeltaNet", delta_rule=True, decay="head"),  # arXiv 2412.06464
    "gla": Mixer("Gated Linear Attention", delta_rule=False, decay="channel"),  # arXiv 2312.06635
    "mamba2": Mixer("Mamba-2", delta_rule=False, decay="head"),  # arXiv 2405.21060
    "lightning": Mixer("Lightning Attention", delta_rule=False, decay="fixed"),  # arXiv 2405.17381
}

_MIXER_ROLES = ("mixer_qk", "mixer_value", "mixer_conv", "mixer_gate")
# What can train. A parameter has one role (`gendistill.models.modeling.describe`); a name stands for one or several.
ROLES: dict[str, tuple[str, ...]] = {"mixer": _MIXER_ROLES} | {
    role: (role,) for role in (*_MIXER_ROLES, "attention", "mlp", "norm", "embedding", "head")
}

# How a new tensor may start (`gendistill.models.calibration`).
INITIALISATIONS = {
    "standard": "half-lives as published, heads that point away from the teacher's turned round, layers scaled",
    "teacher": "half-lives by the teacher's attention distance, heads scaled by least squares (arXiv 2606.16429)",
}

# What computes the recurrence (`gendistill.ops.set_backend`).
BACKENDS = {
    "auto": "kernels for CUDA tensors; elsewhere the reference for one token and chunks for more",
    "reference": "one token at a time, in plain PyTorch",
    "chunked": "chunks of tokens, in plain PyTorch",
    "kernels": "flash-linear-attention's kernels, for CUDA tensors only",
}

# What a stage can minimise, by the pass over the data that it needs; gendistill.distill.objectives says what each is.
Objective = Literal[
    "mixer_l2",
    "mixer_cosine",
    "block_l2",
    "block_cosine",
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "cross_entropy",
    "hidden_l2",
    "hidden_cosine",
]
Pass = Literal["mixer", "block", "end_to_end"]
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")  # those that know a temperature

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the options of a multiple-choice question
