"""How Qwen3, Qwen2 and Llama configurations and tensor names map onto the student."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.names import MixerName

SUPPORTED = ("qwen3", "qwen2", "llama")
SAME_IN_ALL = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings rope_parameters attention_dropout "
    "pad_token_id bos_token_id eos_token_id dtype"
).split()


def student_config(
    teacher: PreTrainedConfig,
    keep_attention: Sequence[int],
    *,
    mixer: MixerName = "kda",
    mixer_in_layer: Mapping[int, MixerName] | None = None,
    **options,
) -> GendistillConfig:
    """Configuration of the student that keeps softmax attention in the given 0-based layers (none: a pure student).

    Args:
        mixer: what the other layers get.
        mixer_in_layer: exceptions by 0-based layer.
        options: of the linear layers, see `GendistillConfig`.

    Raises:
        UserError: the teacher's family is not supported, it uses sliding-window attention, or a layer index is wrong.
    """
    family = teacher.model_type
    if family not in SUPPORTED:
        raise UserError(f"teacher of model type '{family}': supported are {', '.join(SUPPORTED)}")
    if set(getattr(teacher, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise UserError("the teacher uses sliding-window attention in some layers; only full attention is supported")
    layers = teacher.num_hidden_layers
    if wrong := [i for i in keep_attention if not 0 <= i < layers]:
        raise UserError(f"keep_attention names layer(s) {wrong}; the teacher has {layers}, counted 0 to {layers - 1}")
    if repeated := sorted({i for i in keep_attention if list(keep_attention).count(i) > 1}):
        raise UserError(f"keep_attention names layer(s) {repeated} more than once")
    mixer_in_layer = mixer_in_layer or {}
    if wrong := sorted(set(mixer_in_layer) - set(range(layers)) | set(mixer_in_layer) & set(keep_attention)):
        raise UserError(
            f"mixer_in_layer names layer(s) {wrong}; layers are counted 0 to {layers - 1}, and those in keep_attention "
            "hold no mixer"
        )
    bias = getattr(teacher, "attention_bias", False)
    return GendistillConfig(
        **{name: getattr(teacher, name) for name in SAME_IN_ALL},
        head_dim=getattr(teacher, "head_dim", None) or teacher.hidden_size // teacher.num_attention_heads,
        attention_bias=True if family == "qwen2" else bias,
        attention_output_bias=False if family == "qwen2" else bias,
        mlp_bias=getattr(teacher, "mlp_bias", False),
        qk_norm=family == "qwen3",
        layer_types=["full_attention" if i in keep_attention else "linear_attention" for i in range(layers)],
        mixers=[None if i in keep_attention else mixer_in_layer.get(i, mixer) for i in range(layers)],
        **options,
    )


def teacher_name(student_name: str) -> str:
    """The teacher's name of a student tensor; a mixer takes over the projections of the attention it replaces."""
    return student_name.replace(".linear_attn.", ".self_attn.")
