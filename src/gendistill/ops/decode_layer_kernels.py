"""The Triton kernels of `decode_layer`: a token's way between the projections of a layer in one or two launches.

Shapes: B rows, H query heads, G key heads, S places, D channels of a head, C = (H + 2 G) D channels of q, k and v.
"""

from typing import NamedTuple

import torch

from gendistill.ops.decode_convolution_kernels import Convolution
from gendistill.ops.optional_triton import overlap, require_triton, tl, triton
from gendistill.ops.window import TOKEN_SCALE

RECUR = {"num_warps": 8}
BY_CHANNEL, BY_HEAD, FIXED = 0, 1, 2  # what has a forget gate of its own


class Recurrence(NamedTuple):
    """What a linear layer is, for one step of it; tensors as its parameters, see `LinearAttention`.

    Attributes:
        conv_weight: [C, W], the convolutions of q, k and v side by side.
        conv_bias: [C].
        decay_weight: [H * D, D] from the low-rank forget gate to channels; None for a decay per head or a fixed one.
        A_log: [H]; None for a fixed decay.
        dt_bias: [H * D] or [H]; None for a fixed decay.
        bound: of the log decay.
        fixed: [H], fixed log decays; None for a forget gate.
        delta_rule: a write replaces what stands under its key.
        gate_weight: [H * D, D], from the low-rank output gate.
        gate_bias: [H * D].
        norm: [D] or None.
        eps: of the norm.
        silu_conv, silu_gate: activations: silu or none, silu or sigmoid.
        heads, key_heads: H, G.
        share_logit: [H], of the recurrence's share beside a window; None for no window.
        share_by_token: tokens add to that logit.
        seen_whole: first tokens of a text that the window sees all of, and has the whole share of; None for none.
    """

    conv_weight: torch.Tensor
    conv_bias: torch.Tensor
    decay_weight: torch.Tensor | None
    A_log: torch.Tensor | None
    dt_bias: torch.Tensor | None
    bound: float | None
    fixed: torch.Tensor | None
    delta_rule: bool
    gate_weight: torch.Tensor
    gate_bias: torch.Tensor
    norm: torch.Tensor | None
    eps: float
    silu_conv: bool
    silu_gate: bool
    heads: int
    key_heads: int
    share_logit: torch.Tensor | None
    share_by_token: bool
    seen_whole: int | None

    def convolution(self, state: torch.Tensor) -> Convolution:
        """Of q, k and v, with the state [B, C, W] of some rows."""
        return Convolution(state, self.conv_weight, self.conv_bias, self.silu_conv)

    @property
    def narrow(self) -> dict[str, int]:
        """Widths of the narrow projections behind q, k and v: of forget gate, output gate, write strength, share."""
        width = self.gate_weight.shape[1]
        decay = {"decay": width if self.decay_weight is not None else self.heads} if self.fixed is None else {}
        beta = {"beta": self.heads} if self.delta_rule else {}
        return decay | {"gate": width} | beta | ({"share": self.heads} if self.share_by_token else {})


def kernel_rope_and_write(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """As `decode_layer.rope_and_write`, on a GPU.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    batch, groups, _, width = keys.shape
    q = qkv.new_empty(batch, heads, width)
    q_norm, k_norm = norms or (None, None)
    _rope_and_write[(batch, heads + 2 * groups)](
        qkv, qkv.stride(0), cos, sin, q_norm, k_norm, eps, keys, values, places, q,
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        HEADS=heads, GROUPS=groups, WIDTH=width, num_warps=1, **overlap(),
    )  # fmt: skip
    return q


def kernel_recurrent_step(
    x: torch.Tensor,
    convolved: torch.Tensor,
    state: torch.Tensor,
    layer: Recurrence,
    seen: torch.Tensor | None,
    position: torch.Tensor,
) -> torch.Tensor:
    """As `decode_layer.recurrent_step`, on a GPU.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    batch, heads, width, _ = state.shape
    offsets, offset = {}, convolved.shape[1]
    for name, size in layer.narrow.items():
        offsets[name] = offset
        offset += size
    kind = FIXED if layer.fixed is not None else BY_CHANNEL if layer.decay_weight is not None else BY_HEAD
    # A program holds a head's state and weights, and is the only one that reads them.
    out = x.new_empty(batch, heads * width)
    _recur[(batch * heads,)](
        convolved, x, x.stride(0), *(offsets.get(name, 0) for name in ("decay", "gate", "beta", "share")),
        layer.decay_weight, layer.A_log, layer.dt_bias, layer.fixed, layer.bound or 0.0,
        layer.gate_weight, layer.gate_bias, layer.norm, state, layer.share_logit, TOKEN_SCALE,
        seen, position, layer.seen_whole or 0, out, width**-0.5, layer.eps,
        HEADS=heads, GROUPS=layer.key_heads, WIDTH=width, KIND=kind, BOUNDED=layer.bound is not None,
        DELTA=layer.delta_rule, SILU=layer.silu_gate, BY_TOKEN=layer.share_by_token, **RECUR, **overlap(),
    )  # fmt: skip
    return out


if triton is not None:

    @triton.jit
    def _rope_and_write(
        QKV, row_stride, COS, SIN, Q_NORM, K_NORM, eps, KEYS, VALUES, PLACES, Q,
        key_row, key_head, value_row, value_head,
        HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        row = tl.program_id(0)
        head = tl.program_id(1)  # of q, k and v side by side
        channel = tl.arange(0, WIDTH)
        half: tl.constexpr = WIDTH // 2
        other = (channel + half) % WIDTH  # which RoPE turns this channel with
        source = QKV + row * row_stride + head * WIDTH
        x = tl.load(source + channel).to(tl.float32)
        if head < HEADS + GROUPS:
            partner = tl.load(source + other).to(tl.float32)
            if Q_NORM is not None:
                root = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
                kind = QKV.dtype.element_ty
                if head < HEADS:
                    weight = tl.load(Q_NORM + channel)
                    other_weight = tl.load(Q_NORM + other)
                else:
                    weight = tl.load(K_NORM + channel)
                    other_weight = tl.load(K_NORM + other)
                x = (weight * (x * root).to(kind)).to(tl.float32)
                partner = (other_weight * (partner * root).to(kind)).to(tl.float32)
            cos = tl.load(COS + row * WIDTH + channel).to(tl.float32)
            sin = tl.load(SIN + row * WIDTH + channel).to(tl.float32)
            x = x * cos + tl.where(channel < half, -partner, partner) * sin
        if head < HEADS:
            tl.store(Q + (row * HEADS + head) * WIDTH + channel, x.to(Q.dtype.element_ty))
        else:
            place = tl.load(PLACES + row).to(tl.int64) * WIDTH + channel
            if head < HEADS + GROUPS:
                group = head - HEADS
                target = KEYS + row.to(tl.int64) * key_row + group.to(tl.int64) * key_head + place
                tl.store(target, x.to(KEYS.dtype.element_ty))
            else:
                group = head - HEADS - GROUPS
                target = VALUES + row.to(tl.int64) * value_row + group.to(tl.int64) * value_head + place
                tl.store(target, x.to(VALUES.dtype.element_ty))

    @triton.jit
    def _second(WEIGHT, head, WIDTH: tl.constexpr):
        """[D, D]: one head's rows of a low-rank gate's second weight [H * D, D]."""
        channel = tl.arange(0, WIDTH)
        return tl.load(WEIGHT + (head * WIDTH + channel)[:, None] * WIDTH + channel)

    @triton.jit
    def _product(weight, x, WIDTH: tl.constexpr):
        """[D] float32, of a weight [D, D] and numbers at x."""
        return tl.sum(weight.to(tl.float32) * tl.load(x + tl.arange(0, WIDTH)).to(tl.float32), 1)

    @triton.jit
    def _decay_of(
        weight, x, A_LOG, DT_BIAS, FIXED_DECAY, head, bound,
        WIDTH: tl.constexpr, KIND: tl.constexpr, BOUNDED: tl.constexpr,
    ):  # fmt: skip
        """[D] float32: a head's factors, of its part of the second weight and the forget gate's narrow projection."""
        channel = tl.arange(0, WIDTH)
        if KIND == 2:
            log_decay = tl.load(FIXED_DECAY + head + channel * 0)
        else:
            if KIND == 0:
                # Rounded, as the module's projection is.
                raw = _product(weight, x, WIDTH).to(x.dtype.element_ty).to(tl.float32)
                raw += tl.load(DT_BIAS + head * WIDTH + channel)
            else:
                raw = tl.load(x + head + channel * 0).to(tl.float32) + tl.load(DT_BIAS + head)
            A = tl.exp(tl.load(A_LOG + head))
            if BOUNDED:
                log_decay = bound / (1.0 + tl.exp(-A * raw))
            else:
                softplus = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
                log_decay = -A * softplus
        return tl.exp(log_decay)

    @triton.jit
    def _key(place, WIDTH: tl.constexpr, kind: tl.constexpr):
        """[D] float32: numbers at `place`, of length 1, as `kind` has them."""
        x = tl.load(place + tl.arange(0, WIDTH)).to(tl.float32)
        return (x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)).to(kind).to(tl.float32)

    @triton.jit
    def _recur(
        CONVOLVED, X, row_stride, decay_offset, gate_offset, beta_offset, share_offset,
        DECAY_WEIGHT, A_LOG, DT_BIAS, FIXED_DECAY, bound,
        GATE_WEIGHT, GATE_BIAS, NORM, STATE, SHARE_LOGIT, token_scale,
        SEEN, POSITION, seen_whole, OUT, scale, eps,
        HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, BOUNDED: tl.constexpr,
        DELTA: tl.constexpr, SILU: tl.constexpr, BY_TOKEN: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        row = tl.program_id(0) // HEADS
        head = tl.program_id(0) % HEADS
        group = head // (HEADS // GROUPS)
        channel = tl.arange(0, WIDTH)
        here = (row * HEADS + head) * WIDTH
        # Last written a whole step ago, and between steps are launches that wait for all before them.
        place = STATE + here.to(tl.int64) * WIDTH + channel[:, None] * WIDTH + channel  # [K, V]
        state = tl.load(place)
        # As are all weights before the wait: memory rests otherwise.
        gate_weight = _second(GATE_WEIGHT, head, WIDTH)
        decay_weight = gate_weight  # of no use to decays that are no channel's own
        if KIND == 0:
            decay_weight = _second(DECAY_WEIGHT, head, WIDTH)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        x = X + row * row_stride
        decay = _decay_of(
            decay_weight, x + decay_offset, A_LOG, DT_BIAS, FIXED_DECAY, head, bound, WIDTH, KIND, BOUNDED
        )  # [K]
        gate = _product(gate_weight, x + gate_offset, WIDTH)  # [V]
        heads = CONVOLVED + row * (HEADS + 2 * GROUPS) * WIDTH
        kind: tl.constexpr = X.dtype.element_ty
        q = _key(heads + head * WIDTH, WIDTH, kind) * scale  # [K]
        k = _key(heads + (HEADS + group) * WIDTH, WIDTH, kind)
        v = tl.load(heads + (HEADS + GROUPS + group) * WIDTH + channel).to(kind).to(tl.float32)  # [V]
        state *= decay[:, None]
        write = v  # [V]
        if DELTA:
            beta = 1.0 / (1.0 + tl.exp(-tl.load(x + beta_offset + head).to(tl.float32)))
            write = beta * (v - tl.sum(state * k[:, None], 0))
        state += k[:, None] * write  # an outer product
        tl.store(place, state)
        o = tl.sum(state * q[:, None], 0)  # [V]
        if NORM is not None:
            o = o * tl.rsqrt(tl.sum(o * o, 0) / WIDTH + eps)
            o = (tl.load(NORM + channel) * o.to(kind)).to(tl.float32)
        gate += tl.load(GATE_BIAS + head * WIDTH + channel).to(tl.float32)
        gate = (gate if SILU else 1.0) / (1.0 + tl.exp(-gate))
        o = o * gate
        if SEEN is not None:
            seen = tl.load(SEEN + here + channel).to(tl.float32)
            logit = tl.load(SHARE_LOGIT + head).to(tl.float32)
            if BY_TOKEN:
                logit += token_scale * tl.load(x + share_offset + head).to(tl.float32)
            share = 1.0 / (1.0 + tl.exp(-logit))  # the recurrence's, for float32 rounds the window's
            o = tl.where(tl.load(POSITION + row) < seen_whole, seen, seen + share * (o - seen))
        tl.store(OUT + here + channel, o.to(kind))
