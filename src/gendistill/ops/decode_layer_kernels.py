"""The Triton kernels of `decode_layer`: a token's way between the projections of a layer in one or two launches.

Shapes: B rows, H query heads, G key heads, S places, D channels of a head, C = (H + 2 G) D channels of q, k and v.
"""

from itertools import accumulate
from typing import NamedTuple

import torch

from gendistill.ops.decode_convolution_kernels import Convolution
from gendistill.ops.optional_triton import overlap, require_triton, tl, triton
from gendistill.ops.window import TOKEN_SCALE

PREPARE = {"num_warps": 4}
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
    def gates(self) -> dict[str, torch.Tensor]:
        """Second weights [H * D, D] of the gates of low rank: of a forget gate by channel, of the output gate."""
        decay = {} if self.decay_weight is None else {"decay": self.decay_weight}
        return decay | {"gate": self.gate_weight}

    @property
    def narrow(self) -> dict[str, int]:
        """Widths of the narrow projections behind q, k and v: of forget gate, output gate, write strength, share."""
        width = self.gate_weight.shape[1]
        decay = {"decay": width if self.decay_weight is not None else self.heads} if self.fixed is None else {}
        beta = {"beta": self.heads} if self.delta_rule else {}
        return decay | {"gate": width} | beta | ({"share": self.heads} if self.share_by_token else {})


class Prepared(NamedTuple):
    """What a recurrence takes of a layer's projections, all in float32 at least.

    Attributes:
        convolved: [B, C], q, k and v behind the convolution.
        gates: [B, 2 H D or H D], the products of `Recurrence.gates` side by side, without biases.
    """

    convolved: torch.Tensor
    gates: torch.Tensor


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


def kernel_prepare(x: torch.Tensor, conv_state: torch.Tensor, layer: Recurrence) -> Prepared:
    """As `decode_layer.prepare`, on a GPU.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    (batch, channels, taps), width = conv_state.shape, layer.gate_weight.shape[1]
    convolved = x.new_empty(batch, channels, dtype=torch.float32)  # rounded by who reads it, behind its norm
    gates = x.new_empty(batch, len(layer.gates) * layer.heads * width, dtype=torch.float32)
    offsets = _offsets(layer, channels)
    _prepare[(batch, (channels + gates.shape[1]) // width)](
        x, x.stride(0), *layer.convolution(conv_state)[:3], convolved, layer.decay_weight, layer.gate_weight, gates,
        gates.shape[1], offsets.get("decay", 0), offsets["gate"],
        HEADS=layer.heads, GROUPS=layer.key_heads, WIDTH=width, TAPS=taps, TAPS_PADDED=triton.next_power_of_2(taps),
        SILU=layer.silu_conv, **PREPARE, **overlap(),
    )  # fmt: skip
    return Prepared(convolved, gates)


def kernel_recurrent_step(
    x: torch.Tensor,
    prepared: Prepared,
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
    offsets = _offsets(layer, prepared.convolved.shape[1])
    kind = FIXED if layer.fixed is not None else BY_CHANNEL if layer.decay_weight is not None else BY_HEAD
    out = x.new_empty(batch, heads * width)
    _recur[(batch * heads,)](
        *prepared, prepared.gates.shape[1], x, x.stride(0),
        *(offsets.get(name, 0) for name in ("decay", "beta", "share")), layer.A_log, layer.dt_bias, layer.fixed,
        layer.bound or 0.0, layer.gate_bias, layer.norm, state, layer.share_logit, TOKEN_SCALE,
        seen, position, layer.seen_whole or 0, out, width**-0.5, layer.eps,
        HEADS=heads, GROUPS=layer.key_heads, WIDTH=width, KIND=kind, BOUNDED=layer.bound is not None,
        DELTA=layer.delta_rule, SILU=layer.silu_gate, BY_TOKEN=layer.share_by_token, **RECUR, **overlap(),
    )  # fmt: skip
    return out


def _offsets(layer: Recurrence, channels: int) -> dict[str, int]:
    """Where each narrow projection begins, behind q, k and v."""
    begins = accumulate(layer.narrow.values(), initial=channels)
    return dict(zip(layer.narrow, begins, strict=False))  # the last end begins nothing


if triton is not None:
    from gendistill.ops.decode_convolution_kernels import convolve_inputs

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
    def _prepare(
        X, row_stride, CONV_STATE, CONV_WEIGHT, CONV_BIAS, CONVOLVED, DECAY_WEIGHT, GATE_WEIGHT, GATES,
        gates_stride, decay_offset, gate_offset,
        HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, TAPS_PADDED: tl.constexpr,
        SILU: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        row = tl.program_id(0)
        part = tl.program_id(1)  # a head of q, k or v, then one of each gate
        convolved: tl.constexpr = HEADS + 2 * GROUPS
        channel = tl.arange(0, WIDTH)
        x = X + row * row_stride
        if part < convolved:
            lane = part * WIDTH + channel
            if OVERLAP:
                tl.extra.cuda.gdc_wait()
            place = row * convolved * WIDTH + lane
            y = convolve_inputs(
                CONV_STATE + place * TAPS, CONV_WEIGHT, CONV_BIAS, tl.load(x + lane), lane, lane >= 0,
                TAPS, TAPS_PADDED, SILU,
            )  # fmt: skip
            tl.store(CONVOLVED + place, y)
        else:
            head = part - convolved
            second = GATE_WEIGHT
            offset = gate_offset
            if DECAY_WEIGHT is not None:  # noqa: SIM102
                # By itself: the one above is decided when this is compiled.
                if head < HEADS:
                    second = DECAY_WEIGHT
                    offset = decay_offset
            weight = tl.load(second + (head % HEADS * WIDTH + channel)[:, None] * WIDTH + channel)  # [D, D]
            if OVERLAP:
                tl.extra.cuda.gdc_wait()
            product = tl.sum(weight.to(tl.float32) * tl.load(x + offset + channel).to(tl.float32), 1)
            tl.store(GATES + row * gates_stride + head * WIDTH + channel, product)

    @triton.jit
    def _unit(place, WIDTH: tl.constexpr, kind: tl.constexpr):
        """[D] float32: numbers at `place` at length 1, rounded to what the model computes in."""
        x = tl.load(place + tl.arange(0, WIDTH))
        return (x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)).to(kind).to(tl.float32)

    @triton.jit
    def _recur(
        CONVOLVED, GATES, gates_stride, X, row_stride, decay_offset, beta_offset, share_offset,
        A_LOG, DT_BIAS, FIXED_DECAY, bound, GATE_BIAS, NORM, STATE,
        SHARE_LOGIT, token_scale, SEEN, POSITION, seen_whole, OUT, scale, eps,
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
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        kind: tl.constexpr = X.dtype.element_ty
        x = X + row * row_stride
        gates = GATES + row * gates_stride
        if KIND == 2:
            log_decay = tl.load(FIXED_DECAY + head + channel * 0)  # [K]
        else:
            if KIND == 0:
                # Rounded, as the module's projection is.
                raw = tl.load(gates + head * WIDTH + channel).to(kind).to(tl.float32)
                raw += tl.load(DT_BIAS + head * WIDTH + channel)
                gates += HEADS * WIDTH  # the output gate's
            else:
                raw = tl.load(x + decay_offset + head + channel * 0).to(tl.float32) + tl.load(DT_BIAS + head)
            A = tl.exp(tl.load(A_LOG + head))
            if BOUNDED:
                log_decay = bound / (1.0 + tl.exp(-A * raw))
            else:
                softplus = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
                log_decay = -A * softplus
        heads = CONVOLVED + row * (HEADS + 2 * GROUPS) * WIDTH
        q = _unit(heads + head * WIDTH, WIDTH, kind) * scale  # [K]
        k = _unit(heads + (HEADS + group) * WIDTH, WIDTH, kind)
        v = tl.load(heads + (HEADS + GROUPS + group) * WIDTH + channel).to(kind).to(tl.float32)  # [V]
        state *= tl.exp(log_decay)[:, None]
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
        gate = tl.load(gates + head * WIDTH + channel) + tl.load(GATE_BIAS + head * WIDTH + channel).to(tl.float32)
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
