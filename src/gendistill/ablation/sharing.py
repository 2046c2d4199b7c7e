"""What variants have in common: it is run once, by the first of them, and given to the others by its content.

A stage's student depends on nothing but the settings behind its key (`run.folder.stage_key`), and on the teacher. So a
variant waits until whoever comes first has made what both need; then its folder begins with that, as hard links where
a file never changes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gendistill.ablation.result import SharedStage
from gendistill.ablation.variants import Planned, stages_of
from gendistill.files import make_folder, put_in_place
from gendistill.recipe.fields import result_settings
from gendistill.recipe.loading import Recipe
from gendistill.run.folder import DAY, RECIPE, RunFolder, stage_key, synthesis_behind, write_day, write_recipe

TEACHER = "teacher"  # its evaluation, beside the stages
DATA = "data"  # of the ablation: packed sequences lie under keys of all that makes them, so that all runs share them
# What only an unfinished piece of work needs.
NOT_MADE = ("checkpoints", "curves", "*.partial*", "*.lock")
UNFINISHED = shutil.ignore_patterns(*NOT_MADE)
# Of a run's root, what a stage may depend on besides its settings.
OF_THE_ROOT = ("teacher.json", DAY, "placement.json", "placement.jsonl", "placement.svg")


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Of everything that a run makes and another may take from it, a hash of what it depends on: stages, in order."""
    # It says only who waits for whom: records have hashes of their own, by which each run judges what it finds.
    asked = result_settings(recipe.evaluation) | {"stages": None}
    teacher = [recipe.teacher, recipe.dtype, recipe.backend, recipe.seed, asked]
    keys = {TEACHER: hashlib.sha256(json.dumps(teacher, sort_keys=True).encode()).hexdigest()}
    return keys | {stage: stage_key(recipe, stage) for stage in stages_of(recipe)}


def is_made(folder: Path, recipe: Recipe, stage: str) -> bool:
    """Whether a run has a stage's student, evaluated if it is to be; or the teacher's evaluation."""
    if not (folder / RECIPE).is_file():
        return False
    run = RunFolder(folder, recipe)
    if stage == TEACHER:
        return _is_evaluated(run, TEACHER)
    evaluated = recipe.evaluation.stages or run.stages
    return run.has_student(stage) and (stage not in evaluated or _is_evaluated(run, run.label(stage)))


def _is_evaluated(run: RunFolder, label: str) -> bool:
    return all((run.evaluation / label / f"{task}.meta.json").is_file() for task in run.recipe.evaluation.tasks)


class Sharing:
    """Who makes what, among variants in the order in which they are to run."""

    def __init__(self, root: Path | None, variants: Sequence[Planned]):
        """`root` is the ablation's folder; None for a plan of one that has not begun."""
        self.root, self.variants = root, variants
        self.keys = {each.variant.name: keys_of(each.recipe) for each in variants}

    def made_by(self, stage: str, key: str) -> Planned | None:
        """The first variant that has what has this key; None if nobody has it yet."""
        if self.root is None:
            return None
        return next((each for each in self._with(stage, key) if is_made(self._folder(each), each.recipe, stage)), None)

    def waits_for(self, planned: Planned, active: Sequence[str]) -> str | None:
        """The name of an earlier variant, among those waiting or running, that is to make something first; or None."""
        for stage, key in self.keys[planned.variant.name].items():
            earlier = self._with(stage, key)
            # Itself comes among them, and nobody behind it is waited for.
            before = [each.variant.name for each in earlier[: earlier.index(planned)]]
            ahead = [name for name in before if name in active]
            if ahead and self.made_by(stage, key) is None:
                return ahead[0]
        return None

    def shared(self, failed: Sequence[str] = ()) -> list[SharedStage]:
        """What several variants have in common, each with the one that runs it: the first that has not failed to."""
        found: dict[tuple[str, str], list[Planned]] = {}
        for each in self.variants:
            for stage, key in self.keys[each.variant.name].items():
                found.setdefault((stage, key), []).append(each)
        return [
            SharedStage(
                stage=stage,
                variants=[each.variant.name for each in group],
                run_once_in=self._maker(stage, key, group, failed).variant.folder,
            )
            for (stage, key), group in found.items()
            if len(group) > 1
        ]

    def _maker(self, stage: str, key: str, group: Sequence[Planned], failed: Sequence[str]) -> Planned:
        has = self.made_by(stage, key)
        return has or next((each for each in group if each.variant.name not in failed), group[0])

    def lay_out(self, planned: Planned) -> None:
        """Makes a variant's folder, with what others have made of it; one that is there gets its recipe only."""
        final = self._folder(planned)
        if final.exists():
            write_recipe(final, planned.recipe)  # what has not begun may have changed
            return
        # Beside it, and renamed when it is whole: a kill in between leaves no run that lacks half of its stages.
        partial = final.with_name(f"{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        shutil.copy2(self._day(), partial / DAY)
        make_folder(self.root / DATA)
        (partial / DATA).symlink_to(os.path.relpath(self.root / DATA, final))
        for stage, key in self.keys[planned.variant.name].items():
            maker = self.made_by(stage, key)
            # Behind the first stage that nobody has, another could only be one of chance.
            if maker is None and stage != TEACHER:
                break
            if maker is not None:
                _take(RunFolder(self._folder(maker), maker.recipe), partial, stage)
        # Last, since it makes the folder a run, in which nothing strange may lie.
        write_recipe(partial, planned.recipe)
        put_in_place(partial, final)

    def _day(self) -> Path:
        """The day of all runs: one that begins after midnight must not be told another than those it shares with."""
        if not (self.root / DAY).exists():
            write_day(self.root)
        return self.root / DAY

    def _with(self, stage: str, key: str) -> list[Planned]:
        return [each for each in self.variants if self.keys[each.variant.name].get(stage) == key]

    def _folder(self, planned: Planned) -> Path:
        return self.root / planned.variant.folder


def _take(run: RunFolder, into: Path, stage: str) -> None:
    """Gives a folder what another run has made in a stage, or of the teacher's evaluation."""
    label = TEACHER if stage == TEACHER else run.label(stage)
    evaluation = run.evaluation / label
    if evaluation.is_dir():
        shutil.copytree(evaluation, into / "evaluation" / label, ignore=UNFINISHED)
    if stage == TEACHER:
        return
    for name in OF_THE_ROOT:
        if (run.root / name).is_file():
            shutil.copy2(run.root / name, into / name)
    for name in synthesis_behind(run.recipe, [stage]):
        _link(run.synthesis(name), into / "synthesis" / name)
    # Under keys of all that makes them, as data; few and small, so that all are taken.
    if run.distant.is_dir():
        _link(run.distant, into / "distant")
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
