"""The run folder: recipe as resolved, one folder per stage, evaluation records, summary. The conversion is stage 0.

recipe.yaml                      as resolved, with absolute paths; what has not begun may still change in it
teacher.json                     hashes of the teacher's files and tokenizer, which must stay what they were
lock                             held by the process that works here, and names it
date.txt                         the day the run was created, which chat templates that print the date are told; and a
                                 checksum of it
placement.json                   which layers keep attention, where the recipe does not list them; placement.jsonl, .svg
data/                            packed sequences
0-conversion/student/            the untrained student, with conversion_report.json
1-qk_alignment/student/          after the first stage, with stage_report.json: what it was trained from, and on what
1-qk_alignment/metrics.jsonl     a line per step; checkpoints/ beside it while the stage trains
1-qk_alignment/reply_kl.json     how far the student's own replies lead it from its teacher; in 0-conversion/ too
2-on_policy/replies.jsonl        of an on-policy stage: what the student wrote, a line per step
...
synthesis/NAME/                  what the teacher wrote: records.jsonl, rejected.jsonl, stats.json
distant/KEY/                     conversations made of a source's texts: records.jsonl, stats.json
evaluation/teacher/, evaluation/1-qk_alignment/, ...   records per item
summary.md, scores.json, loss.svg, reply_kl.svg
times.jsonl                      seconds of each part: data, training, saving, ...
"""

import hashlib
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from gendistill.errors import UserError
from gendistill.files import damage_of, make_folder, read_json, write_atomically
from gendistill.placement.result import FILE
from gendistill.recipe.fields import drop_marked, result_settings
from gendistill.recipe.loading import Recipe
from gendistill.recipe.reading import read_yaml, signed
from gendistill.run.lock import LOCK, lock_folder

# Sections of a recipe whose entries count one by one, and evaluation, which counts for nothing that lies in the folder:
# records of answers have hashes of their own.
BY_ENTRY = ("stages", "data", "synthesis", "evaluation")
RECIPE, DAY = "recipe.yaml", "date.txt"


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
        self.stages = recipe.all_stages
        try:
            self._check()
        except OSError as error:
            raise self._unusable(error) from None

    def _check(self) -> None:
        if self._recipe.exists():
            # A rerun may change settings that no result depends on, so those are left out on both sides.
            before = drop_marked(read_yaml(self._recipe, "recipe"), self.recipe)
            if differences := sorted({*self._changes(before), *self._moved(before)}):
                raise UserError(
                    f"{self.root} holds a run of another recipe; different: {', '.join(differences)}. "
                    "What has begun there cannot change: undo that, give another --output, or delete the folder."
                )
        # Somebody's files, in which a run would be lost, or would overwrite something.
        elif self.root.exists() and any(path not in (self._date, self.root / LOCK) for path in self.root.iterdir()):
            raise UserError(f"{self.root} is not empty and holds no run (no recipe.yaml). Give another --output.")

    def _changes(self, before: Mapping[str, Any]) -> Iterator[str]:
        """Dotted keys of settings that differ and that something in the folder depends on."""
        stages = [name for _, name in self._begun(before)]
        written = [name for name in before.get("synthesis", {}) if self.synthesis(name).exists()]
        if not stages and not written:
            return  # no more than a folder with a recipe in it
        old, new = (_settled(values, stages, written) for values in (before, result_settings(self.recipe)))
        yield from _differences(old, new)

    def _moved(self, before: Mapping[str, Any]) -> Iterator[str]:
        """Stages that have begun and have another place in this recipe: their folders are numbered."""
        for place, name in self._begun(before):
            if name in self.stages and self.stages[place : place + 1] != [name]:
                yield f"stages.{name} (stage {place} there, {self.stages.index(name)} in this recipe)"

    def _begun(self, before: Mapping[str, Any]) -> list[tuple[int, str]]:
        """Places and names of the stages that have left a student or a checkpoint."""
        places = list(enumerate(["conversion", *before.get("stages", {})]))
        found = [(place, name, self.root / f"{place}-{name}") for place, name in places]
        return [
            (place, name)
            for place, name, folder in found
            if (folder / "student").exists() or any((folder / "checkpoints").glob("step-*"))
        ]

    def create(self) -> None:
        """Creates the folder with its recipe, or brings the recipe there up to date; takes it for this process.

        Raises:
            UserError: another process works there, or the folder cannot be written.
        """
        try:
            make_folder(self.root)
            lock_folder(self.root)
            self._check()  # again: until now another process may have been at work there
            # Before the recipe, which makes the folder a run; and once: prompts must be the same on the next day.
            if not self._date.exists():
                write_day(self.root)
            write_recipe(self.root, self.recipe)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"{self.root}: no run can be kept there ({error.strerror or error}). Give another --output.")

    @property
    def _recipe(self) -> Path:
        return self.root / RECIPE

    @property
    def _date(self) -> Path:
        return self.root / DAY

    @property
    def day(self) -> date:
        """The day the run was created.

        Raises:
            UserError: the file holds something else.
        """
        written = self._date.read_text(errors="replace").strip()
        day, _, checksum = written.partition(" ")
        try:
            if checksum and written != _dated(day).strip():
                raise ValueError("a digit has changed since")
            return date.fromisoformat(day)
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

    def check_student(self, stage: str, only: str | None = None) -> None:
        """Reads a student's folder whole, or one file of it: weights that were changed, or half copied, would be no
        student of this run.

        Raises:
            UserError: a file is not as it was written.
        """
        if (damage := damage_of(self.student(stage), only)) is not None:
            raise UserError(f"{self.student(stage)}: {damage}. Delete that folder and run again.")

    def read_report(self, stage: str) -> dict[str, Any]:
        """The report of a student.

        Raises:
            UserError: it is not as it was written.
        """
        path = self.report(stage)
        self.check_student(stage, only=path.name)
        return read_json(path)

    def before(self, stage: str) -> str:
        """The stage whose student a stage starts from."""
        return self.stages[self.stages.index(stage) - 1]  # of a stage of the recipe: "conversion" has none before it

    def metrics(self, stage: str) -> Path:
        return self.stage(stage) / "metrics.jsonl"  # stays when the checkpoints go

    def reply_kl(self, stage: str) -> Path:
        return self.stage(stage) / "reply_kl.json"

    @property
    def times(self) -> Path:
        return self.root / "times.jsonl"

    @property
    def placement(self) -> Path:
        return self.root / FILE

    @property
    def data(self) -> Path:
        return self.root / "data"  # by hash, so that stages that ask for the same share it

    def synthesis(self, name: str) -> Path:
        return self.root / "synthesis" / name

    @property
    def distant(self) -> Path:
        return self.root / "distant"  # by hash, as data

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"  # a folder per model in it, by label


def write_day(root: Path) -> None:
    """Writes down today as the day that chat templates are told."""
    write_atomically(root / DAY, _dated(str(date.today())))


def write_recipe(root: Path, recipe: Recipe) -> None:
    """Writes a recipe into a folder, which from then on is a run's."""
    # Every setting, defaults too: a later version with other defaults must not read another run out of it.
    write_atomically(root / RECIPE, signed(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)))


def stage_key(recipe: Recipe, stage: str) -> str:
    """Hash of all settings that a stage's student depends on, those of the stages before it among them.

    Students of one teacher, made by one version of the project, are equal if their keys are.
    """
    names = recipe.all_stages
    behind = names[: names.index(stage) + 1]
    values = result_settings(recipe)
    used = _settled(values, behind, synthesis_behind(recipe, behind))
    # The order too: two stages in another one end elsewhere, and sorted keys do not tell them apart.
    return hashlib.sha256(json.dumps([behind, used], sort_keys=True).encode()).hexdigest()


def synthesis_behind(recipe: Recipe, stages: Collection[str]) -> list[str]:
    """The sets of the teacher's writing that these stages learn from, or the conversion measures on."""
    # By source, since several mixtures may hold the same set.
    mixtures = {recipe.conversion.data if name == "conversion" else recipe.stages[name].mixture for name in stages}
    return sorted({source.synthesis for mixture in mixtures for source in recipe.data[mixture]} - {None})


def _dated(day: str) -> str:
    """A day with its checksum, since another day is as good a date as this one."""
    return f"{day} {zlib.crc32(day.encode()):08x}\n"


def _settled(values: Mapping[str, Any], stages: Collection[str], written: Collection[str]) -> dict[str, Any]:
    """The settings that these stages and these sets of the teacher's writing depend on."""
    trained = {name: values["stages"].get(name) for name in stages if name != "conversion"}
    # Layers may be placed by short trainings in a stage that has not begun yet.
    keep = values["student"]["keep_attention"]
    if isinstance(keep, Mapping) and keep.get("stage") is not None:
        trained[keep["stage"]] = values["stages"].get(keep["stage"])
    mixtures = {_mixture(stage["data"]) for stage in trained.values() if stage is not None}
    if "conversion" in stages:
        mixtures.add(values["conversion"]["data"])
    used = {name: values["data"].get(name) for name in mixtures}
    return {name: value for name, value in values.items() if name not in BY_ENTRY} | {
        "stages": trained,
        "data": used,
        "synthesis": {name: values.get("synthesis", {}).get(name) for name in written},
    }


def _mixture(data: str | Mapping[str, Any]) -> str:
    """`Stage.mixture` of a stage's data as written."""
    return data["on_policy"] if isinstance(data, Mapping) else data


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():  # a setting that is null and one that is not there are the same
            yield from _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    elif old != new:
        yield prefix.rstrip(".")
