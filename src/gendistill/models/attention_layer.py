"""The teacher's softmax attention, as a layer of the student.

Shapes: B sequences, T tokens, H query heads, G key heads, D channels of a head.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, eager_attention_forward

from gendistill.models.configuration import GendistillConfig
from gendistill.models.parameters import Parameter, linear

_ATTENTION = Parameter("attention")
ATTENTION_PARAMETERS: dict[str, Parameter] = {
    **linear("q_proj", _ATTENTION),
    **linear("k_proj", _ATTENTION),
    **linear("v_proj", _ATTENTION),
    **linear("o_proj", _ATTENTION),
    "q_norm.weight": _ATTENTION,
    "k_norm.weight": _ATTENTION,
}


class GendistillAttention(nn.Module):
    """The teacher's softmax attention, unmodified: grouped-query, RoPE, optional q/k norm and biases."""

    def __init__(self, config: GendistillConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_dim
        # transformers' attention functions read the next three names off the module.
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def project(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [B, H, T, D], k and v [B, G, T, D] of [B, T, hidden]; RoPE is applied."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q = self.q_norm(self.q_proj(hidden_states).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)
        v = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        return *apply_rotary_pos_emb(q, k, *position_embeddings), v

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, T, hidden] -> [B, T, hidden] and, with eager attention, the weights."""
        q, k, v = self.project(hidden_states, position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)  # with those of earlier calls: [B, G, T_past + T, D]
        o, weights = self.attend(q, k, v, attention_mask, **kwargs)  # o [B, T, H, D]
        return self.o_proj(o.flatten(-2).contiguous()), weights

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention by the function that the model is switched to: [B, T, H, D] and what it has of weights.

        `kwargs` holds `documents`, which the function for packed sequences needs.
        """
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        return attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
