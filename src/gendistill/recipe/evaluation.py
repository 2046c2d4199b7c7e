"""What a run is asked: tasks, and how replies are sampled."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from gendistill.errors import UserError
from gendistill.names import ASKED, MADE, Kind
from gendistill.recipe.fields import KEEPS_RESULTS, Names, Settings, check_one_of, hint

TASK_FILES = Path(__file__).parents[1] / "evaluate" / "tasks"  # task files


class Corrections(Settings):
    """Answers that were checked again, record by record. Records with any other verdict are dropped, as are those
    whose new answer names no choice."""

    verdict: str = Field(description="field with the verdict; '_' and blanks are the same in it")
    keep: list[str] = Field(description="verdicts that leave the answer as it is")
    replace: list[str] = Field(description="verdicts under which `answer` holds the right choices instead")
    answer: str = Field(description="field with the right choices, by letter or index: 'B', '0, 2', '1 or 2'")


# What a local path makes void in a task file.
_REPLACED = {"path": ("hub", "subset", "shots_hub", "shots_subset"), "shots_path": ("shots_hub", "shots_subset")}
_KINDS_WITH: dict[str, tuple[Kind, ...]] = {  # of settings that only some kinds know
    **dict.fromkeys(("task", "kind", "version", "items", "max_new_tokens"), (*ASKED, *MADE)),
    "choices": ("multiple_choice", "short_answer"),
    **dict.fromkeys(("options", "labels", "choice_count", "shuffle", "corrections"), ("multiple_choice",)),
    **dict.fromkeys(("rank_by", "rotations"), ("multiple_choice",)),
    **dict.fromkeys(("tests", "entry_point", "prefix"), ("code",)),
    **dict.fromkeys(("instruction_ids", "kwargs"), ("instructions",)),
    **dict.fromkeys(("shots", "shots_by"), tuple(kind for kind in ASKED if kind != "instructions")),
    **dict.fromkeys(("length", "keys"), MADE),
    "haystack": ("needle",),
}


class Task(Settings):
    """One question set: how its records become questions, and how replies to them are marked.

    Kinds:

    - multiple_choice: options under letters; the reply names one.
    - short_answer: `answer` is a text or a list of accepted texts. Ranked are the record's `choices`, if it has any, or
      other items' answers.
    - last_number: the last number in `answer` is the right one (GSM8K's "#### 18" too).
    - last_word: the last word of the text in `question` is asked for (LAMBADA), the text before it is shown.
    - code: the reply is a program, and `tests` are run after it. Not ranked.
    - instructions: the reply must follow instructions that a program can check (IFEval). Not ranked.
    - needle, recall: long contexts made on the spot, without a source (`gendistill.evaluate.long_context`).

    How fields are named, in all settings marked "field" below: as in the records, `a.b` for `b` inside `a`, and
    "a, b" for both in one list. A list of names in YAML stands for the first of them that a record has.

    How the options of multiple_choice are found: the field `choices` holds a list of texts, or a mapping
    {text: [...], label: [...]} of texts and their labels; or several fields hold an option each ("A, B, C, D"); or
    `options` are the same for all records. The `answer` is one of: an index, from 0; true or false, for the second or
    the first of two options; a label (of `labels`, else of the record, else the option's letter); an option's text;
    a list with 1 for right and 0 for wrong options.

    A recipe's task may start from a task file: `task` names one of those in gendistill/evaluate/tasks, or is the path
    of any .yaml file with these settings. The recipe's settings win, and its `path` takes the place of the file's hub.
    """

    task: str | None = Field(None, description="task file to start from; read while the recipe is loaded, then null")
    kind: Kind
    version: PositiveInt = Field(1, description="of the questions and the marking; raised when scores may change")

    path: str | None = Field(None, description="local file, folder or pattern, as in a data source")
    hub: str | None = Field(None, description="data set id on the Hugging Face hub")
    subset: Names = Field((), description="configurations of the hub data set; their names become the field 'subject'")
    split: str = Field("test", description="split of the hub data set or of a folder")

    question: Names = Field(("question",), min_length=1, description="field")
    template: Names = Field(
        (), description="the user's turn, with {question} or other {fields}; of several, the first a record can fill"
    )
    choices: Names = Field(("choices",), min_length=1, description="field")
    options: list[str] | None = Field(None, description="options of all records, in the place of `choices`")
    labels: list[str] | None = Field(None, description="how `answer` calls the first, second ... option")
    choice_count: PositiveInt | None = Field(None, description="options of every record; any number if absent")
    shuffle: bool = Field(False, description="options in an order drawn by the recipe's seed")
    answer: Names = Field(("answer",), min_length=1, description="field; in code a solution, which need not be there")
    corrections: Corrections | None = None

    tests: Names = Field(
        ("tests",), min_length=1, description="field: program, or list of statements, that raises if a reply is wrong"
    )
    entry_point: str | None = Field(None, description="field with a function's name, which `tests` take as check(NAME)")
    prefix: str | None = Field(None, description="field with code that the reply may go on from")
    instruction_ids: str = Field("instruction_id_list", description="field with names of instructions")
    kwargs: str = Field("kwargs", description="field with the arguments of each instruction")

    length: PositiveInt | None = Field(None, description="tokens of the prompt, template and all")
    keys: PositiveInt = Field(1, description="needles in the haystack, or pairs that are asked for")
    haystack: str | None = Field(
        None, description="text to hide needles in, as a data source's path; made up if absent"
    )

    shots: Annotated[int, Field(ge=0)] = Field(0, description="few-shot examples before the question")
    shots_by: str | None = Field(None, description="field; examples come from records that agree with the item in it")
    shots_path: str | None = Field(None, description="where the examples are, if not where the items are")
    shots_hub: str | None = None
    shots_subset: Names = ()
    shots_split: str = Field("train", description="split with the examples")

    items: PositiveInt | None = Field(None, description="number of items, drawn by the recipe's seed; all if absent")
    max_new_tokens: PositiveInt = 32
    rank_by: Literal["letter", "text", "text_per_token", "text_per_byte"] = Field(
        "letter",
        description="what is ranked: the option's letter, or its text by the sum, or the sum per token or byte",
    )
    rotations: bool = Field(False, description="generation is asked once more under every rotation of the options")

    @property
    def is_made(self) -> bool:
        """Whether items are made on the spot rather than read."""
        return self.kind in MADE

    @model_validator(mode="before")
    @classmethod
    def start_from_file(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or settings.get("task") is None:
            return settings
        own = {name: value for name, value in settings.items() if name != "task"}
        replaced = {name for path, names in _REPLACED.items() if own.get(path) is not None for name in names}
        start = read_task_file(str(settings["task"]))
        return {name: value for name, value in start.items() if name not in replaced} | own

    @model_validator(mode="after")
    def check(self):
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if foreign := sorted(name for name in changed if self.kind not in _KINDS_WITH.get(name, ASKED)):
            raise ValueError(
                f"kind {self.kind} has no {', '.join(foreign)}; "
                f"that is for {', '.join(_KINDS_WITH.get(foreign[0], ASKED))}"
            )
        if self.is_made:
            if self.length is None:
                raise ValueError(f"kind {self.kind} needs length: how many tokens a prompt should have")
            return self
        check_one_of(self, "path", "hub")
        if self.options is not None and self.choice_count not in (None, len(self.options)):
            raise ValueError(f"choice_count {self.choice_count} contradicts the {len(self.options)} options")
        if self.shots_path is not None and self.shots_hub is not None:
            raise ValueError("give either 'shots_path' or 'shots_hub'")
        return self


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
    path = Path(name) if name.endswith((".yaml", ".yml")) else TASK_FILES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"no task file '{name}'; {hint(name, task_names())}. A file of your own is given by its path, "
            "ending in .yaml"
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"task file {path}: not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"task file {path}: a task is a mapping of settings, this is a {type(settings).__name__}")
    known = [field for field in Task.model_fields if field != "task"]
    if unknown := [key for key in settings if key not in known]:
        raise UserError(f"task file {path}: unknown setting '{unknown[0]}'; {hint(str(unknown[0]), known)}")
    return settings


class Harness(Settings):
    """Tasks of lm-evaluation-harness, which it asks and marks in its own way; needs the extra `harness`."""

    tasks: Annotated[list[str], Field(min_length=1)] = Field(description="names it knows, or .yaml files of tasks")
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(None, description="few-shot examples; the task's if absent")
    limit: PositiveInt | None = Field(None, description="items of each task, the first ones; all if absent")


class Evaluation(Settings):
    tasks: dict[str, Task] = Field(min_length=1)
    batch_size: Annotated[PositiveInt | None, KEEPS_RESULTS] = Field(
        None, description="prompts at a time; as many as fit if absent. Scores do not depend on it"
    )
    temperature: Annotated[float, Field(ge=0.0)] = Field(0.0, description="0: greedy replies")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    stages: list[str] | None = Field(
        None, description="stages after which to evaluate, 'conversion' too; all if absent"
    )
    harness: Harness | None = Field(None, description="tasks of lm-evaluation-harness to ask besides")
