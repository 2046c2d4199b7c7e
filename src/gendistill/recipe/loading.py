"""The whole recipe, and how it is read.

A recipe is a YAML file. `load_recipe` reads it, applies dotted overrides ("stages.qk_alignment.tokens=1000") and
returns a frozen, fully checked object; nothing else in the project reads settings from anywhere else.
"""

import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from gendistill.errors import UserError
from gendistill.files import located_model
from gendistill.names import BACKENDS, STRATEGIES
from gendistill.recipe.data import Source, Synthesis
from gendistill.recipe.evaluation import Evaluation
from gendistill.recipe.fields import KEEPS_RESULTS, MAPPING, ONE, FileName, Settings, hint, one_of, recipe_folder
from gendistill.recipe.placement import Restored
from gendistill.recipe.reading import parse_yaml, read_yaml
from gendistill.recipe.shipped import shipped_recipes
from gendistill.recipe.stage import Stage
from gendistill.recipe.student import Conversion, Student

Section = TypeVar("Section", bound=Settings)


def _located_teacher(name: str, info: ValidationInfo) -> str:
    folder = recipe_folder(info)
    return name if folder is None else located_model(name, folder)


class Recipe(Settings):
    """A complete run."""

    name: FileName = Field(description="names the run folder, runs/NAME")
    teacher: Annotated[str, AfterValidator(_located_teacher)] = Field(
        description="'embedded', a Hugging Face folder (relative to the recipe's), or a hub id"
    )
    seed: int = Field(0, description="of new tensors, of the order of data, and of which items are drawn")
    device: Annotated[Literal["auto", "cpu", "cuda"], KEEPS_RESULTS] = Field(
        "auto", description="auto: the GPU if there is one"
    )
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
    strategy: Annotated[one_of(STRATEGIES, "strategy"), KEEPS_RESULTS] = Field(
        "auto", description="how many processes hold the models; with one process it has no effect"
    )
    student: Student = Field(description="what the student looks like")
    conversion: Conversion = Field(Conversion(), description="how the untrained student is initialised and measured")
    data: dict[str, Annotated[list[Source], Field(min_length=1)]] = Field(
        description="mixtures by name, each a list of sources"
    )
    synthesis: dict[FileName, Synthesis] = Field({}, description="sets of records that the teacher writes, by name")
    held_out: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.01,
        description="share of every source's records that no stage trains on; the loss of each stage is measured on "
        "them as well. 0: none",
    )
    stages: dict[FileName, Stage] = Field(description="in their order; none: the student is converted and evaluated")
    evaluation: Evaluation = Field(description="what teacher and student are asked")

    @property
    def all_stages(self) -> list[str]:
        """The conversion and the stages, in their order."""
        return ["conversion", *self.stages]

    @property
    def evaluated_stages(self) -> list[str]:
        """Those after which the student is evaluated; an empty list in the recipe means none."""
        return self.all_stages if self.evaluation.stages is None else self.evaluation.stages

    @model_validator(mode="after")
    def check(self):
        # Names must be found here, while the line in the recipe is known: later they would be a KeyError hours in.
        uses = {"conversion": self.conversion.data} | {
            f"stages.{name}": stage.mixture for name, stage in self.stages.items()
        }
        for user, mixture in uses.items():
            if mixture not in self.data:
                raise ValueError(f"{user} asks for data '{mixture}'; the data section has: {', '.join(self.data)}")
        wanted = {source.synthesis for mixture in self.data.values() for source in mixture} - {None}
        if missing := sorted(wanted - self.synthesis.keys()):
            known = ", ".join(self.synthesis) or "nothing"
            raise ValueError(f"data asks for synthesis '{missing[0]}'; the synthesis section has: {known}")
        self._check_distances()
        self._check_placement()
        if "conversion" in self.stages:
            raise ValueError("stages.conversion: that is the name of the conversion itself; choose another")
        if unknown := [stage for stage in self.evaluated_stages if stage not in self.all_stages]:
            known = ", ".join(self.all_stages)
            raise ValueError(f"evaluation.stages: {', '.join(unknown)} unknown; this recipe has {known}")
        for name, stage in self.stages.items():
            # Plain text has no replies: its loss mask would be empty.
            if stage.loss_on == "completion" and not all(source.gives_chat for source in self.data[stage.mixture]):
                raise ValueError(
                    f"stages.{name}: loss_on completion needs conversations (messages, or prompt and completion)"
                )
        return self

    def _check_distances(self) -> None:
        """That every answer fits into a row together with what it depends on."""
        # Of the conversion as well: it measures on a mixture.
        uses = [("conversion", self.conversion.data, self.conversion.sequence_length)]
        uses += [(f"stages.{name}", stage.mixture, stage.sequence_length) for name, stage in self.stages.items()]
        for user, mixture, length in uses:
            longest = max((source.distances[1] for source in self.data[mixture] if source.distances), default=0)
            if longest > length:
                raise ValueError(
                    f"{user}: data '{mixture}' has answers up to {longest:,} tokens back (distances), and "
                    f"sequence_length is {length:,}. Raise it to {longest:,} or more, or lower the "
                    "distances"
                )

    def _check_placement(self) -> None:
        keep = self.student.keep_attention
        if not isinstance(keep, Restored) or keep.stage is None:
            return
        if keep.stage not in self.stages:
            raise ValueError(
                f"keep_attention.stage is '{keep.stage}'; this recipe has {', '.join(self.stages) or 'no stages'}"
            )
        if self.stages[keep.stage].on_policy is not None:
            raise ValueError(
                f"keep_attention.stage: layers are ranked on the same text, and in '{keep.stage}' each student would "
                "write its own; name a stage that is not on_policy"
            )
        if list(self.stages[keep.stage].terms) != ["forward_kl"]:
            raise ValueError(
                f"keep_attention.stage: layers are ranked by KL, so '{keep.stage}' must minimise forward_kl"
            )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        path: a YAML file, or the name of a shipped recipe ("demo"). Relative paths in a file and in its overrides are
            relative to its folder; a name has no folder, so those in its overrides are relative to the current one.
        overrides: "dotted.key=value" strings, the value in YAML ("student.keep_attention=[0, 4]").

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown (with the nearest known one), or a value is
            out of bounds.
    """
    path, folder = _find_recipe(Path(path))
    settings = read_yaml(path, "recipe")
    # Before the check, so that a checked recipe is never changed, and the run folder keeps what was really used.
    for override in overrides:
        _apply(settings, override)
    _find_placement(settings, folder)
    return parse_recipe(settings, origin=str(path), folder=folder.absolute())


def _find_recipe(path: Path) -> tuple[Path, Path]:
    """The file of a recipe, and the folder that its relative paths are relative to."""
    shipped = shipped_recipes()
    # A file wins: whoever calls one of their own "demo" means that.
    if path.is_file():
        return path, path.parent
    if str(path) in shipped:
        return shipped[str(path)], Path()
    known = ", ".join(shipped) or "none are installed"
    raise UserError(f"{path}: no such recipe. Give a YAML file, or the name of a shipped recipe: {known}")


def parse_recipe(settings: dict[str, Any], origin: str, folder: Path | None = None) -> Recipe:
    """Checks a mapping of settings.

    Args:
        origin: names it in error messages.
        folder: what its relative paths are relative to; None leaves them as they are.
    """
    return _parse(Recipe, settings, origin, folder)


def parse_evaluation(settings: dict[str, Any], origin: str, folder: Path) -> Evaluation:
    """Checks the settings of an evaluation that belongs to no recipe, as `parse_recipe` does those of one."""
    return _parse(Evaluation, settings, origin, folder)


def _parse(section: type[Section], settings: dict[str, Any], origin: str, folder: Path | None) -> Section:
    try:
        return section.model_validate(settings, context={"folder": folder})
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
    node, annotation = settings, Recipe
    for parent in parents:
        node, annotation = _below(node, parent, annotation, override), _annotation_inside(annotation, parent)
    # A number, list or mapping as it would be in the file.
    node[_key(node, last, override)] = parse_yaml(value, f"override '{override}'")


def _below(node: dict | list, name: str, annotation: Any, override: str) -> dict | list:
    """What an override goes down to under a name; a section that is left to its defaults is made."""
    key = _key(node, name, override)
    if isinstance(node, dict) and node.get(key) is None:
        # Under names of the user's own, one that is not there is mistyped: nothing but this override would be set.
        if any(get_origin(option) is dict for option in _alternatives(annotation)):
            raise UserError(f"override '{override}': there is no '{name}'; {hint(name, [str(key) for key in node])}")
        node[key] = {}
    if not isinstance(node[key], dict | list):
        raise UserError(f"override '{override}': '{name}' is not a section of the recipe")
    return node[key]


def _key(node: dict | list, name: str, override: str) -> str | int:
    """The key of a section, or the index of a list's item, that a part of an override stands for."""
    number = int(name) if name.isascii() and name.isdigit() else None
    if isinstance(node, list):
        if number is None or number >= len(node):
            raise UserError(
                f"override '{override}': '{name}' is no item of that list, which has {len(node)}, counted from 0"
            )
        return number
    return number if number in node else name  # layers are numbers in the file


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
