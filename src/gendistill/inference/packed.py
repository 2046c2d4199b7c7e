"""A student's weights as prefill and decoding read them: what is always multiplied together lies side by side.

Shapes: N hidden size, H query heads, D channels of a head, C channels of q, k and v.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gendistill.inference.kept import kept
from gendistill.inference.watched import Watched, is_watched
from gendistill.models.mixers.layer import LinearAttention, fixed_log_decay
from gendistill.models.mixers.window import WindowAttention
from gendistill.models.modeling import GendistillDecoderLayer, GendistillForCausalLM
from gendistill.models.plain import is_plain
from gendistill.ops.decode_layer import Recurrence


def packed(student: GendistillForCausalLM) -> "Packed | None":
    """The student's weights, put together anew only if something has changed; None if its modules have to be called."""
    known = kept(student).get("packed")
    if known is None or known.watched.state() != known.state:
        watched = Watched(student)
        known = _Known(watched, watched.state(), Packed(student) if _can_pack(student) else None)
        kept(student)["packed"] = known
    return known.packed


class _Known(NamedTuple):
    """Weights put together, and what the student was then."""

    watched: Watched
    state: list[int]
    packed: "Packed | None"


def _can_pack(student: GendistillForCausalLM) -> bool:
    """Whether the modules are what they seem: linear projections with weights of their own, and nobody watching."""
    if student.config.hidden_act != "silu":
        return False
    for module in student.modules():
        if is_watched(module) or (isinstance(module, nn.Linear) and not is_plain(module)):
            return False
    layers = student.model.layers
    mixers = [layer.self_attn if layer.keeps_attention else layer.linear_attn for layer in layers]
    # By name, for an adapter's layer may be no nn.Linear at all.
    parts = [part for module in (*mixers, *(layer.mlp for layer in layers)) for part in module.named_children()]
    read = [part for name, part in parts if name.endswith("_proj")]
    return all(map(is_plain, [*read, student.lm_head]))


class Packed:
    """The layers of a student and its final norm."""

    def __init__(self, student: GendistillForCausalLM):
        self.layers = [PackedLayer(layer) for layer in student.model.layers]
        self.norm = norm_of(student.model.norm)


class PackedMixer:
    """Attention, a window or a linear mixer.

    Attributes:
        is_linear, is_window: of which kind it is; one that keeps attention is neither.
        weight, bias: [C + narrow, N], [C + narrow]: of all projections of the layer's input.
        channels: C.
        norms: weights [D] of the RMSNorms of q and k; None for none.
        recurrence: of a linear layer.
        window, sinks: of one that sees a window.
    """

    def __init__(self, mixer: nn.Module):
        config = mixer.config
        self.is_linear, self.is_window = isinstance(mixer, LinearAttention), isinstance(mixer, WindowAttention)
        self.window, self.sinks = config.window, config.sinks
        self.heads, self.width, self.eps = config.num_attention_heads, config.head_dim, config.rms_norm_eps
        self.key_heads = mixer.k_proj.out_features // self.width
        self.channels = (self.heads + 2 * self.key_heads) * self.width
        self.norms = None
        if isinstance(getattr(mixer, "q_norm", None), LlamaRMSNorm):
            self.norms = (mixer.q_norm.weight, mixer.k_norm.weight)
        self.recurrence = _recurrence(mixer) if self.is_linear else None
        self.sees_window = self.is_window or (self.is_linear and self.recurrence.share_logit is not None)
        self.weight, self.bias = _joint(mixer)
        self.output = mixer.o_proj


class PackedLayer(PackedMixer):
    """A decoder layer."""

    def __init__(self, layer: GendistillDecoderLayer):
        super().__init__(layer.self_attn if layer.keeps_attention else layer.linear_attn)
        self.input_norm, self.mlp_norm = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        mlp = layer.mlp
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj


def norm_of(norm: LlamaRMSNorm) -> tuple[torch.Tensor, float]:
    """Weight and epsilon."""
    return norm.weight, norm.variance_epsilon


def joint_projections(mixer: nn.Module) -> list[nn.Linear]:
    """All projections of a layer's input, in the order in which they lie side by side."""
    projections = [mixer.q_proj, mixer.k_proj, mixer.v_proj]
    if isinstance(mixer, LinearAttention):  # as `Recurrence.narrow` lists them
        names = ("f_a_proj", "a_proj", "g_a_proj", "b_proj", "share_proj")
        projections += [getattr(mixer, name) for name in names if hasattr(mixer, name)]
    return projections


def _joint(mixer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [C + narrow, N] and bias of all projections of a layer's input."""
    projections = joint_projections(mixer)
    weight = torch.cat([projection.weight for projection in projections])
    if mixer.q_proj.bias is None:
        return weight, None
    zeros = weight.new_zeros(len(weight))  # the narrow projections have no bias
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
        share_logit=mixer.share_logit() if with_window else None,
        share_by_token=config.window_share == "token",
        seen_whole=config.seen_whole if with_window else None,
    )
