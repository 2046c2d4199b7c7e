"""Kimi Delta Attention as a drop-in for a pretrained attention layer (Kimi Linear, arXiv 2510.26692).

Everything the teacher had is kept: q, k, v and o projections with their biases and grouped heads. What is new starts as
the identity where it can: short convolutions that pass their input through, an output gate of 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gendistill.models.configuration import GendistillConfig
from gendistill.ops import Documents, gated_delta_rule

GATE_ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}
GATE_BIAS = {"silu": 1.278, "sigmoid": 0.0}  # SiLU(1.278) = 1; sigmoid cannot reach 1 and starts at 0.5


class KimiDeltaAttention(nn.Module):
    """[B, T, hidden] -> [B, T, hidden]; the state is [heads, head_dim, head_dim] float32."""

    def __init__(self, config: GendistillConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.queries = self.num_heads * self.head_dim
        self.keys = config.num_key_value_heads * self.head_dim
        hidden, kernel = config.hidden_size, config.conv_kernel_size

        self.q_proj = nn.Linear(hidden, self.queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, self.keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, self.keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.queries, hidden, bias=config.attention_output_bias)
        self.q_conv1d = nn.Conv1d(self.queries, self.queries, kernel, groups=self.queries)
        self.k_conv1d = nn.Conv1d(self.keys, self.keys, kernel, groups=self.keys)
        self.v_conv1d = nn.Conv1d(self.keys, self.keys, kernel, groups=self.keys)
        self.f_a_proj = nn.Linear(hidden, self.head_dim, bias=False)
        self.f_b_proj = nn.Linear(self.head_dim, self.queries, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(self.queries, dtype=torch.float32))
        self.b_proj = nn.Linear(hidden, self.num_heads, bias=False)
        self.g_a_proj = nn.Linear(hidden, self.head_dim, bias=False)
        self.g_b_proj = nn.Linear(self.head_dim, self.queries, bias=True)
        self.o_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.output_norm else None
        self.gate_activation = GATE_ACTIVATIONS[config.gate_activation]

    def set_start_values(self) -> None:
        """Start values of every tensor the teacher does not have.

        Decay: dt log-uniform in [1e-3, 0.1] and A uniform in [1, 16], half-lives of about 1 to 100 tokens.
        """
        for conv in (self.q_conv1d, self.k_conv1d, self.v_conv1d):
            identity = torch.zeros_like(conv.weight)
            identity[..., -1] = 1.0
            init.copy_(conv.weight, identity)
            init.zeros_(conv.bias)
        for linear in (self.f_a_proj, self.f_b_proj, self.b_proj, self.g_a_proj):
            init.normal_(linear.weight, std=0.02)
        init.zeros_(self.g_b_proj.weight)
        init.constant_(self.g_b_proj.bias, GATE_BIAS[self.config.gate_activation])
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(1, 16).log())
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # inverse softplus
        if self.o_norm is not None:
            init.ones_(self.o_norm.weight)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        documents: Documents | None = None,
        **_,
    ) -> tuple[torch.Tensor, None]:
        """Mixes tokens.

        Args:
            hidden_states: [B, T, hidden].
            attention_mask: [B, T], 1 for tokens and 0 for padding; None if there is no padding.
            past_key_values: transformers' cache; holds convolution window and state, updated in place.
            documents: borders of packed documents; not together with a cache.
        """
        projections = (self.q_proj, self.k_proj, self.v_proj)
        mixed = torch.cat([projection(hidden_states) for projection in projections], dim=-1)
        if attention_mask is not None:  # after the projections, whose biases would bring padding back
            attention_mask = attention_mask[..., None].to(mixed.dtype)
            mixed = mixed * attention_mask
        mixed = self._convolve(mixed, past_key_values, documents)
        q, k, v = mixed.split([self.queries, self.keys, self.keys], dim=-1)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        groups = self.num_heads // k.shape[2]
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)

        g, beta = self._log_decay(hidden_states), self.b_proj(hidden_states).float().sigmoid()
        if attention_mask is not None:  # padding neither decays nor writes the state
            g, beta = g * attention_mask[..., None], beta * attention_mask
        state = None
        if past_key_values is not None and self._has_state(past_key_values):
            state = past_key_values.layers[self.layer_idx].recurrent_states[0]
        o, state = gated_delta_rule(q, k, v, g, beta, state, documents)
        if past_key_values is not None:
            past_key_values.update_recurrent_state(state, self.layer_idx)

        gate = self.gate_activation(self.g_b_proj(self.g_a_proj(hidden_states)))
        o = o if self.o_norm is None else self.o_norm(o)
        return self.o_proj(o.flatten(-2) * gate), None

    def _log_decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, T, H, K] float32: in bf16 a decay close to 1 would round to 1 and the state would never forget."""
        dt = F.softplus(self.f_b_proj(self.f_a_proj(hidden_states)).float() + self.dt_bias)
        return -self.A_log.exp()[:, None] * dt.unflatten(-1, (self.num_heads, self.head_dim))

    def _has_state(self, cache: Cache) -> bool:
        return cache.layers[self.layer_idx].is_recurrent_states_initialized[0] and cache.has_previous_state(
            self.layer_idx
        )

    def _convolve(self, x: torch.Tensor, cache: Cache | None, documents: Documents | None) -> torch.Tensor:
        """Causal depthwise convolution of q, k and v together, [B, T, C] -> [B, T, C], as a sum of shifted inputs."""
        convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        weight = torch.cat([conv.weight[:, 0] for conv in convolutions])  # [C, kernel]
        bias = torch.cat([conv.bias for conv in convolutions])
        length, kernel = x.shape[1], weight.shape[1]
        window = x
        if cache is not None:
            window = cache.update_conv_state(x.transpose(1, 2), self.layer_idx, conv_kernel_size=kernel).transpose(1, 2)
        window = F.pad(window, (0, 0, kernel - 1, 0))[:, -(length + kernel - 1) :]
        out = bias + x * weight[:, -1]
        for lag in range(1, kernel):
            shifted = window[:, kernel - 1 - lag : kernel - 1 - lag + length]
            if documents is not None:  # the window starts afresh with each document
                shifted = shifted * (documents.positions >= lag)[..., None]
            out = out + shifted * weight[:, -1 - lag]
        return out
