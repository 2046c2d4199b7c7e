"""What a task kind is: its settings in a recipe, and how it makes items, ranks them and grades replies.

A kind is one class in one file of this folder, and one line of `KINDS`. It inherits from `TaskSettings` if it makes its
items on the spot, from `SourcedTask` if it reads them, from `FewShotTask` if they can be shown as few-shot examples.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from gendistill.evaluate.kinds.item import Answer, Draws, Grades, Item
from gendistill.evaluate.kinds.shared.fields import Fields, fill_template, only_fields
from gendistill.recipe.fields import Names, Settings, StopTexts, check_one_of


class TaskSettings(Settings):
    """Settings and duties that all kinds have. Methods below hold for most kinds; a kind overrides what differs."""

    # Facts of the kind, not settings: pydantic leaves class variables alone.
    is_made: ClassVar[bool] = False  # items are made on the spot rather than read
    scores_per_token: ClassVar[bool] = False  # for candidates that differ in length: the mean, not the sum

    # Recipes give these; each kind adds its own. Nothing a kind does not know is accepted, so no setting is ignored.
    task: str | None = Field(None, description="task file to start from; read while the recipe is loaded, then null")
    # A Literal in each kind, with its name in `KINDS` as the default.
    kind: str = Field(description="one of those below; given by most task files")
    version: PositiveInt = Field(1, description="of the questions and the grading; raised when scores may change")
    items: PositiveInt | None = Field(None, description="number of items, drawn by the recipe's seed; all if absent")
    max_new_tokens: PositiveInt = Field(32, description="budget of a reply, in tokens")
    stop: StopTexts = Field((), description="texts at which a reply ends, besides the end of the turn")

    def check_machine(self) -> None:
        """Raises a UserError if this machine cannot grade replies; called before any are generated."""

    def make_items(self, draws: Draws, tokenizer: Any) -> list[Item]:
        """All items, of a kind that `is_made`.

        Raises:
            UserError: the settings cannot be met with this tokenizer.
        """
        raise NotImplementedError(f"items of kind {self.kind} are read, not made")

    def other_forms(self, item: Item) -> list[Item]:
        """Forms of an item that are put to the model besides, by generation only."""
        return []

    def ranked_first(self, best: int, best_by: Mapping[str, int]) -> int:
        """Index of the candidate that counts as the ranked answer.

        Args:
            best: the one with the highest score.
            best_by: of an item with options, the best one by letter and by its text in several ways.
        """
        return best

    def notes(self, item: Item, forms: Sequence[tuple[str, Grades]]) -> dict[str, Any]:
        """What the item's record holds besides; `forms` are reply and grades of the item and of its other forms."""
        return {}

    # Grading is of the class: it takes an item and a reply, and no settings.

    @classmethod
    def grade(cls, items: Sequence[Item], replies: Sequence[str], truncated: Sequence[bool]) -> list[Grades]:
        """Grades a reply to each item. Kinds whose replies are programs to run override this, to run many at once.

        Args:
            replies: without what the model thought first, see `kinds.grade`.
            truncated: of each reply, whether it ran out of its budget: a statement at its end may be cut off.

        Raises:
            UserError: this machine cannot grade such replies.
        """
        return [
            Grades(cls.strict(item, reply, cut), cls.flexible(item, reply, cut))
            for item, reply, cut in zip(items, replies, truncated, strict=True)
        ]

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        """Extracts and grades the answer in the form that was asked for; anything else is unparsed, and wrong."""
        raise NotImplementedError(f"{cls.__name__} does not grade replies one by one")

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        """Extracts and grades what a patient person takes for the answer, wherever it stands; never what none would."""
        raise NotImplementedError(f"{cls.__name__} does not grade replies one by one")

    @classmethod
    def right_reply(cls, item: Item) -> str:
        """What counts as right, as a sentence in Markdown for the page of tasks."""
        return f"Right: {' or '.join(f'`{answer}`' for answer in item.answers)}."


class SourcedTask(TaskSettings):
    """A task whose items are records of a file or hub data set.

    How fields are named, in all settings marked "field": as in the records, `a.b` for `b` inside `a`, and "a, b" for
    both in one list. A list of names in YAML stands for the first of them that a record has.
    """

    # Where the records are: one of path and hub.
    path: str | None = Field(None, description="local file, folder or pattern, as in a data source")
    hub: str | None = Field(None, description="data set id on the Hugging Face hub")
    subset: Names = Field((), description="configurations of the hub data set; their names become the field 'subject'")
    split: str = Field("test", description="split of the hub data set or of a folder")
    skip_malformed: Annotated[int, Field(ge=0)] = Field(
        100, description="records that may be skipped as malformed, but not the first: one more is an error"
    )
    # What is shown of them.
    question: Names = Field(("question",), min_length=1, description="field")
    template: Names = Field(
        (), description="the user's turn, with {question} or other {fields}; of several, the first a record can fill"
    )

    @model_validator(mode="after")
    def check_source(self) -> Self:
        check_one_of(self, "path", "hub")
        return self

    # The two steps from a record to an item. Between them all records are read: wrong candidates come from other items.

    def read(self, fields: Fields, draws: Draws) -> Item | None:
        """The item that a record gives; None if it is to be dropped. Without `shots`, and without wrong candidates if
        those are other items' answers.

        Raises:
            UserError: a field is missing or of the wrong form.
        """
        raise NotImplementedError(f"kind {self.kind} does not say how a record becomes an item")

    def with_candidates(self, item: Item, others: Mapping[str, str], draws: Draws) -> Item:
        """The item with the candidates that ranking compares, for kinds whose records do not hold them.

        Args:
            others: normalised text -> text of the answers that all items of the same subject have.

        Raises:
            UserError: there is nothing to rank the answer against.
        """
        return item

    def subject_of(self, fields: Fields) -> str | None:
        """The item's subject, where the task tells its items apart by one."""
        return None

    def all_items(self) -> Self:
        """The task with every item its source has, in the words of its records: nothing of the template around them."""
        return self.model_copy(update={"items": None, "template": tuple(map(only_fields, self.template))})

    def user_text(self, fields: Fields, question: str | None = None) -> str:
        """The question (`question`, if it is not the whole field), or the template around it."""
        if self.template:
            # None if the record has no such field: a template that does not use it needs none.
            question = question or fields.find(self.question)
            return fill_template(self.template, fields, question)
        return question or fields.text(self.question, "a question")


class FewShotTask(SourcedTask):
    """A task whose items may be shown, with their solutions, as few-shot examples."""

    # Zero by default: examples need a source of their own, which only the task can name.
    shots: Annotated[int, Field(ge=0)] = Field(0, description="few-shot examples before the question")
    shots_by: str | None = Field(None, description="field; examples come from records that agree with the item in it")
    shots_path: str | None = Field(None, description="where the examples are, if not where the items are")
    shots_hub: str | None = Field(None, description="hub data set with the examples, if not the items'")
    shots_subset: Names = Field((), description="configurations of that data set")
    shots_split: str = Field("train", description="split with the examples")

    @model_validator(mode="after")
    def check_shots(self) -> Self:
        # Both may be absent, unlike the items' own sources: examples then come from another split of those.
        if self.shots_path is not None and self.shots_hub is not None:
            raise ValueError("give either 'shots_path' or 'shots_hub'")
        return self

    def subject_of(self, fields: Fields) -> str | None:
        # As text: a subject may be a number in one file and a text in another.
        return None if self.shots_by is None else str(fields.get([self.shots_by]))

    def all_items(self) -> Self:
        """As of any task, and no few-shot examples."""
        return super().all_items().model_copy(update={"shots": 0})

    def of_examples(self) -> Self:
        """The task by which records with few-shot examples are read."""
        return self
