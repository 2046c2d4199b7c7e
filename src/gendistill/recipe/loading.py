"""The whole recipe, and how it is read.

A recipe is a YAML file. `load_recipe` reads it, applies dotted overrides ("stages.qk_alignment.tokens=1000") and
returns a frozen, fully checked object; nothing else in the project reads settings from anywhere else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from gendistill.errors import UserError
from gendistill.names import BACKENDS
from gendistill.recipe.data import Prompts, Source, Synthesis
from gendistill.recipe.evaluation import Corrections, Evaluation, Harness, Task
from gendistill.recipe.fields import MAPPING, ONE, Settings, hint, one_of
from gendistill.recipe.stage import Schedule, Stage
from gendistill.recipe.student import Conversion, Student


class Recipe(Settings):
    """A complete run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    teacher: str = Field(description="'embedded', a Hugging Face folder, or a hub id")
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the arithmetic: bfloat16 on CUDA, float32 on a CPU; master weights are float32",
    )
    backend: one_of(BACKENDS, "backend") = Field(
        "auto", description="what computes the recurrence: auto takes kernels on CUDA and chunks elsewhere"
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile and CUDA graphs in training; auto: on a CUDA device"
    )
    student: Student
    conversion: Conversion = Conversion()
    data: dict[str, Annotated[list[Source], Field(min_length=1)]]
    synthesis: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], Synthesis] = {}
    stages: dict[str, Stage] = Field(min_length=1)
    evaluation: Evaluation

    @model_validator(mode="after")
    def check(self):
        uses = {"conversion": self.conversion.data} | {
            f"stages.{name}": stage.data for name, stage in self.stages.items()
        }
        for user, mixture in uses.items():
            if mixture not in self.data:
                raise ValueError(f"{user} asks for data '{mixture}'; the data section has: {', '.join(self.data)}")
        wanted = {source.synthesis for mixture in self.data.values() for source in mixture} - {None}
        if missing := sorted(wanted - self.synthesis.keys()):
            known = ", ".join(self.synthesis) or "nothing"
            raise ValueError(f"data asks for synthesis '{missing[0]}'; the synthesis section has: {known}")
        points = ["conversion", *self.stages]
        if unknown := [point for point in self.evaluation.points or [] if point not in points]:
            raise ValueError(f"evaluation.points: {', '.join(unknown)} unknown; this recipe has {', '.join(points)}")
        for name, stage in self.stages.items():
            if stage.loss_on == "completion" and not all(source.is_chat for source in self.data[stage.data]):
                raise ValueError(
                    f"stages.{name}: loss_on completion needs conversations (messages, or prompt and completion)"
                )
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        path: a YAML file.
        overrides: "dotted.key=value" strings, the value in YAML ("student.keep_attention=[0, 4]").

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown (with the nearest known one), or a value is
            out of bounds.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such recipe. Recipes are YAML files; the project ships some in recipes/.")
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, this is a {type(settings).__name__}")
    for override in overrides:
        _apply(settings, override)
    return parse_recipe(settings, origin=str(path))


def parse_recipe(settings: dict[str, Any], origin: str) -> Recipe:
    """Checks a mapping of settings; `origin` names it in error messages."""
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        lines = [f"  {_explain(problem)}" for problem in error.errors()]
        raise UserError(f"{origin}: {len(lines)} setting(s) to mend\n" + "\n".join(lines)) from None


def _apply(settings: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"override '{override}': write it as dotted.key=value, e.g. stages.qk_alignment.tokens=100000")
    *parents, last = key.strip().split(".")
    node = settings
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"override '{override}': '{parent}' is not a section of the recipe")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not valid YAML: {error}") from None


def _explain(problem: dict) -> str:
    where = ".".join(str(part) for part in problem["loc"] if part not in (ONE, MAPPING, "[key]")) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(problem["loc"][:-1])
        return f"{where}: unknown setting; {hint(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{where}: missing, and it has no default; give it a value"
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _fields_at(location: tuple) -> list[str]:
    """Names of the settings allowed at a place like ("stages", "qk_alignment", "schedule")."""
    sections = {
        "corrections": Corrections,
        "student": Student,
        "conversion": Conversion,
        "evaluation": Evaluation,
        "harness": Harness,
        "schedule": Schedule,
    }
    containers = {"stages": Stage, "tasks": Task, "data": Source, "synthesis": Synthesis, "prompts": Prompts}
    model: type[BaseModel] = Recipe
    for part in location:
        model = sections.get(part) or containers.get(part) or model
    return list(model.model_fields)
