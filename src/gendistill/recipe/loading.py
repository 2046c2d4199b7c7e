"""The whole recipe, and how it is read.

A recipe is a YAML file. `load_recipe` reads it, applies dotted overrides ("stages.qk_alignment.tokens=1000") and
returns a frozen, fully checked object; nothing else in the project reads settings from anywhere else.
"""

import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from gendistill.errors import UserError
from gendistill.names import BACKENDS
from gendistill.recipe.data import Source, Synthesis
from gendistill.recipe.evaluation import Evaluation
from gendistill.recipe.fields import KEEPS_RESULTS, MAPPING, ONE, Settings, hint, one_of
from gendistill.recipe.placement import Restored
from gendistill.recipe.stage import Stage
from gendistill.recipe.student import Conversion, Student


class Recipe(Settings):
    """A complete run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    teacher: str = Field(description="'embedded', a Hugging Face folder, or a hub id")
    seed: int = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], KEEPS_RESULTS] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the arithmetic: bfloat16 on CUDA, float32 on a CPU; master weights are float32",
    )
    backend: one_of(BACKENDS, "backend") = Field(
        "auto", description="what computes the recurrence: auto takes kernels on CUDA and chunks elsewhere"
    )
    compile: Annotated[Literal["auto"] | bool, KEEPS_RESULTS] = Field(
        "auto", description="torch.compile and CUDA graphs in training; auto: on a CUDA device"
    )
    student: Student
    conversion: Conversion = Conversion()
    data: dict[str, Annotated[list[Source], Field(min_length=1)]]
    synthesis: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], Synthesis] = {}
    stages: dict[str, Stage] = Field(description="in their order; none: the student is converted and evaluated")
    evaluation: Evaluation

    @model_validator(mode="after")
    def check(self):
        # Names must be found here, while the line in the recipe is known: later they would be a KeyError hours in.
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
        self._check_placement()
        stages = ["conversion", *self.stages]
        if unknown := [stage for stage in self.evaluation.stages or [] if stage not in stages]:
            raise ValueError(f"evaluation.stages: {', '.join(unknown)} unknown; this recipe has {', '.join(stages)}")
        for name, stage in self.stages.items():
            # Plain text has no replies: its loss mask would be empty.
            if stage.loss_on == "completion" and not all(source.is_chat for source in self.data[stage.data]):
                raise ValueError(
                    f"stages.{name}: loss_on completion needs conversations (messages, or prompt and completion)"
                )
        return self

    def _check_placement(self) -> None:
        keep = self.student.keep_attention
        if not isinstance(keep, Restored) or keep.stage is None:
            return
        if keep.stage not in self.stages:
            raise ValueError(f"keep_attention.stage is '{keep.stage}'; this recipe has {', '.join(self.stages)}")
        if list(self.stages[keep.stage].terms) != ["forward_kl"]:
            raise ValueError(
                f"keep_attention.stage: layers are ranked by KL, so '{keep.stage}' must minimise forward_kl"
            )


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
    # Before the check, so that a checked recipe is never changed, and the run folder keeps what was really used.
    for override in overrides:
        _apply(settings, override)
    _find_placement(settings, path.parent)
    return parse_recipe(settings, origin=str(path))


def parse_recipe(settings: dict[str, Any], origin: str) -> Recipe:
    """Checks a mapping of settings; `origin` names it in error messages."""
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        # All of them: a user should not have to start once per mistake.
        lines = [f"  {_explain(problem)}" for problem in error.errors()]
        # "from None": pydantic's own message would be shown above ours.
        raise UserError(f"{origin}: {len(lines)} setting(s) to mend\n" + "\n".join(lines)) from None


def _find_placement(settings: dict, folder: Path) -> None:
    """Makes the path of a placement's result one that holds wherever the program is started."""
    student = settings.get("student")
    keep = student.get("keep_attention") if isinstance(student, dict) else None
    # Of another type: the check of the recipe says so.
    if isinstance(keep, dict) and isinstance(keep.get("from"), str):
        keep["from"] = str((folder / keep["from"]).resolve())


def _apply(settings: dict, override: str) -> None:
    key, equals, value = override.partition("=")  # the first one: values may hold more
    if not equals:
        raise UserError(f"override '{override}': write it as dotted.key=value, e.g. stages.qk_alignment.tokens=100000")
    *parents, last = key.strip().split(".")
    node = settings
    for parent in parents:
        node = node.setdefault(parent, {})  # a section that is left to its defaults is not in the file
        if not isinstance(node, dict):
            raise UserError(f"override '{override}': '{parent}' is not a section of the recipe")
    try:
        node[last] = yaml.safe_load(value)  # a number, list or mapping as it would be in the file
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not valid YAML: {error}") from None


def _explain(problem: dict) -> str:
    """One line on one of pydantic's errors: where, what is wrong, what was given."""
    # Tags of unions and of a mapping's keys say how pydantic looked, not where in the file.
    where = ".".join(str(part) for part in problem["loc"] if part not in (ONE, MAPPING, "[key]")) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(problem["loc"][:-1])  # the last part is the unknown name itself
        return f"{where}: unknown setting; {hint(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{where}: missing, and it has no default; give it a value"
    # The project's own checks say what was given; for a whole section it would fill pages.
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _fields_at(location: tuple) -> list[str]:
    """Names of the settings allowed at a location such as ("stages", "qk_alignment", "schedule")."""
    # Walked from the recipe's own annotations, so that a new section is known here without being listed.
    annotation = Recipe
    for part in location:
        annotation = _annotation_inside(annotation, part)
    # In a union of sections (tasks of several kinds) pydantic may not have said which was meant.
    sections = [option for option in _alternatives(annotation) if _is_section(option)]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _annotation_inside(annotation: Any, part: str | int) -> Any:
    """The annotation of what lies under a field's name, a key or an index."""
    for option in _alternatives(annotation):
        if _is_section(option):
            # A task is declared by what all kinds have in common: what only one kind has stands in a class below it.
            for section in _with_subclasses(option):
                if part in section.model_fields:
                    return section.model_fields[part].annotation
        if get_origin(option) in (dict, list, tuple):
            return get_args(option)[-1]  # of a dict's key and value, the value
    return annotation  # `part` is not in the recipe: pydantic names here which alternative of a union it tried


def _with_subclasses(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for below in section.__subclasses__():
        yield from _with_subclasses(below)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself; without what Annotated adds."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):  # written Optional[X] or X | None
        for member in get_args(annotation):
            yield from _alternatives(member)
    else:
        yield annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
