"""The ablation file: a base recipe, the axes along which it is changed, seeds, and the controls beside them.

name: loss
base: demo.yaml                # relative to this file
seeds: [0, 1]
axes:
  duration:                    # a setting and its values, which name themselves
    stages.instruction_distillation.tokens: [50_000, 100_000]
  objective:                   # named values, each of one or several settings
    reverse_kl: {stages.instruction_distillation.objective: reverse_kl}
    likelihood: {stages.instruction_distillation.objective: cross_entropy, stages.logit_distillation.tokens: 1_000}
controls:
  window: {student.window: 32}
  teacher:
"""

import json
import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from gendistill.ablation.result import BASE, Control
from gendistill.errors import UserError
from gendistill.files import located
from gendistill.recipe.fields import FileName, Settings
from gendistill.recipe.reading import read_yaml
from gendistill.recipe.shipped import shipped_ablations

Overrides = dict[str, Any]  # dotted settings of the recipe, and their values


def _named(axis: Any) -> Any:
    """An axis as named values: a setting with a list of values is unfolded, what is one already stays."""
    if not isinstance(axis, dict):
        return axis
    named: list[tuple[str, Any]] = []
    for name, values in axis.items():
        # A named value is a mapping of settings, so that a list can only be a setting's values.
        if isinstance(values, list):
            named += [(_plain(value), {name: value}) for value in values]
        else:
            named.append((name, values))
    names = [name for name, _ in named]
    if doubled := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ValueError(f"two values are called {', '.join(doubled)}; name them, as NAME: {{SETTING: VALUE}}")
    return dict(named)


def _plain(value: Any) -> str:
    """A value as a part of a file's name: [2, 5] -> "2-5"."""
    # What is left of an empty list is nothing, and a folder needs a name.
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(value)).strip("-.") or "none"


Axis = Annotated[
    dict[FileName, Annotated[Overrides, Field(min_length=1)]], Field(min_length=1), BeforeValidator(_named)
]


class AblationFile(Settings):
    """What to try; see the module."""

    name: FileName
    base: str = Field(description="recipe, relative to the ablation file's folder")
    settings: Overrides = Field({}, description="changes to the base, and so to all variants")
    seeds: Annotated[list[int], Field(min_length=1)] = Field([0], description="of every variant, so that seeds pair")
    axes: dict[FileName, Axis] = Field(min_length=1)
    crossed: bool = Field(
        False, description="every value with every value of the other axes, not one axis at a time from the base"
    )
    controls: dict[Control, Overrides | None] = Field(
        {}, description="rows beside the axes: window, teacher, trained_teacher; each with settings of its own, if any"
    )

    @model_validator(mode="after")
    def check(self):
        # As two rows of the same figures it would be taken for a second opinion.
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: one stands twice; a seed gives the same results again")
        if taken := {BASE, "window", "teacher", "trained_teacher"} & self.axes.keys():
            raise ValueError(f"axes: {', '.join(sorted(taken))} names rows of another sort; choose another name")
        if self.controls.get("teacher"):
            raise ValueError("controls.teacher: the teacher stays as it is, so it takes no settings")
        try:
            json.dumps(self.model_dump())
        except TypeError as error:
            # YAML reads 2026-01-31 as a date, which no setting is.
            raise ValueError(f"values are numbers, texts, lists and mappings ({error}); quote what is a text") from None
        if self.crossed:
            self._check_apart()
        return self

    def _check_apart(self) -> None:
        """That no two axes change the same setting: one of two values would win without a word."""
        changed = [(axis, key) for axis, values in self.axes.items() for value in values.values() for key in value]
        for (axis, key), (other, below) in product(changed, repeat=2):
            # A section and a setting in it, too: "stages" would take "stages.one.tokens" away again.
            if axis != other and f"{below}.".startswith(f"{key}."):
                raise ValueError(f"axes {axis} and {other} are crossed, and both change {below}")


def read_ablation_file(path: Path) -> AblationFile:
    """Reads and checks an ablation file; the base's path in it becomes absolute.

    Raises:
        UserError: it cannot be read, or settings are unknown or out of bounds: all of them are named.
    """
    shipped = shipped_ablations()
    if not path.is_file():  # a file of a shipped one's name wins
        path = shipped.get(str(path), path)
    if not path.is_file():
        raise UserError(f"{path}: no such ablation. Ablations are YAML files; shipped by name: {', '.join(shipped)}.")
    settings = read_yaml(path, "ablation")
    try:
        found = AblationFile.model_validate(settings)
    except ValidationError as error:
        # All of them: a user should not have to start once per mistake.
        lines = [f"  {'.'.join(map(str, each['loc'])) or 'ablation'}: {each['msg']}" for each in error.errors()]
        raise UserError(f"{path}: {len(lines)} setting(s) to mend\n" + "\n".join(lines)) from None
    # Absolute, since it is written into the ablation's folder, and read from anywhere.
    return found.model_copy(update={"base": located(found.base, path.parent)})


def as_written(overrides: Overrides) -> list[str]:
    """Overrides as a command line has them, "dotted.key=value"."""
    # JSON is YAML, which their values are read as.
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
