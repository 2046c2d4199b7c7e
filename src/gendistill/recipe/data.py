"""Where data comes from: sources, and what a teacher is prompted to write."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from gendistill.recipe.fields import LocalPath, Positive, Settings, StopTexts, check_one_of


class Source(Settings):
    """One place records come from: local files, data shipped in the package, a hub data set, or a teacher's replies.

    Plain text is taken from the field `text`. A conversation is taken from `messages` (a list of role/content or
    from/value mappings) or from the two fields `prompt`, with `input` below it, and `completion`, each a text or a list
    of messages. A name "a.b" is the field b in the field a. In a mixture each source gives tokens by its weight.
    With `made: distant` conversations are made of plain text: their answers lie as far back as `distances` say.
    """

    path: LocalPath | None = Field(
        None,
        description="local .txt, .jsonl, .json, .csv, .tsv (each also .gz, .zst) or .parquet file, a folder or pattern "
        "of them, 'embedded:NAME'; relative to the recipe's folder",
    )
    hub: str | None = Field(None, description="data set id on the Hugging Face hub, e.g. 'openai/gsm8k'")
    synthesis: str | None = Field(None, description="what the teacher wrote: name of a set in the synthesis section")
    subset: str | None = Field(None, description="configuration name of the hub data set")
    split: str | None = Field(None, description="split of the hub data set (train if absent) or of a folder")
    text: str = Field("text", description="field with plain text")
    documents: Literal["file", "paragraph", "line"] = Field(
        "file", description="what of a .txt is one document: the file, what stands between blank lines, a line"
    )
    messages: str | None = Field(None, description="field with a list of {role, content} or {from, value}")
    prompt: str | None = Field(None, description="field with the user's turn, or with the messages before the reply")
    input: str | None = Field(None, description="field with what goes below the prompt, where a record has it (alpaca)")
    completion: str | None = Field(None, description="field with the assistant's turn")
    made: Literal["distant"] | None = Field(
        None, description="distant: conversations made of the plain text, with questions about what stands far back"
    )
    distances: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="[shortest, longest] tokens from an answer back to what it depends on, for made: distant"
    )
    checked: bool = Field(
        False,
        description="ask the teacher each question of made: distant, showing it the passage alone; what it answers "
        "wrongly is left out",
    )
    # What a source gives of the mixture, and how often.
    weight: Positive = Field(1.0, description="share of the mixture's tokens, beside the other sources' weights")
    epochs: PositiveInt = Field(
        1, description="passes over the records at most; a source that is exhausted is an error"
    )
    skip_malformed: Annotated[int, Field(ge=0)] = Field(
        100, description="records that may be skipped as unreadable, but not the first: one more is an error"
    )

    @property
    def is_chat(self) -> bool:
        return self.messages is not None or self.prompt is not None

    @property
    def gives_chat(self) -> bool:
        """Whether conversations come of it, be they read or made."""
        return self.is_chat or self.made is not None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that are read of each record."""
        if self.messages is not None:
            return (self.messages,)
        if self.prompt is not None:
            names = (self.prompt, self.input, self.completion)
            return tuple(name for name in names if name is not None)
        return (self.text,)

    @property
    def label(self) -> str:
        """Its name in messages and statistics."""
        return self.path or (f"hub:{self.hub}" if self.hub else f"synthesis:{self.synthesis}")

    @model_validator(mode="after")
    def check(self):
        check_one_of(self, "path", "hub", "synthesis")
        self._check_made()
        # `text` has a default and is not among them: it is what is read where neither of the two others is given.
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("'prompt' and 'completion' go together")
        if self.input is not None and self.prompt is None:
            raise ValueError("'input' goes below a 'prompt'; give that too")
        if self.prompt is not None and self.messages is not None:
            raise ValueError("give either 'messages' or 'prompt' and 'completion'")
        return self

    def _check_made(self) -> None:
        if (self.made is None) != (self.distances is None):
            raise ValueError("'made: distant' and 'distances: [shortest, longest]' go together")
        if self.made is None:
            if self.checked:
                raise ValueError("'checked' is for 'made: distant': nothing else has questions to ask")
            return
        # Only text can be read as pages.
        if self.is_chat or self.synthesis is not None:
            raise ValueError("'made: distant' is made of plain text: give a path or hub, and no messages or prompt")
        if not self.distances[0] < self.distances[1]:
            raise ValueError(f"distances are [shortest, longest], not {list(self.distances)}")


QUESTIONS = ("multiple_choice", "short_answer", "last_number")  # kinds of prompts that tasks ask as well


class Prompts(Settings):
    """What a teacher is prompted with, and what is known of the right reply.

    instruction: `prompt`, with `input` below it; `completion` is a reply somebody else wrote, kept as the reference.
    multiple_choice, short_answer, last_number: fields as in a `Task`; multiple_choice is asked under all rotations of
        its options.
    code: `prompt` asks for Python, and `tests` is a program that is run after it.
    continuation: the first `prompt_tokens` tokens of `text`, without a chat template.
    """

    kind: Literal["instruction", "multiple_choice", "short_answer", "last_number", "code", "continuation"] = Field(
        description="what is asked for, as told above"
    )
    path: LocalPath | None = Field(None, description="as in a data source")
    hub: str | None = Field(None, description="as in a data source")
    subset: str | None = Field(None, description="as in a data source")
    split: str | None = Field(None, description="as in a data source")
    # Names of fields in a record; which of them are read depends on the kind.
    prompt: str = Field("prompt", description="field with the instruction, or the request for a program")
    input: str | None = Field(None, description="field with what goes below the prompt")
    completion: str | None = Field(None, description="field with a reply of somebody else's, kept as the reference")
    question: str = Field("question", description="field")
    choices: str = Field("choices", description="field with the options")
    answer: str = Field("answer", description="field with the known answer")
    tests: str = Field("tests", description="field with a program that is run after the reply's")
    text: str = Field("text", description="field with the text of a continuation")
    # The teacher writes on from there.
    prompt_tokens: PositiveInt = Field(64, description="first tokens of a text that a continuation begins with")
    records: PositiveInt | None = Field(None, description="how many, drawn by the recipe's seed; all if absent")
    shots: NonNegativeInt = Field(
        0, description="others of the source's questions with their answers before each, as context that is not learnt"
    )

    @model_validator(mode="after")
    def check(self):
        check_one_of(self, "path", "hub")
        if self.shots and self.kind not in QUESTIONS:
            raise ValueError(
                f"shots are for questions with known answers ({', '.join(QUESTIONS)}), not for {self.kind}"
            )
        return self

    @property
    def source(self) -> Source:
        """Where the records come from; which fields they have is not the source's to say."""
        return Source(path=self.path, hub=self.hub, subset=self.subset, split=self.split)


class Synthesis(Settings):
    """A set of records that the teacher writes: its replies to prompts, those that pass the checks."""

    prompts: Annotated[list[Prompts], Field(min_length=1)] = Field(description="what the teacher is prompted with")
    samples: PositiveInt = Field(1, description="replies to each prompt")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0 takes the likeliest token each time")
    # With temperature 0 nothing is sampled, so nothing is cut off.
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="of sampled replies: tokens beyond this share of the probability are left out"
    )
    max_new_tokens: PositiveInt = Field(256, description="a reply that has not ended by then is rejected")
    stop: StopTexts = Field((), description="texts at which a reply ends, besides the end of the turn")
    min_new_tokens: PositiveInt = Field(1, description="a reply of fewer tokens, its end not counted, is rejected")
    batch_size: PositiveInt = Field(64, description="prompts at a time")
    # What rejects a reply.
    known_answer: bool = Field(True, description="reject replies that do not reach the known answer")
    margin: Annotated[float, Field(ge=0)] | None = Field(
        None, description="least lead, in nats, of the chosen letter over the next, under every rotation"
    )
    overlap: Annotated[int, Field(ge=6)] = Field(
        13, description="reject what shares as many words in sequence with an evaluation item"
    )

    @model_validator(mode="after")
    def check(self):
        # Duplicates are rejected, so that all but one of them would be written for nothing.
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 needs a temperature above 0: greedy replies are all the same")
        # A set becomes one source of training data, and a source is either text or chat.
        kinds = {prompts.kind for prompts in self.prompts}
        if "continuation" in kinds and len(kinds) > 1:
            raise ValueError("continuations are plain text, the other kinds conversations: make them sets of their own")
        return self
