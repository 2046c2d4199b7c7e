"""What the student looks like, and how it is converted."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
)

from gendistill.names import Initialisation, MixerName
from gendistill.recipe.fields import Settings


class Student(Settings):
    """What the student looks like; the options of the linear layers are explained in `GendistillConfig`."""

    keep_attention: list[int] = Field(description="0-based layers that keep softmax attention; none for a pure student")
    mixer: MixerName = Field("kda", description="what all other layers get")
    mixer_in_layer: dict[int, MixerName] = Field({}, description="exceptions, by 0-based layer")
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    output_norm: bool = True
    conv_activation: Literal["none", "silu"] = "none"
    log_decay_bound: Annotated[float, Field(lt=0)] | None = None
    expand_kv: bool = False


class Conversion(Settings):
    """How the untrained student starts and is measured for its conversion report."""

    start: Initialisation = Field(
        "standard",
        description="half-lives as published, or by the teacher's attention distance, heads scaled by least squares",
    )
    data: str = Field("text", description="mixture to measure on")
    tokens: PositiveInt = 8192
    sequence_length: PositiveInt = 512
