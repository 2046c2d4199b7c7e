"""One decoding step of a student, as few kernels and with nothing put together that could be put together before.

The same computation as the model's own forward pass of one token, on a `SlotCache`. It reads weights off the modules,
so it is for plain modules only: with adapters, hooks or quantised weights the forward pass is what counts.

Shapes: B rows, N hidden size, H query heads, G key heads, D channels of a head, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gendistill.models.cache import RING_KEYS, RING_VALUES, SlotCache
from gendistill.models.mixers.layer import LinearAttention, fixed_log_decay
from gendistill.models.mixers.window import WindowAttention
from gendistill.models.modeling import GendistillDecoderLayer, GendistillForCausalLM
from gendistill.ops.decode_attention import decode_attention
from gendistill.ops.decode_layer import Recurrence, recurrent_step, rope_and_write
from gendistill.ops.decode_linear import decode_linear


def can_step(student: GendistillForCausalLM) -> bool:
    """Whether the modules are what they seem: linear projections with weights of their own, and nobody watching."""
    if student.config.hidden_act != "silu":
        return False
    for module in student.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            return False
    return True


class Place(NamedTuple):
    """Where a step's tokens stand: cos and sin of RoPE [B, D], places in caches and how many of them are filled [B]."""

    cos: torch.Tensor | None
    sin: torch.Tensor | None
    place: torch.Tensor
    length: torch.Tensor
    ring_place: torch.Tensor | None
    ring_length: torch.Tensor | None


class DecodeStep:
    """The step of a student on a cache; tensors of both are read and written where they are."""

    def __init__(self, student: GendistillForCausalLM, cache: SlotCache):
        self.student, self.config = student, student.config
        self.layers = [_Layer(layer, cache.layers[i]) for i, layer in enumerate(student.model.layers)]
        self.norm = _norm(student.model.norm)

    def __call__(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] behind the tokens [B, 1] at positions [B]."""
        x = self.student.model.embed_tokens(token[:, 0])  # [B, N]
        where = self._place(x, position)
        for layer in self.layers:
            x = layer(x, where)
        return decode_linear(x, self.student.lm_head.weight, norm=self.norm)

    def _place(self, x: torch.Tensor, position: torch.Tensor) -> Place:
        cos = sin = ring_place = ring_length = None
        if self.config.has_positions:
            cos, sin = (part[:, 0].contiguous() for part in self.student.model.rotary_emb(x, position[:, None]))
        if self.config.window is not None:
            window, sinks = self.config.window, self.config.sinks
            ring_place = torch.where(position < sinks, position, sinks + (position - sinks) % window)
            ring_length = (position + 1).clamp(max=sinks + window)
        return Place(cos, sin, position, position + 1, ring_place, ring_length)


class _Layer:
    """A decoder layer with its part of the cache."""

    def __init__(self, layer: GendistillDecoderLayer, cache):
        self.layer, self.cache = layer, cache
        self.mixer = layer.self_attn if layer.keeps_attention else layer.linear_attn
        self.is_linear = isinstance(self.mixer, LinearAttention)
        self.config = self.mixer.config
        self.heads, self.scale = self.config.num_attention_heads, self.config.head_dim**-0.5
        self.norms = None
        if isinstance(getattr(self.mixer, "q_norm", None), LlamaRMSNorm):
            self.norms = (self.mixer.q_norm.weight, self.mixer.k_norm.weight)
        self.recurrence = _recurrence(self.mixer) if self.is_linear else None
        self.weight, self.bias = _joint(self.mixer, self.recurrence)
        mlp = layer.mlp
        self.input_norm, self.mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def __call__(self, x: torch.Tensor, where: Place) -> torch.Tensor:
        """[B, N] -> [B, N]."""
        projected = decode_linear(x, self.weight, self.bias, norm=self.input_norm)
        if self.is_linear:
            seen = self._see_window(projected, where) if self.recurrence.share is not None else None
            states = self.cache.conv_states[0], self.cache.recurrent_states[0]
            o = recurrent_step(projected, *states, self.recurrence, seen)
        elif isinstance(self.mixer, WindowAttention):
            o = self._see_window(projected, where).flatten(1)
        else:
            keys, values = self.cache.keys, self.cache.values
            o = self._attend(projected, where, keys, values, where.place, where.length).flatten(1)
        output = self.mixer.o_proj
        x = decode_linear(o, output.weight, output.bias, residual=x)
        inner = decode_linear(
            x, self.gate.weight, self.gate.bias, norm=self.mlp_norm, up=(self.up.weight, self.up.bias)
        )
        return decode_linear(inner, self.down.weight, self.down.bias, residual=x)

    def _see_window(self, projected: torch.Tensor, where: Place) -> torch.Tensor:
        keys, values = (self.cache.recurrent_states[state] for state in (RING_KEYS, RING_VALUES))
        return self._attend(projected, where, keys, values, where.ring_place, where.ring_length)

    def _attend(self, projected, where: Place, keys, values, place, length) -> torch.Tensor:
        """[B, H, D]."""
        eps = self.config.rms_norm_eps
        q = rope_and_write(projected, where.cos, where.sin, self.norms, eps, keys, values, place, self.heads)
        return decode_attention(q, keys, values, length, self.scale)


def _norm(norm: LlamaRMSNorm) -> tuple[torch.Tensor, float]:
    return norm.weight, norm.variance_epsilon


def _joint(mixer: nn.Module, recurrence: Recurrence | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [C + narrow, N] and bias of all projections of a layer's input, side by side."""
    projections = [mixer.q_proj, mixer.k_proj, mixer.v_proj]
    if recurrence is not None:
        decay = getattr(mixer, "f_a_proj", getattr(mixer, "a_proj", None))
        by_name = {"decay": decay, "gate": mixer.g_a_proj, "beta": getattr(mixer, "b_proj", None)}
        projections += [by_name[name] for name in recurrence.narrow]
    weight = torch.cat([projection.weight for projection in projections])
    if mixer.q_proj.bias is None:
        return weight, None
    zeros = weight.new_zeros(len(weight))
    biases = [p.bias if p.bias is not None else zeros[: p.out_features] for p in projections]
    return weight, torch.cat(biases)


def _recurrence(mixer: LinearAttention) -> Recurrence:
    config, row = mixer.config, mixer.mixer
    convolutions = (mixer.q_conv1d, mixer.k_conv1d, mixer.v_conv1d)
    fixed = row.decay == "fixed"
    with_window = config.window is not None and config.window_is_on
    return Recurrence(
        conv_weight=torch.cat([conv.weight[:, 0] for conv in convolutions]),
        conv_bias=torch.cat([conv.bias for conv in convolutions]),
        decay_weight=mixer.f_b_proj.weight if row.decay == "channel" else None,
        A_log=None if fixed else mixer.A_log,
        dt_bias=None if fixed else mixer.dt_bias,
        bound=None if fixed else config.log_decay_bound,
        fixed=fixed_log_decay(mixer.num_heads, mixer.o_proj.weight.device) if fixed else None,
        delta_rule=row.delta_rule,
        gate_weight=mixer.g_b_proj.weight,
        gate_bias=mixer.g_b_proj.bias,
        norm=None if mixer.o_norm is None else mixer.o_norm.weight,
        eps=config.rms_norm_eps,
        silu_conv=config.conv_activation == "silu",
        silu_gate=config.gate_activation == "silu",
        heads=mixer.num_heads,
        key_heads=mixer.keys // mixer.head_dim,
        share=mixer.window_logit.sigmoid() if with_window else None,
    )
