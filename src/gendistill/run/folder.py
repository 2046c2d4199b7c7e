"""The run folder: recipe as resolved, one folder per stage, evaluation records, summary. The conversion is stage 0.

recipe.yaml
date.txt                         the day the run was created, which chat templates that print the date are told
placement.json                   which layers keep attention, where the recipe does not list them; placement.jsonl, .svg
data/                            packed sequences
0-conversion/student/            the untrained student, with conversion_report.json
1-qk_alignment/student/          after the first stage, with stage_report.json: what it was trained from, and on what
1-qk_alignment/metrics.jsonl     a line per step; checkpoints/ beside it while the stage trains
...
synthesis/NAME/                  what the teacher wrote: records.jsonl, rejected.jsonl, stats.json
evaluation/teacher/, evaluation/1-qk_alignment/, ...   records per item
summary.md, scores.json, loss.svg
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from gendistill.errors import UserError
from gendistill.files import write_atomically
from gendistill.placement.result import FILE
from gendistill.recipe.fields import drop_marked, result_settings
from gendistill.recipe.loading import Recipe


class RunFolder:
    """Paths of a run, and the check that the folder belongs to this recipe.

    Attributes:
        stages: names in the order of the run, "conversion" first.
    """

    def __init__(self, root: Path, recipe: Recipe):
        """Looks at the folder that is there, if there is one; writes nothing.

        Raises:
            UserError: the folder holds a run of another recipe, or files that are no run.
        """
        self.root, self.recipe = Path(root), recipe
        self.stages = ["conversion", *recipe.stages]
        if self._recipe.exists():
            # A rerun may change settings that no result depends on, so those are left out on both sides.
            before = drop_marked(yaml.safe_load(self._recipe.read_text()), recipe)
            if differences := sorted(_differences(before, result_settings(recipe))):
                raise UserError(
                    f"{self.root} holds a run of another recipe; different: {', '.join(differences)}. "
                    "Give another --output, or delete the folder."
                )
        # Somebody's files, in which a run would be lost, or would overwrite something.
        elif self.root.exists() and any(path != self._date for path in self.root.iterdir()):
            raise UserError(f"{self.root} is not empty and holds no run (no recipe.yaml). Give another --output.")

    def create(self) -> None:
        """Creates the folder with its recipe, unless it is there."""
        self.root.mkdir(parents=True, exist_ok=True)
        # Before the recipe, which makes the folder a run; and once: prompts must be the same on the next day.
        if not self._date.exists():
            write_atomically(self._date, f"{date.today()}\n")
        # Not written anew: the first recipe says what the results there were made with.
        if not self._recipe.exists():
            # Every setting, defaults too: a later version with other defaults must not read another run out of it.
            write_atomically(self._recipe, yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))

    @property
    def _recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def _date(self) -> Path:
        return self.root / "date.txt"

    @property
    def day(self) -> date:
        """The day the run was created.

        Raises:
            UserError: the file holds something else.
        """
        written = self._date.read_text().strip()
        try:
            return date.fromisoformat(written)
        except ValueError:
            raise UserError(
                f"{self._date}: should hold the day the run was created, as 2026-01-31; it holds {written[:40]!r}"
            ) from None

    def label(self, stage: str) -> str:
        """'conversion' -> '0-conversion': the place in the run, then the name."""
        return f"{self.stages.index(stage)}-{stage}"

    def stage(self, stage: str) -> Path:
        return self.root / self.label(stage)

    def student(self, stage: str) -> Path:
        return self.stage(stage) / "student"

    def has_student(self, stage: str) -> bool:
        """Whether the stage is done: its student's folder takes its name when it is whole."""
        return self.student(stage).is_dir()

    def report(self, stage: str) -> Path:
        """The file beside a student's weights that says where they come from."""
        return self.student(stage) / ("conversion_report.json" if stage == "conversion" else "stage_report.json")

    def before(self, stage: str) -> str:
        """The stage whose student a stage starts from."""
        return self.stages[self.stages.index(stage) - 1]  # of a stage of the recipe: "conversion" has none before it

    def metrics(self, stage: str) -> Path:
        return self.stage(stage) / "metrics.jsonl"  # stays when the checkpoints go

    @property
    def placement(self) -> Path:
        return self.root / FILE

    @property
    def data(self) -> Path:
        return self.root / "data"  # by hash, so that stages that ask for the same share it

    def synthesis(self, name: str) -> Path:
        return self.root / "synthesis" / name

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"  # a folder per model in it, by label


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():  # a setting that is null and one that is not there are the same
            yield from _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    elif old != new:
        yield prefix.rstrip(".")
