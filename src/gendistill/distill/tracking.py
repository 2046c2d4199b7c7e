"""Live curves in TensorBoard or trackio, where one of them is installed; metrics.jsonl has the same numbers always."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gendistill.distributed import is_rank_zero
from gendistill.names import COSINE_DISTANCE, OBJECTIVES, RELATIVE_ERROR
from gendistill.recipe.stage import Stage

AVERAGED = 10  # steps at either end of a stage, at most: a single one says little


def complaint(stage: Stage, metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with how a stage's losses have gone, in words; None if nothing is.

    Args:
        metrics: a mapping for each step, as in metrics.jsonl.
    """
    losses = [step["loss"] for step in metrics]
    steps = min(AVERAGED, max(1, len(losses) // 2))
    # What was never trained on says it best, and is measured of the same tokens at both ends.
    ends = {"loss on records held out": held_out_ends(metrics)}
    # Longer replies lead further away: where the student writes them, and ever longer, the loss may rise with that.
    if stage.on_policy is None:
        ends["loss"] = (fmean(losses[:steps]), fmean(losses[-steps:]))
    silence = loss_of_silence(stage)
    for name, (begin, end) in ends.items():
        if begin is None or end is None:  # nothing is held out
            continue
        if not end <= begin:  # NaN too
            advice = "lower the learning rate" + (", or give it more data" if name != "loss" else "")
            return f"its {name} ended above where it began ({begin:.4g} -> {end:.4g}): {advice}"
        if silence is not None and end > silence:
            return f"its {name} ended at {end:.4g}, above that of an output of zeros ({silence:g}): train it longer"
    return None


def loss_of_silence(stage: Stage) -> float | None:
    """The loss of an output of zeros; None if the objective has terms of which that is not known."""
    # A squared error is relative to the teacher's own output, and zeros point nowhere: both distances are 1 then.
    known = all(OBJECTIVES[name].label in (RELATIVE_ERROR, COSINE_DISTANCE) for name in stage.terms)
    return sum(stage.terms.values()) if known else None


def held_out_ends(metrics: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """The loss on records held out as a stage began and ended; None where there are none."""
    # `get`: runs of before these were measured have lines without.
    return metrics[0].get("held_out_loss_before"), metrics[-1].get("held_out_loss")


def distant_ends(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The loss on distant answers as a stage began and ended, by what the student had for them; empty without any."""
    begin, end = metrics[0].get("distant_loss_before") or {}, metrics[-1].get("distant_loss") or {}
    return {name: (begin[name], loss) for name, loss in end.items() if name in begin}


class Curves:
    """Writes a step's metrics to TensorBoard files in folder/curves, else to trackio, else nowhere."""

    def __init__(self, folder: Path, done: int):
        """`done` steps are not to be done again; curves of later ones, from before a resume, are dropped."""
        self.folder, self.done, self._writer, self._trackio = folder, done, None, None

    def __enter__(self) -> "Curves":
        if is_rank_zero():
            try:  # optional, and slow to import, so not at the top
                from torch.utils.tensorboard import SummaryWriter

                # purge_step hides what a stopped run wrote behind its checkpoint.
                self._writer = SummaryWriter(self.folder / "curves", purge_step=self.done + 1)
            except ImportError:
                self._start_trackio()
        return self

    def _start_trackio(self) -> None:
        try:
            import trackio
        except ImportError:
            return
        self._trackio = trackio
        trackio.init(project="gendistill", name="-".join(self.folder.parts[-2:]))  # run and stage

    def add(self, metrics) -> None:
        """One `StepMetrics`."""
        if self._writer is not None:
            for name, value in flatten(metrics).items():
                self._writer.add_scalar(name, value, metrics.step)
        if self._trackio is not None:
            self._trackio.log(flatten(metrics), step=metrics.step)

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._trackio is not None:
            self._trackio.finish()


def flatten(metrics) -> dict[str, float]:
    """{"loss": 1.0, "terms/forward_kl": 1.0, ...}: the numbers of a `StepMetrics`."""
    numbers = {}
    for name, value in vars(metrics).items():
        if isinstance(value, dict):
            numbers |= {f"{name}/{key}": part for key, part in value.items()}
        # step and tokens are the axis, and mfu is None where the peak is not known.
        elif isinstance(value, int | float) and name not in ("step", "tokens"):
            numbers[name] = value
    return numbers
