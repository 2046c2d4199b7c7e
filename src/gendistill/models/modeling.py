"""The hybrid student: a decoder as Llama's or Qwen's in which most layers hold a linear-attention mixer.

Read top-down: decoder layer, model, causal language model. Cache, masks and generation are transformers'.

Shapes: B sequences, T tokens.
"""

import re

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from gendistill.models.attention_layer import ATTENTION_PARAMETERS, GendistillAttention
from gendistill.models.cache import PureCache, new_cache
from gendistill.models.configuration import GendistillConfig
from gendistill.models.mixers.layer import MIXER_PARAMETERS, LinearAttention
from gendistill.models.mixers.window import WindowAttention
from gendistill.models.padding import Padding
from gendistill.models.parameters import Parameter, linear, within
from gendistill.ops import Documents

CACHE_NAMES = ("past_key_values", "cache")  # of transformers' arguments, until 5.23 and from 5.24 on
_NORM = Parameter("norm")
LAYER_PARAMETERS: dict[str, Parameter] = {
    **within("self_attn", ATTENTION_PARAMETERS),
    **within("linear_attn", MIXER_PARAMETERS),
    **linear("mlp.gate_proj", Parameter("mlp")),
    **linear("mlp.up_proj", Parameter("mlp")),
    **linear("mlp.down_proj", Parameter("mlp")),
    "input_layernorm.weight": _NORM,
    "post_attention_layernorm.weight": _NORM,
}
PARAMETERS: dict[str, Parameter] = {
    **within("model.layers.*", LAYER_PARAMETERS),
    "model.embed_tokens.weight": Parameter("embedding"),
    "model.norm.weight": _NORM,
    "lm_head.weight": Parameter("head"),  # not there if tied: the embedding is
}


def describe(name: str) -> Parameter:
    """What the student's layers declare of a parameter, by its name in the whole model.

    Raises:
        ValueError: no layer declares it. It must be declared before it can be converted, trained or priced.
    """
    row = PARAMETERS.get(re.sub(r"^model\.layers\.\d+\.", "model.layers.*.", name))
    if row is None:
        raise ValueError(f"no layer declares the parameter {name}; declared are {', '.join(PARAMETERS)}")
    return row


def create_masks(
    config: GendistillConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None = None,
    position_ids: torch.Tensor | None = None,
    cache: Cache | None = None,
    **_,
) -> dict[str, torch.Tensor | None]:
    """The masks of a forward pass over [B, T] tokens, by layer type.

    The linear layers' is not transformers' own, which is None for a single token: a padded prompt that comes in one
    token at a time would leak its padding into the states.
    """
    # Of four dimensions it is a mask of attention, made by a decoding loop for steps in which no token is padding.
    padded = attention_mask is not None and attention_mask.dim() == 2
    masks = {"linear_attention": attention_mask[:, -inputs_embeds.shape[1] :] if padded else None}
    if not config.is_pure:
        masks["full_attention"] = create_causal_mask(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values if cache is None else cache,
            position_ids=position_ids,
        )
    return masks


class GendistillDecoderLayer(GradientCheckpointingLayer):
    """Norm, attention or mixer, norm, MLP, with residual connections; also run alone by block alignment."""

    def __init__(self, config: GendistillConfig, layer_idx: int):
        super().__init__()
        self.keeps_attention = config.mixers[layer_idx] is None
        if self.keeps_attention:
            self.self_attn = GendistillAttention(config, layer_idx)
        elif config.mixers[layer_idx] == "window":
            self.linear_attn = WindowAttention(config, layer_idx)
        else:  # the configuration knows its mixer
            self.linear_attn = LinearAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, documents: Documents | None = None, **kwargs) -> torch.Tensor:
        # `kwargs` has masks, positions and cache, all given to both kinds of layer: each takes what it needs.
        normed = self.input_layernorm(hidden_states)
        mixer = self.self_attn if self.keeps_attention else self.linear_attn
        mixed, _ = mixer(normed, documents=documents, **kwargs)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class GendistillPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load, save and generate."""

    config_class = GendistillConfig
    config: GendistillConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GendistillDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = {name for name, row in MIXER_PARAMETERS.items() if row.stays_float32}
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    # By layer, so that generate() can return them; linear layers have no weights to return.
    _can_record_outputs = {"hidden_states": GendistillDecoderLayer, "attentions": GendistillAttention}
    _supports_flex_attn = True

    def __init__(self, config: GendistillConfig):
        super().__init__(config)
        # Assisted decoding would roll a state back, which cannot be done. Keys and values of all tokens can be cut.
        self._is_stateful = bool(config.layers_of_type("linear_attention"))
        # A pure student's cache is counted on the host (`PureCache`): a graph would be compiled for every length.
        self._can_compile_fullgraph = not config.is_pure

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Only for models that are not converted: `convert` initialises by its own seed.
        if isinstance(module, LinearAttention):
            module.initialise()


class GendistillModel(GendistillPreTrainedModel):
    """Embedding, layers, final norm."""

    def __init__(self, config: GendistillConfig):
        super().__init__(config)
        # The modules have transformers' names, so that a teacher's tensors go in by theirs.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([GendistillDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        documents: Documents | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch.

        Documents packed into a sequence are told apart by `position_ids` that start again, given without a mask and
        without a cache, as in transformers' own models. Such sequences are never cached.

        Args:
            input_ids: [B, T]; or inputs_embeds: [B, T, hidden].
            attention_mask: [B, T_past + T], 0 for padding; or the masks ready-made, one for each layer type, of which
                that of "linear_attention" is [B, T] or a `Padding`.
            position_ids: [B, T].
            documents: the boundaries in `position_ids`, where it is known beforehand: reading it off a CUDA tensor
                makes the host wait.
            cache: what transformers from 5.24 on calls `past_key_values`.
        """
        past_key_values = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        batch, length = inputs_embeds.shape[:2]  # inputs_embeds [B, T, hidden]

        # As transformers sees it: only without mask and cache do positions that start again mean another document.
        unpadded = attention_mask is None and past_key_values is None
        if documents is None and position_ids is not None and unpadded:
            documents = Documents.from_position_ids(position_ids.expand(batch, -1))
        if use_cache and past_key_values is None and documents is None:
            past_key_values = new_cache(self.config)
        if position_ids is None and self.config.has_positions:
            cached = past_key_values.get_seq_length() if past_key_values is not None else 0
            # Added, since a static cache counts in a tensor, whose value no compiled graph could begin a range with.
            position_ids = (torch.arange(length, device=inputs_embeds.device) + cached).unsqueeze(0)  # [1, T]
        masks = attention_mask
        if not isinstance(masks, dict):
            masks = create_masks(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if isinstance(masks["linear_attention"], torch.Tensor):
            masks = masks | {"linear_attention": Padding.from_mask(masks["linear_attention"])}

        hidden_states = inputs_embeds
        # Linear layers have no positions: the forget gates tell near from far.
        position_embeddings = self.rotary_emb(hidden_states, position_ids) if self.config.has_positions else None
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                documents=documents,
                attention_mask=masks[layer_type],
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        if isinstance(past_key_values, PureCache):
            past_key_values.tokens += length
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class GendistillForCausalLM(GendistillPreTrainedModel, GenerationMixin):
    """The student with its language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: GendistillConfig):
        super().__init__(config)
        self.model = GendistillModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    create_masks_for_generate = staticmethod(create_masks)  # generate() makes the masks itself for a static cache

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        """Where `generate` makes a cache for a pure student, the one that counts: it asks its cache for its length."""
        # A cache of the caller's own is kept: it holds the conversation so far.
        given = any(model_kwargs.get(name) is not None for name in CACHE_NAMES)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        for name in CACHE_NAMES:
            if self.config.is_pure and not given and model_kwargs.get(name) is not None:
                model_kwargs[name] = new_cache(self.config)
                if generation_config.is_assistant:  # what the cache that it takes the place of was told
                    model_kwargs[name].activate_past_recording()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, vocab] (or the last `logits_to_keep` positions) and, with labels [B, T], the loss.

        `cache` is what transformers from 5.24 on calls `past_key_values`.
        """
        past_key_values = past_key_values if cache is None else cache
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # 0: slice of all
        logits = self.lm_head(outputs.last_hidden_state[:, keep])  # [B, T or fewer, vocab]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
