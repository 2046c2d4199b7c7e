"""Linear attention as a drop-in for a pretrained attention layer; the mixer's name picks the state update.

Everything the teacher had is kept: q, k, v and o projections with their biases and grouped heads. What is new starts as
the identity where it can: short convolutions that pass their input through, an output gate of 1.

With `config.window` the teacher's attention over a window stands beside the recurrence, on the same projections: per
head, s times the one and 1 - s times the other go through the output projection (xLSTM's hybrid, arXiv 2603.15590, and
B'MOJO-F, in 2605.08301, do so). At a document's first tokens, all of which the window sees, s is 1. How much of softmax
attention lies outside the window differs from token to token, and a recurrence is noise to those that need nothing from
afar: with `config.window_share` "token" s depends on the token, too.

Shapes: B sequences, T tokens, H query heads, K = V channels of a head, C = (H + 2 key heads) * K.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from gendistill.models.cache import Ring
from gendistill.models.configuration import GendistillConfig
from gendistill.models.mixers.window import attend_to_window, positions_of
from gendistill.models.padding import Padding
from gendistill.models.parameters import Parameter, linear
from gendistill.models.plain import fetch, joint_projection, product, put_back
from gendistill.names import MIXERS, look_up
from gendistill.ops import DecayGate, Documents, convolved_heads, gated_norm, linear_attention
from gendistill.ops.window import share_beside

GATE_BIAS = {"silu": 1.278, "sigmoid": 0.0}  # SiLU(1.278) = 1; sigmoid cannot reach 1 and starts at 0.5
# At first the recurrence has a share of 1 - sigmoid(8) = 0.0003 beside a window: less than bfloat16 can tell. A step of
# AdamW moves a parameter by its learning rate, a thousandth or so: a logit would hardly leave 8 in a whole stage, and
# the window keep all. So the parameter is a hundredth of the logit.
WINDOW_LOGIT = 8.0
LOGIT_SCALE = 100.0

_CONV = Parameter("mixer_conv", is_new=True)
_GATE = Parameter("mixer_gate", is_new=True)
# In bf16, with 8 bits, a rate of decay could be off by a per cent, and small updates to it would be lost.
_RATE = Parameter("mixer_gate", is_new=True, stays_float32=True)
# Of every mixer; one that has no use for a tensor leaves it out.
MIXER_PARAMETERS: dict[str, Parameter] = {
    **linear("q_proj", Parameter("mixer_qk")),
    **linear("k_proj", Parameter("mixer_qk", of_key_heads=True)),
    **linear("v_proj", Parameter("mixer_value", of_key_heads=True)),
    **linear("o_proj", Parameter("mixer_value")),
    **linear("q_conv1d", _CONV),
    **linear("k_conv1d", _CONV),
    **linear("v_conv1d", _CONV),
    "f_a_proj.weight": _GATE,  # forget gate per channel, from hidden to a head's width
    "f_b_proj.weight": _GATE,  # and on to all channels
    "a_proj.weight": _GATE,  # forget gate per head
    "A_log": _RATE,
    "dt_bias": _RATE,
    "b_proj.weight": _GATE,  # write strength of the delta rule
    "g_a_proj.weight": _GATE,  # output gate, in two steps like the forget gate
    **linear("g_b_proj", _GATE),
    "o_norm.weight": _GATE,
    "q_norm.weight": Parameter("mixer_qk"),  # of the window, as the teacher has it
    "k_norm.weight": Parameter("mixer_qk"),
    "window_logit": _RATE,  # of the window's share
    "share_proj.weight": _GATE,  # what a token adds to the logit of the recurrence's share
}


def fixed_log_decay(heads: int, device: torch.device | str) -> torch.Tensor:
    """[heads]: the slopes of MiniMax-01's lightning attention (arXiv 2501.08313), half-lives of about 1 to 180 tokens.

    Its factor that falls with depth is left out: the last layers would forget nothing.
    """
    head = torch.arange(1, heads + 1, device=device, dtype=torch.float32)
    return -torch.exp2(-8 * head / heads)


class LinearAttention(nn.Module):
    """[B, T, hidden] -> [B, T, hidden]; the state is [heads, head_dim, head_dim] float32."""

    def __init__(self, config: GendistillConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.mixer = look_up(MIXERS, config.mixers[layer_idx], "mixer")
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.queries = self.num_heads * self.head_dim  # channels of q
        self.keys = self.queries if config.expand_kv else config.num_key_value_heads * self.head_dim  # of k, and of v
        hidden, kernel = config.hidden_size, config.conv_kernel_size

        self.q_proj = nn.Linear(hidden, self.queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, self.keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, self.keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.queries, hidden, bias=config.attention_output_bias)
        # Modules for their weights' sake: the three run as one convolution, see `_convolve`.
        self.q_conv1d = nn.Conv1d(self.queries, self.queries, kernel, groups=self.queries)
        self.k_conv1d = nn.Conv1d(self.keys, self.keys, kernel, groups=self.keys)
        self.v_conv1d = nn.Conv1d(self.keys, self.keys, kernel, groups=self.keys)
        self._add_forget_gate(hidden)
        if self.mixer.delta_rule:
            self.b_proj = nn.Linear(hidden, self.num_heads, bias=False)
        self.g_a_proj = nn.Linear(hidden, self.head_dim, bias=False)
        self.g_b_proj = nn.Linear(self.head_dim, self.queries, bias=True)
        self.o_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.output_norm else None
        if config.window is not None:
            self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
            self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
            self.window_logit = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        if config.window_share == "token":
            self.share_proj = nn.Linear(hidden, self.num_heads, bias=False)

    def _add_forget_gate(self, hidden: int) -> None:
        # A KeyError for a decay that is none of the three: the branches below would take it for a fixed one.
        decays = {"channel": self.queries, "head": self.num_heads, "fixed": 0}[self.mixer.decay]
        if decays:
            self.A_log = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
            self.dt_bias = nn.Parameter(torch.empty(decays, dtype=torch.float32))
        if self.mixer.decay == "channel":  # of low rank: a full matrix would be as large as the query projection
            self.f_a_proj = nn.Linear(hidden, self.head_dim, bias=False)
            self.f_b_proj = nn.Linear(self.head_dim, self.queries, bias=False)
        elif self.mixer.decay == "head":
            self.a_proj = nn.Linear(hidden, self.num_heads, bias=False)

    def initialise(self) -> None:
        """Initialisation of every tensor the teacher does not have.

        Decay: a rate of A * dt a token with dt log-uniform in [1e-3, 0.1] and A uniform in [1, 16], half-lives of about
        1 to 100 tokens.
        """
        for conv in (self.q_conv1d, self.k_conv1d, self.v_conv1d):
            identity = torch.zeros_like(conv.weight)  # [channels, 1, kernel]
            identity[..., -1] = 1.0  # the tap of the current token
            init.copy_(conv.weight, identity)
            init.zeros_(conv.bias)
        for name in ("f_a_proj", "f_b_proj", "a_proj", "b_proj", "g_a_proj"):
            if hasattr(self, name):
                init.normal_(getattr(self, name).weight, std=0.02)
        init.zeros_(self.g_b_proj.weight)  # so that the output gate is its bias for every token
        init.constant_(self.g_b_proj.bias, GATE_BIAS[self.config.gate_activation])
        if self.mixer.decay != "fixed":
            A = torch.empty_like(self.A_log).uniform_(1, 16)  # [H]
            rate = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()  # [H * K] or [H]
            if self.config.log_decay_bound is not None:  # A is the slope of a sigmoid there, no factor of the rate
                rate, A = rate * A.repeat_interleave(rate.numel() // A.numel()), torch.ones_like(A)
            init.copy_(self.A_log, A.log())
            init.copy_(self.dt_bias, self._bias_of_rate(rate))
        if self.o_norm is not None:
            init.ones_(self.o_norm.weight)
        if self.config.window is not None:
            init.constant_(self.window_logit, WINDOW_LOGIT / LOGIT_SCALE)
        if self.config.window_share == "token":
            init.zeros_(self.share_proj.weight)  # at first a head's share is the same for all tokens

    @torch.no_grad()
    def set_half_lives(self, half_lives: torch.Tensor) -> None:
        """Starts each head at a half-life, in tokens [heads], in all its channels; a fixed decay stays as it is."""
        if self.mixer.decay != "fixed":
            rates = math.log(2) / half_lives.to(self.dt_bias)  # [H]
            rates = rates.repeat_interleave(self.dt_bias.numel() // self.num_heads)  # [H * K] or [H]
            self.A_log.zero_()  # A = 1
            self.dt_bias.copy_(self._bias_of_rate(rates))

    def _bias_of_rate(self, rate: torch.Tensor) -> torch.Tensor:
        """The dt_bias at which a token decays by `rate` when A is 1 and the projection's output is 0."""
        bound = self.config.log_decay_bound
        if bound is None:
            return rate + torch.log(-torch.expm1(-rate))  # inverse softplus
        return torch.logit((rate / -bound).clamp(max=0.95))  # at the bound itself the sigmoid has no slope to learn by

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Padding | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        documents: Documents | None = None,
        without_window: torch.Tensor | None = None,
        **_,
    ) -> tuple[torch.Tensor, None]:
        """Mixes tokens.

        Args:
            hidden_states: [B, T, hidden].
            attention_mask: which tokens are padding; None if there is no padding.
            position_embeddings: RoPE's cosine and sine, for a window.
            past_key_values: transformers' cache; holds convolution window, state and ring buffer, updated in place.
            documents: boundaries of packed documents; not together with a cache.
            without_window: [B] bool, sequences that have to do with the recurrence alone.
        """
        fetched = fetch([self.q_conv1d, self.k_conv1d, self.v_conv1d, self.g_b_proj, self.o_norm])
        mixed = joint_projection(hidden_states, [self.q_proj, self.k_proj, self.v_proj])  # [B, T, C]
        # [B, T, H * V], [B, T, H] or None
        o, raw = self._recur(hidden_states, mixed, attention_mask, past_key_values, documents)
        if self.config.window is not None and self.config.window_is_on:
            seen, positions = self._see_window(mixed, position_embeddings, attention_mask, past_key_values, documents)
            share = share_beside(self.share_logit(), raw, positions, self.config.seen_whole)  # [B or 1, T, H]
            if without_window is not None:
                share = torch.where(without_window[:, None, None], 1.0, share)
            o = o.unflatten(-1, (self.num_heads, -1))
            o = torch.lerp(seen, o, share[..., None].to(o.dtype)).flatten(-2)
        put_back(fetched)
        return self.o_proj(o), None

    def share_logit(self) -> torch.Tensor:
        """[H]: of the recurrence's share beside a window, see `share_beside`."""
        return -LOGIT_SCALE * self.window_logit

    def _recur(
        self,
        hidden_states: torch.Tensor,
        mixed: torch.Tensor,
        padding: Padding | None,
        past_key_values: Cache | None,
        documents: Documents | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, T, H * V]: what the recurrence reads, gated; of the projections q, k, v side by side [B, T, C]. And
        [B, T, H]: what each token adds to the logit of its share; None for nothing."""
        mask = None
        if padding is not None:  # after the projections, whose biases would bring padding back
            mask = padding.valid[..., None].to(mixed.dtype)  # [B, T, 1]
            mixed = mixed * mask
        q, k, v = self._convolve(mixed, mask, past_key_values, documents)  # [B, T, H, K] each
        decay, beta, gate, share = self._gates(hidden_states)
        if mask is not None:
            decay, beta, v = self._without_padding(mask, decay, beta, v)
        state = None  # [B, H, K, V]
        if past_key_values is not None and self._has_state(past_key_values):
            state = past_key_values.layers[self.layer_idx].recurrent_states[0]
        o, state = linear_attention(q, k, v, decay, beta, state, documents)  # o [B, T, H, V]
        if past_key_values is not None:
            past_key_values.update_recurrent_state(state, self.layer_idx)

        norm = None if self.o_norm is None else self.o_norm.weight
        eps, activation = self.config.rms_norm_eps, self.config.gate_activation
        return gated_norm(o, gate, self.g_b_proj.bias, norm, eps=eps, activation=activation), share

    def _see_window(
        self,
        mixed: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        padding: Padding | None,
        past_key_values: Cache | None,
        documents: Documents | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, H, D]: attention over the window, of the projections q, k, v side by side [B, T, C]; and [B or 1, T]:
        the tokens' positions in their documents."""
        parts = mixed.split([self.queries, self.keys, self.keys], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)  # [B, T, H or G, D]
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)  # [B, H or G, T, D]
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        window, sinks = self.config.window, self.config.sinks
        v = v.transpose(1, 2)
        ring = None if past_key_values is None else Ring(past_key_values.layers[self.layer_idx], k, window, sinks)
        positions = positions_of(mixed, padding, ring, documents)  # now: the ring counts what it takes in
        seen = attend_to_window(q, k, v, window, sinks, self.head_dim**-0.5, padding, ring, documents)
        return seen, positions

    def _without_padding(
        self, mask: torch.Tensor, decay: torch.Tensor | DecayGate, beta: torch.Tensor | None, v: torch.Tensor
    ) -> tuple[torch.Tensor | DecayGate, torch.Tensor | None, torch.Tensor]:
        """Padding, where mask [B, T, 1] is 0, neither decays nor writes the state."""
        # Log decays [B, T, H] that are fixed, or the gate that they come from.
        decay = decay * mask if self.mixer.decay == "fixed" else decay._replace(mask=mask[..., 0])
        if beta is None:
            return decay, beta, v * mask[..., None]
        return decay, beta * mask, v

    def _gates(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor | DecayGate, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Forget gate, write strength, output gate and share; their narrow projections, which fill no GPU alone, fused.

        Returns:
            what the log decays come from, or fixed ones [B, T, H]; beta [B, T, H] or None; the output
            gate's projection without its bias [B, T, H * V]; what tokens add to the share's logit [B, T, H] or None.
        """
        narrow = {"gate": self.g_a_proj}
        if self.mixer.decay != "fixed":
            narrow = {"decay": self.f_a_proj if self.mixer.decay == "channel" else self.a_proj} | narrow
        if self.mixer.delta_rule:
            narrow["beta"] = self.b_proj
        if self.config.window_share == "token":
            narrow["share"] = self.share_proj
        sizes = [projection.out_features for projection in narrow.values()]
        products = joint_projection(hidden_states, list(narrow.values())).split(sizes, dim=-1)
        raw = dict(zip(narrow, products, strict=True))  # [B, T, K] or [B, T, H] each
        if self.mixer.decay == "fixed":
            decay = fixed_log_decay(self.num_heads, hidden_states.device).expand(*hidden_states.shape[:2], -1)
        else:
            decay = raw["decay"]
            if self.mixer.decay == "channel":
                decay = self.f_b_proj(decay).unflatten(-1, (self.num_heads, -1))  # [B, T, H, K]
            decay = DecayGate(decay, self.A_log, self.dt_bias, self.config.log_decay_bound)
        # In float32: the delta rule subtracts what the state holds, and a rounded strength would leave some of it.
        beta = raw["beta"].float().sigmoid() if self.mixer.delta_rule else None
        gate = product(raw["gate"], self.g_b_proj)  # its bias is added by `gated_norm`
        return decay, beta, gate, raw.get("share")

    def _has_state(self, cache: Cache) -> bool:
        # Both: a layer that was reset still holds tensors, and one in its first call has its convolution window only.
        layer = cache.layers[self.layer_idx]
        return layer.is_recurrent_states_initialized[0] and layer.has_previous_state[0]

    def _convolve(
        self, x: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None, documents: Documents | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v of all heads from their projections x [B, T, C]; mask [B, T, 1]."""
        convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        weight = torch.cat([conv.weight[:, 0] for conv in convolutions])  # [C, kernel]
        bias = torch.cat([conv.bias for conv in convolutions])  # [C]
        length = x.shape[1]
        if cache is not None:
            x = self._window(x, mask, cache)  # [B, kernel + T, C], or [B, T, C] in the first call
        heads = convolved_heads(
            x,
            weight,
            bias,
            None if documents is None else documents.positions,
            heads=self.num_heads,
            key_heads=self.keys // self.head_dim,
            activation=self.config.conv_activation,
        )
        # The earlier tokens were there for the convolution's sake; they are in the state already.
        return heads if cache is None else tuple(part[:, -length:] for part in heads)

    def _window(self, x: torch.Tensor, mask: torch.Tensor | None, cache: Cache) -> torch.Tensor:
        """x [B, T, C] behind what the convolution needs of earlier calls, which it keeps for the next."""
        kernel = self.config.conv_kernel_size
        layer = cache.layers[self.layer_idx]
        extends = layer.has_previous_state[0]
        window = cache.update_conv_state(x.transpose(1, 2), self.layer_idx, conv_kernel_size=kernel)
        if mask is not None:
            if extends:
                window = _close_gap(window, mask[..., 0], kernel)  # [B, C, kernel + T]
            if layer.record_past:  # of a draft model: all is kept until it is known what was accepted
                layer.conv_states[0] = window
            else:
                layer.conv_states[0].copy_(_last_inputs(window, mask[..., 0], kernel))
        return window.transpose(1, 2)


def _close_gap(window: torch.Tensor, mask: torch.Tensor, kernel: int) -> torch.Tensor:
    """Moves the earlier calls' tokens past the padding that stands between them and a row's own.

    Args:
        window: [B, C, kernel + T], the earlier tokens first.
        mask: [B, T], 0 for padding, which comes before a row's tokens or behind them.
    """
    padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)  # [B, 1], before a row's tokens
    index = torch.arange(window.shape[-1], device=window.device).expand(len(window), -1)  # [B, kernel + T]
    # Padding goes to the front, the earlier tokens behind it; a row's own tokens stay.
    moved = torch.where(index < padding + kernel, index - padding, index)
    source = torch.where(index < padding, index + kernel, moved)
    return window.gather(-1, source[:, None].expand_as(window))


def _last_inputs(window: torch.Tensor, mask: torch.Tensor, kernel: int) -> torch.Tensor:
    """[B, C, kernel]: the last inputs that are no padding, behind zeros where there are fewer.

    Args:
        window: [B, C, at least T], the inputs that mask [B, T] is of at its end.
    """
    behind = (mask.flip(1).cumsum(1) == 0).sum(1)  # [B], padding behind a row's tokens
    behind = torch.where(mask.any(1), behind, 0)  # without a token of its own a row ends in those of earlier calls
    index = window.shape[-1] - behind[:, None] + torch.arange(-kernel, 0, device=window.device)  # [B, kernel]
    padded = F.pad(window, (kernel, 0))
    return padded.gather(-1, (index + kernel)[:, None].expand(-1, window.shape[1], -1))
