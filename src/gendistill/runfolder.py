"""The run folder: recipe as resolved, one folder a point of the run, evaluation records, summary.

recipe.yaml
0-conversion/student/            the untouched student, with certificate.json
1-qk_alignment/student/          after the first stage; metrics.jsonl beside it, checkpoints/ while it trains
...
evaluation/teacher/, evaluation/1-qk_alignment/, ...   records per item
summary.md, loss.svg
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

from gendistill.errors import UserError
from gendistill.files import write_atomically
from gendistill.recipe import Recipe

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
        """Creates the folder, or takes up the one that is there.

        Raises:
            UserError: the folder holds a run of another recipe, or files that are no run.
        """
        self.root, self.recipe = Path(root), recipe
        self.points = ["conversion", *recipe.stages]
        path, settings = self.root / "recipe.yaml", recipe.model_dump(mode="json")
        if path.exists():
            if differences := sorted(_differences(yaml.safe_load(path.read_text()), settings)):
                raise UserError(
                    f"{self.root} holds a run of another recipe; different: {', '.join(differences)}. "
                    "Give another --output, or delete the folder."
                )
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise UserError(f"{self.root} is not empty and holds no run (no recipe.yaml). Give another --output.")
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(path, yaml.safe_dump(settings, sort_keys=False))

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
