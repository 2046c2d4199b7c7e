"""How the layers that keep softmax attention are chosen: a list, a file with a result, or a method and its settings."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, model_validator

from gendistill.recipe.fields import Positive, Settings, hint


class FromFile(Settings):
    """The result of an earlier placement, which must be of the same teacher."""

    model_config = ConfigDict(serialize_by_alias=True)  # `from` is no name that Python allows

    path: str = Field(alias="from", description="placement.json of a run; relative to the recipe's folder")


class Method(Settings):
    """What all methods share."""

    method: str = Field(description="one of those below")
    layers: PositiveInt = Field(description="how many keep softmax attention")


class Fixed(Method):
    """Layers by their place alone, as a control: evenly spread, the first or the last ones."""

    method: Literal["uniform", "first", "last"]


class Measured(Method):
    """Methods that measure the teacher on associative recall, with another thing in the place of most attention."""

    others: Literal["window", "silenced", "mixer"] = Field(
        "window",
        description="what stands in for attention in the other layers: the teacher's own over a window; nothing; the "
        "linear mixer of `student`",
    )
    window: PositiveInt = Field(512, description="tokens that each query sees, itself among them")
    sinks: NonNegativeInt = Field(4, description="first tokens of a prompt, which each query sees too")
    student: str | None = Field(None, description="folder of an aligned student without attention; for others: mixer")
    length: PositiveInt = Field(4096, description="tokens of a prompt")
    prompts: PositiveInt = Field(12, description="recall prompts that a set of layers is measured on")
    keys: PositiveInt = Field(1, description="values that a prompt asks for")

    @model_validator(mode="after")
    def check_others(self) -> Self:
        if self.sinks > self.window:
            raise ValueError(f"sinks are {self.sinks}; they must be at most the window's {self.window}")
        if (self.others == "mixer") != (self.student is not None):
            raise ValueError("others: mixer needs `student`, an aligned student without attention; nothing else does")
        return self


class Scored(Measured):
    """Methods that compare sets of layers by a score."""

    score: Literal["likelihood", "exact_match", "kl"] = Field(
        "likelihood",
        description="of the right answers: their mean negative log-likelihood, the share that would be generated word "
        "for word, or the divergence from the whole teacher's distributions there",
    )


class Beam(Scored):
    """Sets grown layer by layer; the best ones of each size go on."""

    method: Literal["beam"]
    width: PositiveInt = Field(1, description="sets that go on; 1 is greedy growth")
    candidates: PositiveInt | None = Field(
        None, description="layers to choose among: those that hurt most if left out; all if absent"
    )

    @model_validator(mode="after")
    def check_candidates(self) -> Self:
        if self.candidates is not None and self.candidates < self.layers:
            raise ValueError(f"candidates are {self.candidates}, fewer than the {self.layers} layers to be chosen")
        return self


class LeaveOneOut(Scored):
    """Each layer alone out of the whole teacher; those are kept that hurt most."""

    method: Literal["leave_one_out"]


class Restored(Measured):
    """Each layer alone given back to an aligned student without attention; those that bring it nearest are kept."""

    method: Literal["kl"]
    others: Literal["mixer"] = Field("mixer", description="the linear mixers of `student`, always")
    stage: str | None = Field(
        None, description="stage of the recipe, of objective forward_kl, that each such student is trained in first"
    )
    tokens: PositiveInt | None = Field(None, description="of each training; with `stage`")

    @model_validator(mode="after")
    def check_training(self) -> Self:
        if (self.stage is None) != (self.tokens is None):
            raise ValueError("stage and tokens go together: which stage trains, and for how long")
        return self


class Gates(Measured):
    """One gate a layer between attention and the aligned mixer, trained; those most open to attention are kept."""

    method: Literal["gates"]
    others: Literal["mixer"] = Field("mixer", description="the linear mixers of `student`, always")
    # One number a layer is trained, so that few steps and a large rate suffice.
    steps: PositiveInt = Field(100, description="of training the gates")
    prompts_per_step: PositiveInt = Field(4, description="prompts of a step")
    learning_rate: Positive = Field(0.1, description="of the gates")
    penalty: Positive = Field(0.1, description="weight of the gates' sum beside the divergence in nats a token")


METHODS: dict[str, type[Method]] = dict(
    beam=Beam, leave_one_out=LeaveOneOut, gates=Gates, kl=Restored, uniform=Fixed, first=Fixed, last=Fixed
)
_LAYERS = TypeAdapter(list[int])


def _validated(given: Any) -> Any:
    """Told apart by hand, so that an error is about the alternative that is meant and no other."""
    if isinstance(given, FromFile | Method):
        return given
    if isinstance(given, list | tuple):
        return _LAYERS.validate_python(given)
    if isinstance(given, dict) and "from" in given:
        return FromFile.model_validate(given)
    if isinstance(given, dict) and "method" in given:
        if given["method"] not in METHODS:
            raise ValueError(f"unknown method '{given['method']}'; {hint(str(given['method']), list(METHODS))}")
        return METHODS[given["method"]].model_validate(given)
    raise ValueError("give a list of layers, {from: FILE}, or {method: NAME, layers: N}")


KeepAttention = Annotated[
    list[int] | FromFile | Fixed | Beam | LeaveOneOut | Restored | Gates, BeforeValidator(_validated)
]
