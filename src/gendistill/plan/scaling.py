"""How long a step takes on many processes: what one takes, shared out, and what the processes exchange meanwhile.

What a process sends in a step, N processes, sharing P trained parameters (in layers L of them, frozen ones F):

| strategy | sent                                                                                                  |
| -------- | ----------------------------------------------------------------------------------------------------- |
| replicas | (N - 1) / N * (4 P for the sums of gradients, and the weights' size * P once they are stepped)        |
| fsdp     | in each micro-batch (N - 1) / N * (size * (2 (L + F) + the teacher's layers) + 4 L), beside arithmetic |
| zero2    | (N - 1) / N * size * (L + F), and in each micro-batch (N - 1) / N * 4 L, beside arithmetic            |

It takes as much. With replicas this comes behind the last micro-batch; with FSDP it runs beside the arithmetic, and
only what takes longer than that is waited for.
"""

import re
from dataclasses import dataclass

from gendistill.models.cost import FLOAT32
from gendistill.plan.holding import Parameters
from gendistill.recipe.stage import Stage

# Bytes a second that a GPU sends to others of its host, and takes at the same time, by a word of its name: half of the
# NVLink bandwidth in NVIDIA's data sheets. The first that fits counts.
LINKS = {
    "B200": 900e9,
    "H200": 450e9,
    "H100 PCIe": 32e9,  # without bridges: 16 lanes of PCIe 5, half of what they carry in theory
    "H100": 450e9,
    "A100": 300e9,
    "L40S": 16e9,  # PCIe 4
    "RTX 4090": 16e9,
}
REACHED = 0.75  # of the link by collectives of hundreds of MB, roughly; not measured here


def link_of(gpu: str | None) -> float | None:
    """Bytes a second between GPUs of one host, each way, by the GPU's name; None if it is not known."""
    known = (rate for name, rate in LINKS.items() if re.search(rf"\b{name}\b", gpu or ""))
    return next(known, None)


def bytes_sent(strategy: str, counts: Parameters, stage: Stage, size: int, processes: int) -> float:
    """What a process sends in a step.

    Args:
        strategy: "whole", "replicas", "hybrid", "zero2" or "fsdp".
        size: bytes of a number of the arithmetic.

    Raises:
        ValueError: there is no such strategy.
    """
    others = (processes - 1) / processes  # of what a ring of processes carries past each
    micro_batches = -(-stage.sequences_per_step // processes // stage.micro_batch)
    # Of sharded models what stays whole is summed once, there and back.
    summed_whole = 2 * FLOAT32 * (counts.trained - counts.trained_layers)
    match strategy:
        case "whole":
            return 0.0
        case "replicas":
            return others * counts.trained * (FLOAT32 + size)
        case "hybrid" | "fsdp":  # between hosts hybrid sends less, over slower links
            # The student's layers once forward and once backward, the teacher's forward.
            gathered = 2 * counts.student_layers + counts.teacher_layers * stage.needs_teacher
            of_layers = micro_batches * (size * gathered + FLOAT32 * counts.trained_layers)
            return others * (of_layers + summed_whole)
        case "zero2":
            of_layers = size * counts.student_layers + micro_batches * FLOAT32 * counts.trained_layers
            return others * (of_layers + summed_whole)
    raise ValueError(f"unknown strategy '{strategy}'; known: whole, replicas, hybrid, zero2, fsdp")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on many processes.

    Attributes:
        alone: on one process.
        arithmetic: of each, with its share of the step.
        exchange: of all that it sends; 0 where the link is not known.
        strategy: see `bytes_sent`.
    """

    alone: float
    arithmetic: float
    exchange: float
    strategy: str

    @property
    def seconds(self) -> float:
        if self.strategy in ("hybrid", "zero2", "fsdp"):  # layers are gathered while others are at work
            return max(self.arithmetic, self.exchange)
        return self.arithmetic + self.exchange


def step_time(alone: float, sent: float, link: float | None, strategy: str, processes: int) -> StepTime:
    """From what a step takes on one process, and what each sends over links of so many bytes a second."""
    # A bound from below: without a link's rate, as if it carried everything at once.
    exchange = 0.0 if link is None else sent / (REACHED * link)
    return StepTime(alone, alone / processes, exchange, strategy)
