"""How a teacher's configuration and tensor names map onto the student, family by family.

A row says what a family's configuration leaves unsaid. That it says everything is not believed but proven, whenever a
teacher is converted: see `gendistill.models.proof`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedConfig

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig


class Family(NamedTuple):
    """What a family's models have beyond their configuration; a bias of None is as `attention_bias` says."""

    qk_norm: bool = False  # RMSNorm of each head's queries and keys
    qkv_bias: bool | None = None
    output_bias: bool | None = None  # of attention's output projection


# By transformers' model type.
FAMILIES: dict[str, Family] = {
    "qwen3": Family(qk_norm=True),
    "qwen2": Family(qkv_bias=True, output_bias=False),
    "llama": Family(),
    "mistral": Family(),  # without a sliding window, as all are
}
# Of a window in the place of attention, where nothing else is said. Beside a recurrence there are no sinks by default.
DEFAULT_WINDOW, DEFAULT_SINKS = 512, 4
# Settings that a teacher and its student share, by one name.
SAME_IN_ALL = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings rope_parameters attention_dropout "
    "pad_token_id bos_token_id eos_token_id dtype"
).split()


def student_config(
    teacher: PreTrainedConfig,
    keep_attention: Sequence[int],
    *,
    mixer: str = "kda",
    mixer_in_layer: Mapping[int, str] | None = None,
    **options,
) -> GendistillConfig:
    """Configuration of the student that keeps softmax attention in the given 0-based layers (none: a pure student).

    Args:
        mixer: what the other layers get.
        mixer_in_layer: exceptions by 0-based layer.
        options: of the mixers, see `GendistillConfig`; None is the default.

    Raises:
        UserError: the teacher's family is not supported, it uses sliding-window attention, there is no such mixer, or a
            layer index is wrong.
    """
    layers = _check_family(teacher).num_hidden_layers
    mixer_in_layer = mixer_in_layer or {}
    _check_indices(layers, keep_attention, mixer_in_layer)
    family = FAMILIES[teacher.model_type]
    options = {name: value for name, value in options.items() if value is not None}
    if "window" in (mixer, *mixer_in_layer.values()):
        options = {"window": DEFAULT_WINDOW, "sinks": DEFAULT_SINKS} | options
    bias = getattr(teacher, "attention_bias", False)  # Mistral's configuration has no such setting, and no biases
    return GendistillConfig(
        **{name: getattr(teacher, name) for name in SAME_IN_ALL},
        # Some configurations leave it out, and mean this quotient.
        head_dim=getattr(teacher, "head_dim", None) or teacher.hidden_size // teacher.num_attention_heads,
        attention_bias=bias if family.qkv_bias is None else family.qkv_bias,
        attention_output_bias=bias if family.output_bias is None else family.output_bias,
        mlp_bias=getattr(teacher, "mlp_bias", False),
        qk_norm=family.qk_norm,
        layer_types=["full_attention" if i in keep_attention else "linear_attention" for i in range(layers)],
        mixers=[None if i in keep_attention else mixer_in_layer.get(i, mixer) for i in range(layers)],
        **options,
    )


def _check_family(teacher: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration, if it is of a kind that the student can have."""
    family = teacher.model_type
    if family not in FAMILIES:
        raise UserError(f"teacher of model type '{family}': supported are {', '.join(FAMILIES)}")
    if missing := [name for name in SAME_IN_ALL if not hasattr(teacher, name)]:
        raise UserError(f"teacher of model type '{family}': its configuration has no {', '.join(missing)}")
    # A window longer than the calibration text changes nothing there, so no proof would see it. Where there are layer
    # types they decide: Qwen's configurations may name a window that no layer uses.
    types = getattr(teacher, "layer_types", None)
    window = getattr(teacher, "sliding_window", None)
    if set(types) != {"full_attention"} if types else window is not None:
        raise UserError(
            f"teacher of model type '{family}': it uses sliding-window attention in some layers; only full attention "
            "is supported"
        )
    return teacher


def _check_indices(layers: int, keep_attention: Sequence[int], mixer_in_layer: Mapping[int, str]) -> None:
    if wrong := [i for i in keep_attention if not 0 <= i < layers]:
        raise UserError(f"keep_attention names layer(s) {wrong}; the teacher has {layers}, counted 0 to {layers - 1}")
    if repeated := sorted({i for i in keep_attention if list(keep_attention).count(i) > 1}):
        raise UserError(f"keep_attention names layer(s) {repeated} more than once")
    if wrong := sorted(set(mixer_in_layer) - set(range(layers)) | set(mixer_in_layer) & set(keep_attention)):
        raise UserError(
            f"mixer_in_layer names layer(s) {wrong}; layers are counted 0 to {layers - 1}, and those in keep_attention "
            "hold no mixer"
        )


def teacher_name(student_name: str) -> str:
    """The teacher's name of a student tensor; a mixer takes over the projections of the attention it replaces."""
    return student_name.replace(".linear_attn.", ".self_attn.")
