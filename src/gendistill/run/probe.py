"""What a stage's first steps say about all of it: the hours that `plan` cannot work out; `Run.probe` runs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gendistill.recipe.stage import Stage

STEPS = 20
MICRO_BATCHES = 8  # in a step of the probe, at most: enough for its optimizer's step not to weigh in


@dataclass(frozen=True)
class Probe:
    """What a stage's first steps took.

    Attributes:
        steps, sequences_per_step: of the probe; a step of the stage may have more sequences.
        step_seconds: median of the steady steps.
        start_up_seconds: all the rest: compiling (what comes of it is kept on disk), the first steps.
        peak_bytes: torch.cuda.max_memory_allocated; None on a CPU.
    """

    steps: int
    sequences_per_step: int
    step_seconds: float
    start_up_seconds: float
    peak_bytes: int | None

    def hours(self, stage: Stage) -> float:
        """Of the whole stage's steps. One with more sequences than the probe's is taken to be longer in proportion.

        Start-up is left out: most of the probe's is compiling, which it has then done for the stage as well.
        """
        step = self.step_seconds * stage.sequences_per_step / self.sequences_per_step
        return stage.steps * step / 3600

    def tokens_per_second(self, stage: Stage) -> float:
        return self.sequences_per_step * stage.sequence_length / self.step_seconds


def short_stage(stage: Stage) -> Stage:
    """The stage that a probe runs: the same steps, but few, and of few micro-batches."""
    sequences = min(stage.sequences_per_step, MICRO_BATCHES * stage.micro_batch)
    steps = min(stage.steps, STEPS)
    return stage.model_copy(
        update={
            "sequences_per_step": sequences,
            "tokens": steps * sequences * stage.sequence_length,
            "checkpoint_every": steps + 1,
            # An untrained student's loss says nothing about the stage, and must not stop the probe.
            "expected_loss": None,
            "learning_rate": 1e-9,
        }
    )


def timing(seconds: Sequence[float], total: float, sequences_per_step: int, peak_bytes: int | None) -> Probe:
    """A probe from the seconds of each of its steps, and of all of it."""
    steady = median(seconds[len(seconds) // 4 :])
    start_up = max(0.0, total - len(seconds) * steady)
    return Probe(len(seconds), sequences_per_step, steady, start_up, peak_bytes)
