"""Configuration of the hybrid student: one type for all families of teachers."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from gendistill.errors import UserError
from gendistill.names import MIXERS, LinearMixer, look_up
from gendistill.ops.decay import is_bounded

LAYER_TYPES = {"full_attention": "softmax attention over all tokens", "linear_attention": "a mixer"}


@strict
class GendistillConfig(PreTrainedConfig):
    """A decoder whose layers hold softmax attention or a mixer.

    `layer_types[i]` is "full_attention" or "linear_attention", and `mixers[i]` names the mixer of the latter (None in
    the former). A window counts as "linear_attention": to transformers its ring buffer is a state of fixed size.

    - `window`: tokens that a window sees, the query's own among them. Layers of the mixer "window" need it; in layers
      of other mixers it stands beside the recurrence. None: these have none.
    - `sinks`: the document's first tokens, which a window sees too.
    - `window_share`: of a window beside a recurrence. "head": a number for each head; "token": each token adds to that
      number's logit.
    - `window_is_on`: False leaves the recurrence of layers that have both to itself, to see what it has learnt.

    The options of the linear layers:

    - `gate_activation`: "silu" starts the output gate at 1, an identity; "sigmoid" keeps it in (0, 1), from 0.5 on.
    - `output_norm`: RMSNorm per head before the output gate. It keeps the outputs' size whatever the state holds, and
      forgets the size softmax attention had; without it small states stay small.
    - `conv_activation`: "none" starts the convolutions as the identity; "silu" is what models trained from scratch use.
    - `log_decay_bound`: None, or the lowest log decay of a token, e.g. -5. From -5 up, a faster GPU kernel serves.
    - `expand_kv`: grouped keys and values get weights of their own for every query head. More parameters, more freedom.

    Families differ by `attention_bias` (q, k, v), `attention_output_bias`, `mlp_bias`, `qk_norm`, `rope_parameters` and
    `tie_word_embeddings`; defaults follow Qwen3.
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
    qk_norm: bool = True  # RMSNorm of each head's queries and keys, as Qwen3 has it
    layer_types: list[str] | None = None  # None: attention in all
    mixers: list[str | None] | None = None
    window: int | None = None
    sinks: int = 0
    window_share: Literal["head", "token"] = "head"
    window_is_on: bool = True
    conv_kernel_size: int = 4  # tokens, the current one among them
    conv_activation: Literal["none", "silu"] = "none"
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    output_norm: bool = True
    log_decay_bound: float | None = None
    expand_kv: bool = False
    # Tokens. transformers reads them here where a generation configuration does not say.
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        if self.mixers is None:
            self.mixers = ["kda" if kind == "linear_attention" else None for kind in self.layer_types]
        self._check_layers()
        self._check_window()
        super().__post_init__(**kwargs)

    def _check_layers(self) -> None:
        """Raises ValueError for a layer type or mixer that is not known, or that do not belong together."""
        for i, (layer_type, mixer) in enumerate(zip(self.layer_types, self.mixers, strict=True)):
            look_up(LAYER_TYPES, layer_type, "layer type")
            if mixer is not None:
                look_up(MIXERS, mixer, "mixer")
            # A layer that keeps attention has no mixer to name, and every other layer needs one.
            if (mixer is None) != (layer_type == "full_attention"):
                raise ValueError(f"layer {i} is of type {layer_type}, and its mixer is {mixer}")

    def _check_window(self) -> None:
        """Raises UserError for a window that cannot be."""
        if self.window is None:
            if "window" in self.mixers:
                raise UserError("mixer 'window' needs `window`, the number of tokens that it sees")
            if self.sinks:
                raise UserError(f"sinks are {self.sinks}, but there is no window that could see them: give `window`")
            if self.window_share == "token":
                raise UserError("window_share is token, but there is no window that could have a share: give `window`")
            return
        if self.expand_kv and "window" in self.mixers:
            raise UserError("expand_kv is for linear mixers; mixer 'window' keeps the teacher's own keys and values")
        if not 1 <= self.window <= self.max_position_embeddings:
            raise UserError(
                f"window is {self.window}; it must be at least 1 and at most the model's "
                f"{self.max_position_embeddings} positions"
            )
        if not 0 <= self.sinks <= self.window:
            raise UserError(f"sinks are {self.sinks}; they must be at least 0 and at most the window's {self.window}")

    def layers_of_type(self, layer_type: str) -> list[int]:
        """0-based indices of the layers of a type."""
        return [i for i, kind in enumerate(self.layer_types) if kind == layer_type]

    @property
    def linear_layers(self) -> list[int]:
        """0-based indices of the layers with a recurrence, whether or not a window stands beside it."""
        return [i for i, mixer in enumerate(self.mixers) if isinstance(MIXERS.get(mixer), LinearMixer)]

    @property
    def has_window_beside(self) -> bool:
        """True if a window stands beside recurrences, which can do without it."""
        return self.window is not None and bool(self.linear_layers)

    @property
    def seen_whole(self) -> int:
        """First tokens of a document at each of which a window sees all so far."""
        return self.window + self.sinks

    @property
    def gates_are_bounded(self) -> bool:
        """True if no token decays faster than the kernels for bounded gates can take."""
        return is_bounded(self.log_decay_bound)

    @property
    def is_pure(self) -> bool:
        """True if no layer keeps softmax attention, and so the keys and values of all tokens."""
        return "full_attention" not in self.layer_types

    @property
    def has_positions(self) -> bool:
        """True if a layer's attention needs RoPE: all tokens', or a window's."""
        return not self.is_pure or self.window is not None
