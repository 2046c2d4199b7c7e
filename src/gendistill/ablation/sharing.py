"""What variants have in common: it is run once, by the first of them, and given to the others by its content.

A stage's student depends on nothing but the settings behind its key (`run.folder.stage_key`), and on the teacher. So a
variant waits until whoever comes first has made what both need; then its folder begins with that, as hard links where
a file never changes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gendistill.ablation.result import SharedStage
from gendistill.ablation.variants import Planned
from gendistill.files import make_folder, put_in_place
from gendistill.recipe.fields import result_settings
from gendistill.recipe.loading import Recipe
from gendistill.report.evaluations import TEACHER
from gendistill.run.folder import DAY, RunFolder, stage_key, synthesis_behind, write_day, write_recipe

OF_TEACHER = "evaluation of the teacher"  # beside the stages; no stage can have a name with spaces
DATA = "data"  # of the ablation: packed sequences lie under keys of all that makes them, so that all runs share them
# What only an unfinished piece of work needs; and curves, of which TensorBoard would show the same ones twice.
NOT_MADE = ("checkpoints", "curves", "*.partial*", "*.lock")
UNFINISHED = shutil.ignore_patterns(*NOT_MADE)
# Of a run's root, what a stage may depend on besides its settings: the teacher by hash, the day, the layers chosen.
OF_THE_ROOT = ("teacher.json", DAY, "placement.json", "placement.jsonl", "placement.svg")


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Of everything that a run makes and another may take from it, a hash of what it depends on: stages, in order."""
    # It says only who waits for whom: records have hashes of their own, by which each run judges what it finds.
    asked = result_settings(recipe.evaluation) | {"stages": None}
    teacher = [recipe.teacher, recipe.dtype, recipe.backend, recipe.seed, asked]
    keys = {OF_TEACHER: hashlib.sha256(json.dumps(teacher, sort_keys=True).encode()).hexdigest()}
    return keys | {stage: stage_key(recipe, stage) for stage in recipe.all_stages}


def is_made(run: RunFolder, stage: str) -> bool:
    """Whether a run has a stage's student, evaluated if it is to be; or the teacher's evaluation."""
    if stage == OF_TEACHER:
        return _is_evaluated(run, TEACHER)
    evaluated = run.recipe.evaluated_stages
    # With its answers, or everybody who takes the student would ask it the same questions again.
    return run.has_student(stage) and (stage not in evaluated or _is_evaluated(run, run.label(stage)))


def _is_evaluated(run: RunFolder, label: str) -> bool:
    # The small file beside the records is written last.
    return all((run.evaluation / label / f"{task}.meta.json").is_file() for task in run.recipe.evaluation.tasks)


class Sharing:
    """Who makes what, among variants in the order in which they are to run."""

    def __init__(self, variants: Sequence[Planned], folders: Mapping[str, RunFolder]):
        """`folders` are the variants' runs by name; none for a plan of what has not begun."""
        self.variants, self.folders = variants, folders
        self.keys = {each.variant.name: keys_of(each.recipe) for each in variants}

    def made_by(self, stage: str, key: str) -> str | None:
        """The first variant that has what has this key; None if nobody has it yet."""
        return next((name for name in self._with(stage, key) if self._has(name, stage)), None)

    def _has(self, name: str, stage: str) -> bool:
        return name in self.folders and is_made(self.folders[name], stage)

    def waits_for(self, name: str, active: Collection[str]) -> str | None:
        """An earlier variant, among those `active` (waiting or running), that is to make something first; or None."""
        for stage, key in self.keys[name].items():
            group = self._with(stage, key)
            # Nobody behind it is waited for, or two could wait for each other.
            ahead = [other for other in group[: group.index(name)] if other in active]
            if ahead and self.made_by(stage, key) is None:
                return ahead[0]
        return None

    def shared(self, failed: Collection[str] = ()) -> list[SharedStage]:
        """What several variants have in common, each with the one that runs it: the first that has not failed to."""
        places = {each.variant.name: each.variant.folder for each in self.variants}
        found: dict[tuple[str, str], list[str]] = {}
        for name, keys in self.keys.items():
            for item in keys.items():
                found.setdefault(item, []).append(name)
        shared = []
        for (stage, key), group in found.items():
            if len(group) == 1:
                continue
            # Who has it has made it, unless it was taken: then the one before has it as well, and comes first.
            left = [name for name in group if name not in failed]
            maker = self.made_by(stage, key) or (left or group)[0]
            shared.append(SharedStage(stage=stage, variants=group, run_once_in=places[maker]))
        return shared

    def _with(self, stage: str, key: str) -> list[str]:
        """Names of the variants that need what has this key, in their order."""
        return [name for name, keys in self.keys.items() if keys.get(stage) == key]

    def lay_out(self, root: Path, planned: Planned) -> None:
        """Makes a variant's folder, with what others have made of it; one that is there gets its recipe only.

        Args:
            root: of the ablation.
        """
        name = planned.variant.name
        final = self.folders[name].root
        if final.exists():
            write_recipe(final, planned.recipe)  # what has not begun may have changed
            return
        # Beside it, and renamed when it is whole: a kill in between leaves no run that lacks half of its stages.
        partial = final.with_name(f"{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        # One that begins after midnight must not be told another day than those whose stages it takes.
        if not (root / DAY).exists():
            write_day(root)
        shutil.copy2(root / DAY, partial / DAY)
        make_folder(root / DATA)
        # Relative, so that the ablation's folder may be moved as a whole.
        (partial / DATA).symlink_to(os.path.relpath(root / DATA, final))
        for stage, key in self.keys[name].items():
            maker = self.made_by(stage, key)
            if maker is not None:
                _take(self.folders[maker], partial, stage)
        # Last, since it makes the folder a run, in which nothing strange may lie.
        write_recipe(partial, planned.recipe)
        put_in_place(partial, final)


def _take(run: RunFolder, into: Path, stage: str) -> None:
    """Gives a folder what another run has made in a stage, or of the teacher's evaluation."""
    label = TEACHER if stage == OF_TEACHER else run.label(stage)
    evaluation = run.evaluation / label
    if evaluation.is_dir():
        shutil.copytree(evaluation, into / "evaluation" / label, ignore=UNFINISHED)
    if stage == OF_TEACHER:
        return
    for name in OF_THE_ROOT:
        if (run.root / name).is_file():
            shutil.copy2(run.root / name, into / name)
    # What a later stage learns from may be another set by the same name.
    for name in synthesis_behind(run.recipe, [stage]):
        _link(run.synthesis(name), into / "synthesis" / name)
    # Under keys of all that makes them, as data; few and small, so that all are taken.
    if run.distant.is_dir():
        _link(run.distant, into / "distant")
    # Metrics and reports are small, and some of them are written again where they do not fit: copies.
    shutil.copytree(run.stage(stage), into / label, ignore=shutil.ignore_patterns("student", *NOT_MADE))
    _link(run.student(stage), into / label / "student")


def _link(source: Path, target: Path) -> None:
    """The same tree by hard links: for what is sealed, of which no file is ever written again."""
    shutil.copytree(source, target, ignore=UNFINISHED, copy_function=_link_file, dirs_exist_ok=True)


def _link_file(source: str, target: str) -> None:
    if os.path.exists(target):  # taken with an earlier stage
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
