"""What a run's evaluations left behind: which models were asked which tasks, and the record of every item."""

from functools import cached_property
from pathlib import Path
from typing import Any

from gendistill.errors import UserError
from gendistill.files import read_jsonl

TEACHER = "teacher"
_META = ".meta.json"

Record = dict[str, Any]


class Evaluations:
    """The evaluated models of a run folder, the teacher first, then the points in the order of the run."""

    def __init__(self, root: Path):
        """Looks at what is there; reads no records.

        Raises:
            UserError: the folder holds no run, or nothing in it has been evaluated.
        """
        if not (root / "recipe.yaml").is_file():
            raise UserError(f"{root} is no run folder (no recipe.yaml); give one that 'gendistill run' made")
        self._root = root / "evaluation"
        if not self.tasks:
            raise UserError(
                f"{root}: nothing has been evaluated yet; 'gendistill run' or 'gendistill evaluate' does that"
            )

    @cached_property
    def models(self) -> list[str]:
        """Labels, such as "teacher", "0-conversion", "1-qk_alignment"."""
        asked = {label for label, _ in self._finished}
        return sorted(asked, key=lambda label: -1 if label == TEACHER else int(label.partition("-")[0]))

    @cached_property
    def tasks(self) -> list[str]:
        return sorted({task for _, task in self._finished})

    @cached_property
    def _finished(self) -> set[tuple[str, str]]:
        """Labels and tasks; the small file beside the records is written last."""
        return {(path.parent.name, path.name.removesuffix(_META)) for path in self._root.glob(f"*/*{_META}")}

    def label(self, name: str) -> str:
        """The label of a model: "teacher", "student" for the last point, a label, or a point's name.

        Raises:
            UserError: no such model has been evaluated.
        """
        if name == "student":
            if self.models[-1] == TEACHER:
                raise UserError("no student has been evaluated here yet, only the teacher")
            return self.models[-1]
        for label in self.models:
            if name in (label, label.partition("-")[2]):
                return label
        raise UserError(f"'{name}' is not among the models evaluated here: {', '.join(self.models)}")

    def asked(self, labels: list[str]) -> list[str]:
        """Tasks that all these models have been asked.

        Raises:
            UserError: there are none.
        """
        both = [task for task in self.tasks if all((label, task) in self._finished for label in labels)]
        if not both:
            raise UserError(f"{' and '.join(labels)} have not been asked the same task yet; evaluate both first")
        return both

    def check_task(self, task: str) -> None:
        if task not in self.tasks:
            raise UserError(f"--task {task}: no such task here; evaluated are {', '.join(self.tasks)}")

    def records(self, task: str, labels: list[str]) -> dict[str, list[Record]]:
        """Records by label; the models were asked the same items in the same order.

        Raises:
            UserError: a model has not been asked this task, or other items, or by a version that kept less.
        """
        found = {}
        for label in labels:
            if (label, task) not in self._finished:
                raise UserError(f"{label} has not been asked '{task}' yet; evaluate it first")
            path = self._root / label / f"{task}.jsonl"
            found[label] = read_jsonl(path)
            if "flexible_correct" not in found[label][0]:
                raise UserError(f"{path} was written by an earlier version; evaluate again")
        if len({tuple((record["id"], record["question"]) for record in records) for records in found.values()}) > 1:
            raise UserError(f"{' and '.join(labels)} were asked other items of '{task}'; evaluate them again")
        return found
