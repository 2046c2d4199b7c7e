"""What the student looks like, and how it is converted."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from gendistill.names import INITIALISATIONS, MIXERS
from gendistill.recipe.fields import Positive, Settings, one_of
from gendistill.recipe.placement import KeepAttention

MixerName = one_of(MIXERS, "mixer")


class Student(Settings):
    """What the student looks like; the options of the mixers are explained in `GendistillConfig`."""

    # What reads layers off a recipe has it resolved first, by `placement.resolve.placed`: then this is a list.
    keep_attention: KeepAttention = Field(
        description="0-based layers that keep softmax attention, none for a pure student; or how they are chosen"
    )
    mixer: MixerName = Field("kda", description="what all other layers get")
    mixer_in_layer: dict[int, MixerName] = Field({}, description="exceptions, by 0-based layer")
    window: PositiveInt | None = Field(
        None, description="tokens; of mixer window (there 512 by default), or of a window beside a linear mixer"
    )
    sinks: NonNegativeInt | None = Field(
        None, description="first tokens that a window sees too; by default 4 with mixer window, else none"
    )
    window_share: Literal["head", "token"] = Field(
        "head", description="of a window beside a linear mixer: one for each head, or each token's own, too"
    )
    # By default what starts as the identity: the untrained student is then as near its teacher as it can be.
    gate_activation: Literal["silu", "sigmoid"] = Field(
        "silu", description="of the output gate; silu starts as the identity, sigmoid at a half"
    )
    output_norm: bool = Field(True, description="RMSNorm of each head before the output gate")
    conv_activation: Literal["none", "silu"] = Field(
        "none", description="of the short convolutions; none starts as the identity"
    )
    log_decay_bound: Annotated[float, Field(lt=0)] | None = Field(
        None, description="lowest log decay of a token; from -5 up faster kernels serve. None: it may forget everything"
    )
    expand_kv: bool = Field(False, description="keys and values of their own for every query head")

    @model_validator(mode="after")
    def check_exceptions(self) -> Self:
        # Only a list says which layers are left to hold a mixer.
        if self.mixer_in_layer and not isinstance(self.keep_attention, list):
            raise ValueError("mixer_in_layer names layers, so keep_attention must be a list of layers, too")
        return self


class Conversion(Settings):
    """How the untrained student is initialised, and measured for its conversion report."""

    # All are measured, whichever is chosen: the report shows what the choice is worth.
    initialisation: one_of(INITIALISATIONS, "initialisation") = Field(
        "standard", description="; ".join(f"{name}: {what}" for name, what in INITIALISATIONS.items())
    )
    data: str = Field("text", description="mixture to measure on")
    # Few: every initialisation is measured on them, on a CPU too.
    tokens: PositiveInt = Field(8192, description="of text to measure on")
    sequence_length: PositiveInt = Field(512, description="tokens of a packed sequence")
    max_loss: Positive | None = Field(
        None, description="nats a token; a worse untrained student is refused. None: a uniform guess's, ln(vocabulary)"
    )
