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


Role = Literal[
    "mixer",  # everything in the layers that replace attention; the four mixer_* roles together
    "mixer_qk",
    "mixer_value",
    "mixer_conv",
    "mixer_gate",
    "attention",
    "mlp",
    "norm",
    "embedding",
    "head",
]
MixerName = Literal["kda", "gated_deltanet", "gla", "mamba2", "lightning"]  # what each does: gendistill.models.mixers
Backend = Literal["auto", "reference", "chunked", "kernels"]  # forms of the recurrence: gendistill.ops.set_backend
Initialisation = Literal["standard", "teacher"]  # initialisation: gendistill.models.calibration
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


class Labelled(NamedTuple):
    label: str


MIXERS = {
    "kda": Labelled("Kimi Delta Attention"),
    "gated_deltanet": Labelled("Gated DeltaNet"),
    "gla": Labelled("Gated Linear Attention"),
    "mamba2": Labelled("Mamba-2"),
    "lightning": Labelled("Lightning Attention"),
}
OBJECTIVES = {
    "mixer_l2": Labelled("relative squared error"),
    "mixer_cosine": Labelled("1 - cosine"),
    "block_l2": Labelled("relative squared error"),
    "block_cosine": Labelled("1 - cosine"),
    "forward_kl": Labelled("KL(teacher || student), nats per token"),
    "reverse_kl": Labelled("KL(student || teacher), nats per token"),
    "jensen_shannon": Labelled("Jensen-Shannon divergence, nats per token"),
    "cross_entropy": Labelled("cross entropy, nats per token"),
    "hidden_l2": Labelled("relative squared error"),
    "hidden_cosine": Labelled("1 - cosine"),
}
