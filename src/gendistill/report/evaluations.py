"""What a run's evaluations wrote: which models were evaluated on which tasks, and the record of every item."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from gendistill.errors import UserError
from gendistill.files import file_sha256, read_jsonl

TEACHER = "teacher"
WITHOUT_WINDOW = "-without_window"  # behind the label of a student whose windows were switched off
_META = ".meta.json"  # says what was evaluated; written when all records are

Record = dict[str, Any]


class Evaluations:
    """The evaluated models of a run folder, the teacher first, then the student after each stage.

    A student whose windows were switched off comes before itself, so that the last one is the run's result.
    """

    def __init__(self, root: Path):
        """Looks at what is there; reads no records.

        Raises:
            UserError: the folder holds no run, or nothing in it has been evaluated.
        """
        if not (root / "recipe.yaml").is_file():
            raise UserError(f"{root} is no run folder (no recipe.yaml); give one that 'gendistill run' made")
        self._root = root / "evaluation"
        # A run that converted and trained, but whose first evaluation has not ended, has a recipe and no tasks.
        if not self.tasks:
            raise UserError(
                f"{root}: nothing has been evaluated yet; 'gendistill run' or 'gendistill evaluate' does that"
            )

    @cached_property
    def models(self) -> list[str]:
        """Labels, such as "teacher", "0-conversion", "1-qk_alignment"."""
        labels = {label for label, _ in self._finished}

        def place(label: str) -> tuple[int, bool]:
            # By number: as text, "10-..." would come before "9-...".
            number = -1 if label == TEACHER else int(label.partition("-")[0])
            return number, not label.endswith(WITHOUT_WINDOW)

        return sorted(labels, key=place)

    @cached_property
    def tasks(self) -> list[str]:
        return sorted({task for _, task in self._finished})

    @cached_property
    def _finished(self) -> set[tuple[str, str]]:
        """Labels and tasks."""
        # Records of an evaluation that was killed lie there as well; the small file beside them is written last.
        return {(path.parent.name, path.name.removesuffix(_META)) for path in self._root.glob(f"*/*{_META}")}

    def label(self, name: str) -> str:
        """The label of a model: "teacher", "student" for the last stage, a label, or a stage's name.

        Raises:
            UserError: no such model has been evaluated.
        """
        # The first word of most questions: it needs no knowledge of the run's stages.
        if name == "student":
            if self.models[-1] == TEACHER:
                raise UserError("no student has been evaluated here yet, only the teacher")
            return self.models[-1]
        for label in self.models:
            # "2-block_alignment" -> "block_alignment"
            if name in (label, label.partition("-")[2]):
                return label
        raise UserError(f"'{name}' is not among the models evaluated here: {', '.join(self.models)}")

    def common_tasks(self, labels: list[str]) -> list[str]:
        """Tasks that all these models have been evaluated on.

        Raises:
            UserError: there are none.
        """
        common = [task for task in self.tasks if all((label, task) in self._finished for label in labels)]
        if not common:
            raise UserError(f"{' and '.join(labels)} have not been evaluated on the same task yet; evaluate both first")
        return common

    def check_task(self, task: str) -> None:
        if task not in self.tasks:
            raise UserError(f"--task {task}: no such task here; evaluated are {', '.join(self.tasks)}")

    def records(self, task: str, labels: list[str]) -> dict[str, list[Record]]:
        """Records by label; those of all models are of the same items in the same order.

        Raises:
            UserError: a model has not been evaluated on this task, or on other items, or by a version whose records
                hold less.
        """
        found = {}
        for label in labels:
            if (label, task) not in self._finished:
                raise UserError(f"{label} has not been evaluated on '{task}' yet; evaluate it first")
            path = self._root / label / f"{task}.jsonl"
            self._check(path)
            found[label] = read_jsonl(path)
            # The youngest key of the records; where it is there, all others are.
            if "flexible_correct" not in found[label][0]:
                raise UserError(f"{path} was written by an earlier version; evaluate again")
        # Items are shown side by side, matched by position: two models' lists must hold the same ones.
        items = {tuple((record["id"], record["question"]) for record in records) for records in found.values()}
        if len(items) > 1:
            raise UserError(f"{' and '.join(labels)} were evaluated on other items of '{task}'; evaluate them again")
        return found

    def _check(self, path: Path) -> None:
        """Raises UserError if records are not those that the file beside them was written for."""
        try:
            written = json.loads(path.with_name(path.stem + _META).read_text(encoding="utf-8"))["records"]
            damaged = file_sha256(path) != written
        except (OSError, ValueError, KeyError, TypeError):
            damaged = True
        if damaged:
            raise UserError(f"{path}: changed since written, or the file beside it; 'gendistill evaluate' mends that")
