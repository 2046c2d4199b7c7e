"""Live curves in TensorBoard or trackio, where one of them is installed; metrics.jsonl has the same numbers always."""

from pathlib import Path

from gendistill.distributed import is_rank_zero


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
