"""Configuration of the hybrid student: one type for the Qwen3, Qwen2 and Llama families."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class GendistillConfig(PreTrainedConfig):
    """A decoder whose layers hold softmax attention or a linear-attention mixer.

    `layer_types[i]` is "full_attention" or "linear_attention". Families differ by `attention_bias` (q, k, v),
    `attention_output_bias`, `mlp_bias`, `qk_norm`, `rope_parameters` and `tie_word_embeddings`; defaults follow Qwen3.
    """

    model_type = "gendistill"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 151936
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 40960
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    attention_dropout: float | int | None = 0.0
    mlp_bias: bool = False
    qk_norm: bool = True
    layer_types: list[str] | None = None
    mixer: str = "kda"
    conv_kernel_size: int = 4
    gate_activation: str = "silu"
    output_norm: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    def layers_of_type(self, layer_type: str) -> list[int]:
        """0-based indices of the layers of a type."""
        return [i for i, kind in enumerate(self.layer_types) if kind == layer_type]
