"""What a run folder holds, as far as the page shows it: read, checked, and left as it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendistill.errors import UserError
from gendistill.files import SUMS, damage_of, read_hashed_json, read_json, read_jsonl
from gendistill.recipe.loading import Recipe, parse_recipe
from gendistill.recipe.reading import is_as_signed, read_yaml
from gendistill.report.evaluations import TEACHER, Evaluations

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # of one model: records per item, by task
CONVERSION = "conversion"
BENCH = "bench/bench.json"  # where `gendistill bench ... --output RUN/bench` leaves it


@dataclass(frozen=True)
class RunRecords:
    """A run.

    Attributes:
        name: what the page calls it.
        settings: of recipe.yaml, as it stands there; `recipe` is the same, checked.
        students: labels of the evaluated students ("0-conversion", ...), in the order of the run.
        records: of every item, by label ("teacher" too) and task; of the same items for all of them.
        metrics: lines of metrics.jsonl, by the name of the stage; of the stages that have run.
        reply_kl: fields of `distill.reply_kl.ReplyKL`, by label.
        layers: the mixer of each layer, None where attention is kept; empty if no student is there.
        reports: stage_report.json by the name of the stage, as far as there.
        placement, bench: what `place` and `bench` wrote; None where they have not run.
    """

    name: str
    root: Path
    settings: Mapping[str, Any]
    recipe: Recipe
    students: Sequence[str]
    records: Mapping[str, Records]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    reply_kl: Mapping[str, Mapping[str, Any]]
    layers: Sequence[str | None]
    reports: Mapping[str, Mapping[str, Any]]
    placement: Mapping[str, Any] | None
    bench: Mapping[str, Any] | None

    @property
    def last(self) -> str:
        """The label of the student that is the run's result."""
        return self.students[-1]

    @property
    def teacher(self) -> Records:
        return self.records[TEACHER]

    @property
    def result(self) -> Records:
        return self.records[self.last]


def read_run(root: Path, name: str) -> RunRecords:
    """Reads a run folder.

    Raises:
        UserError: it is no run folder, its recipe or records are not as they were written, or teacher and student have
            not been evaluated there yet.
    """
    evaluations = Evaluations(root)
    path = root / "recipe.yaml"
    # A recipe that somebody edited is not the one that the numbers are of.
    if not is_as_signed(path):
        raise UserError(f"{path}: changed since the run wrote it; 'gendistill run' with its recipe writes it anew")
    settings = read_yaml(path, "recipe")
    # Without a folder: paths in it are absolute already.
    recipe = parse_recipe(settings, f"recipe {path}")
    if TEACHER not in evaluations.models:
        raise UserError(f"{root}: the teacher has not been evaluated; 'gendistill evaluate' does that")
    last = evaluations.label("student")  # that of the furthest stage
    # Those that both ends have: a task that was added later may be asked of the last student only.
    tasks = evaluations.common_tasks([TEACHER, last])
    # Records last, since they are what takes time: all labels of a task at once are checked for the same items.
    labels = [label for label in evaluations.models if _has_all(root, label, tasks)]
    by_task = {task: evaluations.records(task, labels) for task in tasks}
    stages = [CONVERSION, *recipe.stages]  # numbered in this order, see `run.folder`
    folders = {stage: root / f"{place}-{stage}" for place, stage in enumerate(stages)}
    return RunRecords(
        name=name,
        root=root,
        settings=settings,
        recipe=recipe,
        students=[label for label in labels if label != TEACHER],
        records={label: {task: by_task[task][label] for task in tasks} for label in labels},
        metrics=_metrics({stage: folders[stage] for stage in recipe.stages}),
        reply_kl=_reply_kl(folders.values()),
        layers=_layers(folders.values()),
        reports=_reports({stage: folders[stage] for stage in recipe.stages}),
        placement=_if_there(root / "placement.json", read_hashed_json),
        bench=_if_there(root / BENCH, _read_bench),
    )


def _has_all(root: Path, label: str, tasks: Sequence[str]) -> bool:
    """Whether a model was evaluated on all these tasks: a stage whose evaluation was killed has some of them."""
    return all((root / "evaluation" / label / f"{task}.meta.json").is_file() for task in tasks)


def _metrics(folders: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for stage, folder in folders.items():
        path = folder / "metrics.jsonl"
        if not path.is_file():
            continue
        # While a stage trains a line may be half written, and it has no student to show. It is sealed when it is done;
        # stages of earlier versions are not.
        if not (folder / "student").is_dir():
            continue
        if (folder / SUMS).is_file() and (damage := damage_of(folder, only=path.name)) is not None:
            raise UserError(f"{folder}: {damage}. Delete {path.name} there for a page without its curve.")
        if lines := read_jsonl(path):
            found[stage] = lines
    return found


def _reply_kl(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    # By the folder's name, which is the label of the student in it.
    paths = {folder.name: folder / "reply_kl.json" for folder in folders}
    return {label: read_json(path)["reply_kl"] for label, path in paths.items() if path.is_file()}


def _layers(folders: Sequence[Path]) -> list[str | None]:
    """By the configuration of the last student that is there; a recipe may leave its layers to a placement."""
    for folder in reversed(list(folders)):
        path = folder / "student/config.json"
        if path.is_file():
            return list(read_json(path)["mixers"])
    return []


def _reports(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    paths = {stage: folder / "student/stage_report.json" for stage, folder in folders.items()}
    return {stage: read_json(path) for stage, path in paths.items() if path.is_file()}


def _if_there(path: Path, read: Any) -> Any:
    return read(path) if path.is_file() else None


def _read_bench(path: Path) -> dict[str, Any]:
    """Raises UserError if it is none that `gendistill bench` wrote; the advice of `read_json` would delete the run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["rows"], found["machine"]["device"]  # what the page reads of it
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; 'gendistill bench' writes it anew") from None
    return found


def check_comparable(runs: Sequence[RunRecords], *, by_seed: bool = False) -> None:
    """Raises UserError if runs are of different teachers, or were evaluated on other tasks or items.

    Retention of one teacher's accuracy says nothing beside that of another's.
    """
    # What is compared has to be asked the same, by every task and question, and in one order.
    first_of: dict[int, RunRecords] = {}
    for run in runs:
        # Items are drawn by the seed, so those of one seed are the same, and each has its own first run.
        first = first_of.setdefault(run.recipe.seed if by_seed else 0, run)
        theirs, ours = first.teacher, run.teacher
        if list(theirs) != list(ours):
            raise UserError(
                f"{first.root} was evaluated on {', '.join(theirs)}, {run.root} on {', '.join(ours)}; runs are "
                "compared on the same tasks: evaluate them with the same evaluation section"
            )
        for task in theirs:
            if items_of({task: theirs[task]}) != items_of({task: ours[task]}):
                raise UserError(
                    f"{first.root} and {run.root} were evaluated on different items of '{task}'; evaluate both with "
                    "the same settings of that task and the same seed"
                )
        if _teacher_of(runs[0]) != _teacher_of(run):
            raise UserError(
                f"{runs[0].root} has the teacher {runs[0].recipe.teacher}, {run.root} {run.recipe.teacher}, with other "
                "weights; retention is compared for one teacher. Give runs of one teacher."
            )


def items_of(records: Records) -> tuple[Any, ...]:
    """What a model was asked, of all its tasks; equal where it was the same."""
    asked = ((task, record["id"], record["question"]) for task, items in records.items() for record in items)
    return tuple(asked)


def _teacher_of(run: RunRecords) -> Any:
    """What tells a teacher: the hashes of its files if the run recorded them, else its name."""
    path = run.root / "teacher.json"
    if not path.is_file():
        return run.recipe.teacher
    # Beside a hash stand a file's place and times, which another machine has others of.
    return {name: file["sha256"] for name, file in read_json(path)["files"].items()}
