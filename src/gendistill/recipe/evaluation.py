"""What a run evaluates: tasks, and how replies are sampled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gendistill.errors import UserError
from gendistill.evaluate.kinds import KINDS
from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.files import located
from gendistill.recipe.fields import KEEPS_RESULTS, FileName, Settings, StopTexts, hint, recipe_folder
from gendistill.recipe.reading import read_yaml

TASK_FILES = Path(__file__).parents[1] / "evaluate" / "tasks"  # task files

_PATHS = ("path", "shots_path")  # settings of tasks that name local files
# What a local path makes void in a task file.
_REPLACED = {"path": ("hub", "subset", "shots_hub", "shots_subset"), "shots_path": ("shots_hub", "shots_subset")}


def _validated(settings: Any, info: ValidationInfo) -> Any:
    """Settings of a task, checked by the class of their kind, which is looked up here and not before: a kind that is
    added to the table is known from then on."""
    if not isinstance(settings, dict):
        return settings  # a task already, or what pydantic refuses as no mapping
    settings = _started_from_file(_from_folder(settings, recipe_folder(info)))
    kind = _kind_of(settings)
    _check_names(kind, settings)
    return kind.model_validate(settings)


# A task of any kind in `KINDS`; what `kind` says decides which settings there are. A recipe's task may start from a
# task file: `task` names one of those in gendistill/evaluate/tasks, or is the path of any .yaml file with these
# settings. The recipe's settings win, and its `path` takes the place of the file's hub.
Task = Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_validated)]
# SerializeAsAny: written with the settings of its kind, not only those that all kinds have.
_TASK = TypeAdapter(Task)


def make_task(**settings: Any) -> TaskSettings:
    """A task from settings as a recipe has them.

    Raises:
        ValidationError: one of them is unknown, of another kind, or out of bounds.
    """
    return _TASK.validate_python(settings)


def _started_from_file(settings: dict[str, Any]) -> dict[str, Any]:
    if settings.get("task") is None:
        return settings
    # What the recipe says, null too, is what counts.
    own = {name: value for name, value in settings.items() if name != "task"}
    replaced = {name for path, names in _REPLACED.items() if own.get(path) is not None for name in names}
    start = read_task_file(str(settings["task"]))
    return {name: value for name, value in start.items() if name not in replaced} | own


def _from_folder(settings: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The settings with their local paths made absolute, where it is known what they are relative to."""
    if folder is None:
        return settings
    files = [name for name in _PATHS if isinstance(settings.get(name), str)]
    if str(settings.get("task")).endswith((".yaml", ".yml")):  # else it names a task file that is shipped
        files.append("task")
    return settings | {name: located(settings[name], folder) for name in files}


def _kind_of(settings: Mapping[str, Any]) -> type[TaskSettings]:
    if "kind" not in settings:
        raise _problems([InitErrorDetails(type="missing", loc=("kind",), input=settings)])
    kind = settings["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(f"'{name}'" for name in KINDS)
        problem = PydanticCustomError("unknown_kind", "unknown kind; known: {known}", {"known": known})
        raise _problems([InitErrorDetails(type=problem, loc=("kind",), input=kind)])
    return KINDS[kind]


def _check_names(kind: type[TaskSettings], settings: Mapping[str, Any]) -> None:
    """Refuses settings that the kind does not have, with the nearest that it has or the kinds that have them."""
    # Before the kind's own checks: a setting of another kind is named as such, not as unknown.
    others = [name for name in settings if name not in kind.model_fields]
    if unknown := [name for name in others if not _kinds_with(name)]:
        raise _problems([_unknown_setting(name, settings[name], list(kind.model_fields)) for name in unknown])
    if others:  # of another kind
        raise ValueError(
            f"kind {settings['kind']} has no {', '.join(sorted(others))}; "
            f"that is for {', '.join(_kinds_with(min(others)))}"
        )


def _kinds_with(setting: str) -> list[str]:
    return [name for name, kind in KINDS.items() if setting in kind.model_fields]


def _unknown_setting(name: str, given: Any, known: list[str]) -> InitErrorDetails:
    message = f"unknown setting; {hint(str(name), known)}"
    return InitErrorDetails(
        type=PydanticCustomError("value_error", "{message}", {"message": message}), loc=(name,), input=given
    )


def _problems(problems: list[InitErrorDetails]) -> ValidationError:
    """Pydantic's own error, since only that says which setting of the task a problem is with."""
    return ValidationError.from_exception_data("task", problems)


def task_names() -> list[str]:
    """Names of the task files that are shipped."""
    return sorted(path.stem for path in TASK_FILES.glob("*.yaml"))


def read_task_file(name: str) -> dict[str, Any]:
    """Settings of a task file.

    Args:
        name: of a shipped task file, or a path that ends in .yaml.

    Raises:
        UserError: there is no such file, it is no YAML mapping, or it holds a setting that tasks do not have.
    """
    # The ending decides: a name without one is never looked for in the current folder.
    path = Path(name) if name.endswith((".yaml", ".yml")) else TASK_FILES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"no task file '{name}'; {hint(name, task_names())}. A file of your own is given by its path, "
            "ending in .yaml"
        )
    settings = _from_folder(read_yaml(path, "task"), path.parent.absolute())
    # Of any kind: the recipe may give the kind, or another one. `task` is not among them, files do not nest.
    known = list(dict.fromkeys(field for kind in KINDS.values() for field in kind.model_fields if field != "task"))
    if unknown := [key for key in settings if key not in known]:
        raise UserError(f"task file {path}: unknown setting '{unknown[0]}'; {hint(str(unknown[0]), known)}")
    return settings


def _harness_task(name: str, info: ValidationInfo) -> str:
    folder = recipe_folder(info)
    return located(name, folder) if folder is not None and name.endswith((".yaml", ".yml")) else name


HarnessTask = Annotated[str, AfterValidator(_harness_task)]


class Harness(Settings):
    """Tasks of lm-evaluation-harness, prompted and graded in its own way; needs the extra `harness`."""

    tasks: Annotated[list[HarnessTask], Field(min_length=1)] = Field(
        description="names it knows, or .yaml files of tasks"
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(None, description="few-shot examples; the task's if absent")
    limit: PositiveInt | None = Field(None, description="items of each task, the first ones; all if absent")


class Evaluation(Settings):
    tasks: dict[FileName, Task] = Field(
        min_length=1, description="by names of your own, which name files of the run folder"
    )
    batch_size: Annotated[PositiveInt | None, KEEPS_RESULTS] = Field(
        None, description="prompts at a time; as many as fit if absent. Scores do not depend on it"
    )
    temperature: Annotated[float, Field(ge=0.0)] = Field(0.0, description="0: greedy replies")
    # Of no effect on greedy replies, which take the likeliest token whatever else there is.
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="of sampled replies: tokens beyond this share of the probability are left out"
    )
    stop: StopTexts = Field((), description="texts at which replies of all tasks end, besides those of each task")
    stages: list[str] | None = Field(
        None, description="'conversion' and stages after which to evaluate: all if absent, none if []"
    )
    harness: Harness | None = Field(None, description="tasks of lm-evaluation-harness to evaluate besides")
