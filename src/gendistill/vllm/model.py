"""The student as a model of vLLM: its attention, MLPs, embedding and head by vLLM's layers, its mixers by its own.

Read top-down: attention, decoder layer, model, causal language model. Shapes: T tokens of a step.
"""

from collections.abc import Iterable

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, get_temporal_copy_spec
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.utils import maybe_prefix

from gendistill.models.configuration import GendistillConfig
from gendistill.vllm.mixer import StudentMixer
from gendistill.vllm.states import student_states
from gendistill.vllm.weights import LINEAR, accounted, target_of


class StudentAttention(nn.Module):
    """The teacher's attention: grouped-query, RoPE, optional q/k norm and biases."""

    def __init__(self, config: GendistillConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.attention_bias,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim,
            config.hidden_size,
            bias=config.attention_output_bias,
            prefix=f"{prefix}.o_proj",
        )
        heads, key_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads  # of this rank
        self.sizes = [heads * config.head_dim, key_heads * config.head_dim, key_heads * config.head_dim]
        self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        self.rotary_emb = get_rope(
            config.head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.attn = Attention(
            heads,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=key_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split(self.sizes, dim=-1)
        if self.q_norm is not None:
            q = self.q_norm(q.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            k = self.k_norm(k.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v))
        return output


class StudentDecoderLayer(nn.Module):
    """Norm, attention or mixer, norm, MLP, with residual connections."""

    def __init__(self, config: GendistillConfig, vllm_config: VllmConfig, layer: int, prefix: str):
        super().__init__()
        self.keeps_attention = config.mixers[layer] is None
        if self.keeps_attention:
            self.self_attn = StudentAttention(config, vllm_config, f"{prefix}.self_attn")
        else:  # the configuration knows its mixer
            self.linear_attn = StudentMixer(config, vllm_config, layer, f"{prefix}.linear_attn")
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            bias=config.mlp_bias,
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's output and the sum it is still to be added to, which the next norm does."""
        normed, residual = self.input_layernorm(hidden_states, residual)
        mixer = self.self_attn if self.keeps_attention else self.linear_attn
        normed, residual = self.post_attention_layernorm(mixer(positions, normed), residual)
        return self.mlp(normed), residual


@support_torch_compile
class GendistillModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            StudentDecoderLayer(config, vllm_config, i, f"{prefix}.layers.{i}") for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T, hidden] of tokens [T], or of embeddings [T, hidden]; `intermediate_tensors` belong to pipelines."""
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        residual = torch.zeros_like(hidden_states)
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


class GendistillForCausalLM(nn.Module, HasInnerState, IsHybrid):
    """The student with its language-model head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: GendistillConfig = vllm_config.model_config.hf_config
        self.model = GendistillModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            self.config.vocab_size, self.config.hidden_size, prefix=maybe_prefix(prefix, "lm_head")
        )
        if self.config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(self.config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_,
    ) -> torch.Tensor:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Takes the tensors of a student's folder, or of an exported one, every one of them.

        Raises:
            UserError: the tensors are not those that the configuration asks for.
        """
        parameters = dict(self.named_parameters())
        loaded = set()
        for name, tensor in accounted(weights, self.config):
            target = target_of(name)
            if LINEAR in name:
                block, mixer, inner = name.partition(LINEAR)
                self.get_submodule(block + mixer.removesuffix(".")).load(inner, tensor)
            else:
                parameter = parameters[target.name]
                load = getattr(parameter, "weight_loader", default_weight_loader)
                load(parameter, tensor, *([] if target.part is None else [target.part]))
            loaded.add(target.name)
        return loaded

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        return tuple(state.shape for state in _states_of(vllm_config))

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return tuple(state.dtype for state in _states_of(vllm_config))

    def get_mamba_state_copy_func(self) -> tuple[MambaStateCopyFunc, ...]:
        """How prefix caching copies each state from block to block: whole."""
        # Asked of the model and not of the class: a window has other states than a recurrence.
        return tuple(get_temporal_copy_spec for _ in student_states(self.config, torch.float32))


def _states_of(vllm_config: VllmConfig):
    return student_states(
        vllm_config.model_config.hf_config,
        vllm_config.model_config.dtype,
        vllm_config.parallel_config.tensor_parallel_size,
    )
