"""ablation.json: what an ablation consists of, and how far it is; the queue writes it, reports read it.

{"format": 1,
 "name", "base": path of the base recipe, "seeds": [numbers],
 "axes": {axis: [names of the values that are tried beside the base's own]},
 "variants": [{"name", "axis", "value", "seed",
               "overrides": {dotted setting: value},
               "folder": of the run, relative to the ablation's,
               "state", "reason": of a failure, else null,
               "control": null, "window", "teacher" or "trained_teacher",
               "tokens": trained on, null before the end, "seconds": of its processes, null before the end}],
 "shared": [{"stage", "variants": [names], "run_once_in": folder}]}

Variants are rows of one seed, in the order of the table: those of the base (axis null, value "base") come first. Those
of the same axis and value differ in their seed alone. Of crossed axes, axis and value are joined by "+". A control has
no axis, and its own name as value. The folder is an ordinary run folder; the control "teacher" names that of the base
of its seed, in which evaluation/teacher holds its records.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from gendistill.errors import UserError
from gendistill.files import write_atomically
from gendistill.recipe.fields import FileName, Settings

FILE = "ablation.json"
BASE = "base"  # the value of the rows that change nothing
JOINED = "+"  # between the axes, and the values, of a crossed variant

State = Literal["waiting", "running", "done", "failed", "diverged"]
Control = Literal["window", "teacher", "trained_teacher"]


def _is_below(folder: str) -> str:
    # A report opens what lies there: a file that came from elsewhere must not lead out of its own folder.
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ValueError(f"{folder!r} must be a path below the ablation's folder")
    return folder


Below = Annotated[str, AfterValidator(_is_below)]


class Variant(Settings):
    """One row of one seed, see the module."""

    name: FileName
    axis: str | None
    value: str
    seed: int
    overrides: dict[str, Any]
    folder: Below
    state: State = "waiting"
    reason: str | None = None
    control: Control | None = None
    tokens: int | None = None
    seconds: float | None = None

    @property
    def row(self) -> str:
        """The variant whatever its seed: "objective=reverse_kl", "base", "window"."""
        return self.value if self.axis is None else f"{self.axis}={self.value}"


class SharedStage(Settings):
    """A stage that several variants have in common, and where it is run."""

    stage: str  # "conversion", a stage of the recipe, or "evaluation of the teacher"
    variants: Annotated[list[FileName], Field(min_length=2)]
    run_once_in: Below


class Ablation(Settings):
    """The whole file."""

    format: Literal[1] = 1
    name: str
    base: str
    seeds: list[int]
    axes: dict[str, list[str]]
    variants: list[Variant]
    shared: list[SharedStage] = []

    @model_validator(mode="after")
    def check(self) -> Self:
        # Reports look rows up by name, and colour them by axis.
        names = [variant.name for variant in self.variants]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"variants {', '.join(sorted(doubled))} stand twice")
        if unknown := {name for stage in self.shared for name in stage.variants} - set(names):
            raise ValueError(f"shared names {', '.join(sorted(unknown))}, which are no variants")
        axes = {axis for variant in self.variants if variant.axis for axis in variant.axis.split(JOINED)}
        if unknown := axes - set(self.axes):
            raise ValueError(f"variants have axes {', '.join(sorted(unknown))}; known are {', '.join(self.axes)}")
        return self


def write_ablation(folder: Path, ablation: Ablation) -> None:
    """Writes it into the ablation's folder, whole at once."""
    write_atomically(folder / FILE, json.dumps(ablation.model_dump(mode="json"), indent=1) + "\n")


def read_ablation(folder: Path) -> Ablation:
    """What `write_ablation` wrote.

    Raises:
        UserError: the folder has no such file, or it is damaged or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} is no ablation's folder (no {FILE}); give one that 'gendistill ablate' made")
    # Written whole at once, so that only a disk, a hand or another version can have done this.
    try:
        return Ablation.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or FILE
        raise UserError(f"{path}: is damaged or of another version ({where}: {problem['msg']})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error})") from None
