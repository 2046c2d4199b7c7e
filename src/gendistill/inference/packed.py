"""A student's weights as prefill and decoding read them: what is always multiplied together lies side by side.

Shapes: N hidden size, H query heads, D channels of a head, C channels of q, k and v.
"""

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gendistill.inference.kept import kept
from gendistill.models.mixers.layer import LinearAttention, fixed_log_decay
from gendistill.models.mixers.window import WindowAttention
from gendistill.models.modeling import GendistillDecoderLayer, GendistillForCausalLM
from gendistill.models.plain import is_plain
from gendistill.ops.decode_layer import Recurrence


def can_pack(student: GendistillForCausalLM) -> bool:
    """Whether the modules are what they seem: linear projections with weights of their own, and nobody watching."""
    if student.config.hidden_act != "silu":
        return False
    for module in student.modules():
        # A hook would not be called.
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return False
        if isinstance(module, nn.Linear) and not is_plain(module):
            return False
    layers = student.model.layers
    mixers = [layer.self_attn if layer.keeps_attention else layer.linear_attn for layer in layers]
    # By name, for an adapter's layer may be no nn.Linear at all.
    parts = [part for module in (*mixers, *(layer.mlp for layer in layers)) for part in module.named_children()]
    read = [part for name, part in parts if name.endswith("_proj")]
    return all(map(is_plain, [*read, student.lm_head]))


def packed(student: GendistillForCausalLM) -> "Packed":
    """The student's weights put together: anew if they lie elsewhere, in place if their numbers have changed."""
    found = kept(student).get("packed")
    if found is None or found.addresses != _addresses(student) or found.window_is_on != student.config.window_is_on:
        found = kept(student)["packed"] = Packed(student)
    elif found.versions != _versions(student):
        found.refresh(student)
    return found


def _addresses(student: GendistillForCausalLM) -> list[int]:
    return [p.data_ptr() for p in student.parameters()]


def _versions(student: GendistillForCausalLM) -> list[int]:
    """What changes with any number; tensors of inference mode cannot change."""
    return [0 if p.is_inference() else p._version for p in student.parameters()]


class Packed:
    """The layers of a student, its final norm, and what they were made of."""

    def __init__(self, student: GendistillForCausalLM):
        self.addresses, self.versions = _addresses(student), _versions(student)
        self.window_is_on = student.config.window_is_on
        self.layers = [PackedLayer(layer) for layer in student.model.layers]
        self.norm = norm_of(student.model.norm)

    @torch.inference_mode()  # what was made in it can only be changed in it
    def refresh(self, student: GendistillForCausalLM) -> None:
        """Copies the student's numbers over those of before: graphs that read these tensors stay valid.

        A student in training changes at every step. All but the joint projections is read where it lies.
        """
        for layer, module in zip(self.layers, student.model.layers, strict=True):  # one layer's copy at a time
            for old, new in zip(layer.copies(), PackedLayer(module).copies(), strict=True):
                old.copy_(new)
        self.versions = _versions(student)


class PackedLayer:
    """A decoder layer.

    Attributes:
        is_linear, is_window: of which kind its mixer is; a layer that keeps attention is neither.
        weight, bias: [C + narrow, N], [C + narrow]: of all projections of the layer's input.
        channels: C.
        norms: weights [D] of the RMSNorms of q and k; None for none.
        recurrence: of a linear layer.
    """

    def __init__(self, layer: GendistillDecoderLayer):
        mixer = layer.self_attn if layer.keeps_attention else layer.linear_attn
        config = mixer.config
        self.is_linear, self.is_window = isinstance(mixer, LinearAttention), isinstance(mixer, WindowAttention)
        self.heads, self.width, self.eps = config.num_attention_heads, config.head_dim, config.rms_norm_eps
        self.key_heads = mixer.k_proj.out_features // self.width
        self.channels = (self.heads + 2 * self.key_heads) * self.width
        self.norms = None
        if isinstance(getattr(mixer, "q_norm", None), LlamaRMSNorm):
            self.norms = (mixer.q_norm.weight, mixer.k_norm.weight)
        self.recurrence = _recurrence(mixer) if self.is_linear else None
        self.sees_window = self.is_window or (self.is_linear and self.recurrence.share is not None)
        self.weight, self.bias = _joint(mixer, self.recurrence)
        self.input_norm, self.mlp_norm = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        self.output, mlp = mixer.o_proj, layer.mlp
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def copies(self) -> list[torch.Tensor]:
        """What was computed from the layer's parameters; all else are the parameters themselves."""
        # Joined, sliced or passed through a function, and so no longer where an optimizer writes.
        made = [self.weight, self.bias]
        if self.recurrence is not None:
            made += [self.recurrence.conv_weight, self.recurrence.conv_bias, self.recurrence.share]
        return [tensor for tensor in made if tensor is not None]


def norm_of(norm: LlamaRMSNorm) -> tuple[torch.Tensor, float]:
    """Weight and epsilon."""
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
        share=mixer.window_logit.sigmoid() if with_window else None,
    )
