"""The run folder: recipe as resolved, one folder a point of the run, evaluation records, summary.

recipe.yaml
0-conversion/student/            the untrained student, with conversion_report.json
1-qk_alignment/student/          after the first stage; metrics.jsonl beside it, checkpoints/ while it trains
...
synthesis/NAME/                  what the teacher wrote: records.jsonl, rejected.jsonl, stats.json
evaluation/teacher/, evaluation/1-qk_alignment/, ...   records per item
summary.md, loss.svg
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

from gendistill.errors import UserError
from gendistill.files import write_atomically
from gendistill.recipe.loading import Recipe

# Settings that change memory, speed or safety but no number, so a rerun may change them.
FREE = {
    "device",
    "compile",
    "micro_batch",
    "checkpoint_every",
    "gradient_checkpointing",
    "expected_loss",
    "batch_size",
}


class RunFolder:
    """Paths of a run, and the check that the folder belongs to this recipe."""

    def __init__(self, root: Path, recipe: Recipe):
        """Looks at the folder that is there, if there is one; writes nothing.

        Raises:
            UserError: the folder holds a run of another recipe, or files that are no run.
        """
        self.root, self.recipe = Path(root), recipe
        self.points = ["conversion", *recipe.stages]
        if self._recipe.exists():
            settings = recipe.model_dump(mode="json")
            if differences := sorted(_differences(yaml.safe_load(self._recipe.read_text()), settings)):
                raise UserError(
                    f"{self.root} holds a run of another recipe; different: {', '.join(differences)}. "
                    "Give another --output, or delete the folder."
                )
        elif self.root.exists() and any(self.root.iterdir()):
            raise UserError(f"{self.root} is not empty and holds no run (no recipe.yaml). Give another --output.")

    def create(self) -> None:
        """Creates the folder with its recipe, unless it is there."""
        if not self._recipe.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self._recipe, yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))

    @property
    def _recipe(self) -> Path:
        return self.root / "recipe.yaml"

    def label(self, point: str) -> str:
        """'conversion' -> '0-conversion', in the order of the run."""
        return f"{self.points.index(point)}-{point}"

    def point(self, point: str) -> Path:
        return self.root / self.label(point)

    def student(self, point: str) -> Path:
        return self.point(point) / "student"

    def has_student(self, point: str) -> bool:
        return self.student(point).is_dir()

    def before(self, stage: str) -> str:
        return self.points[self.points.index(stage) - 1]

    @property
    def data(self) -> Path:
        return self.root / "data"

    def synthesis(self, name: str) -> Path:
        return self.root / "synthesis" / name

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"


def _differences(old, new, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ, those in FREE left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            if key not in FREE:
                yield from _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    elif old != new:
        yield prefix.rstrip(".")
