"""The Triton kernels of `decode_layer`: a token's way between the projections of a layer in one or two launches.

Shapes: B rows, H query heads, G key heads, S places, D channels of a head, C = (H + 2 G) D channels of q, k and v.
"""

from typing import NamedTuple

import torch

from gendistill.ops.optional_triton import overlap, require_triton, tl, triton
from gendistill.ops.window import TOKEN_SCALE

# With 4 warps `_prepare` takes 0.4 us longer, and with 8 `_recur` finds no room beside what is ending: 2 us a layer
# more (results/gpu/decode_trials.txt).
PREPARE = {"num_warps": 8}
RECUR = {"num_warps": 4}
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

    @property
    def narrow(self) -> dict[str, int]:
        """Widths of the narrow projections behind q, k and v: of forget gate, output gate, write strength, share."""
        width = self.gate_weight.shape[1]
        decay = {"decay": width if self.decay_weight is not None else self.heads} if self.fixed is None else {}
        beta = {"beta": self.heads} if self.delta_rule else {}
        return decay | {"gate": width} | beta | ({"share": self.heads} if self.share_by_token else {})

    def by_name(self, projected: torch.Tensor) -> dict[str, torch.Tensor]:
        """The narrow projections apart, of all of them side by side in the last dimension."""
        return dict(zip(self.narrow, projected.split(list(self.narrow.values()), dim=-1), strict=True))


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
    conv_state: torch.Tensor,
    state: torch.Tensor,
    layer: Recurrence,
    seen: torch.Tensor | None,
    position: torch.Tensor,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """As `decode_layer.recurrent_step`, on a GPU.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    batch, (_, heads, width, _) = len(x), state.shape
    assert state[0].is_contiguous() and conv_state[0].is_contiguous()
    groups, (channels, taps) = layer.key_heads, layer.conv_weight.shape
    offsets, offset = {}, channels
    for name, size in layer.narrow.items():
        offsets[name] = offset
        offset += size
    kind = FIXED if layer.fixed is not None else BY_CHANNEL if layer.decay_weight is not None else BY_HEAD
    mixed = x.new_empty(batch, channels)
    decay = x.new_empty(batch, heads, width, dtype=torch.float32)
    gate = x.new_empty(batch, heads, width, dtype=torch.float32)
    _prepare[(batch, 3 * heads + 2 * groups)](
        x, x.stride(0), conv_state, conv_state.stride(0), rows, layer.conv_weight, layer.conv_bias, mixed,
        layer.decay_weight, layer.A_log, layer.dt_bias, layer.fixed, decay, layer.gate_weight, layer.gate_bias, gate,
        offsets.get("decay", 0), offsets["gate"], layer.bound or 0.0,
        HEADS=heads, GROUPS=groups, WIDTH=width, TAPS=taps, TAPS_PADDED=triton.next_power_of_2(taps),
        KIND=kind, BOUNDED=layer.bound is not None, SILU=layer.silu_conv, SILU_GATE=layer.silu_gate,
        **PREPARE, **overlap(),
    )  # fmt: skip
    out = x.new_empty(batch, heads * width)
    _recur[(batch * heads,)](
        mixed, x, x.stride(0), offsets.get("beta", 0), decay, gate, layer.norm, state, state.stride(0), rows,
        layer.share_logit, offsets.get("share", 0), TOKEN_SCALE, seen, position, layer.seen_whole or 0,
        out, width**-0.5, layer.eps, BY_TOKEN=layer.share_by_token,
        HEADS=heads, GROUPS=groups, WIDTH=width, DELTA=layer.delta_rule, **RECUR, **overlap(),
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
        row = tl.program_id(0)
        head = tl.program_id(1)  # of q, k and v side by side
        channel = tl.arange(0, WIDTH)
        half: tl.constexpr = WIDTH // 2
        other = (channel + half) % WIDTH  # which RoPE turns this channel with
        weight = channel
        other_weight = channel
        if Q_NORM is not None:  # before the wait, as nobody writes them
            weight = tl.load((Q_NORM if head < HEADS else K_NORM) + channel)
            other_weight = tl.load((Q_NORM if head < HEADS else K_NORM) + other)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        source = QKV + row * row_stride + head * WIDTH
        x = tl.load(source + channel).to(tl.float32)
        if head < HEADS + GROUPS:
            partner = tl.load(source + other).to(tl.float32)
            if Q_NORM is not None:
                root = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
                kind = QKV.dtype.element_ty
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
    def _log_decay(raw, A, bound, BOUNDED: tl.constexpr):
        """As `DecayGate.log_decay`, of what is projected with its bias."""
        if BOUNDED:
            log_decay = bound / (1.0 + tl.exp(-A * raw))
        else:
            softplus = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
            log_decay = -A * softplus
        return log_decay

    @triton.jit
    def _held(ROWS, row):
        """Which of the states belongs to a row."""
        return (row if ROWS is None else tl.load(ROWS + row)).to(tl.int64)

    @triton.jit
    def _prepare(
        X, row_stride, CONV_STATE, state_stride, ROWS, CONV_WEIGHT, CONV_BIAS, MIXED,
        DECAY_WEIGHT, A_LOG, DT_BIAS, FIXED_DECAY, DECAY, GATE_WEIGHT, GATE_BIAS, GATE,
        decay_offset, gate_offset, bound,
        HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, TAPS_PADDED: tl.constexpr,
        KIND: tl.constexpr, BOUNDED: tl.constexpr, SILU: tl.constexpr, SILU_GATE: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        row = tl.program_id(0)
        part = tl.program_id(1)  # a head of q, k or v, then one of the decay, then one of the output gate
        convolved: tl.constexpr = HEADS + 2 * GROUPS
        channel = tl.arange(0, WIDTH)
        x = X + row * row_stride
        # What nobody writes meanwhile comes before the wait: behind it each would be waited for in turn.
        if part < convolved:
            lane = part * WIDTH + channel
            tap = tl.arange(0, TAPS_PADDED)[None, :]
            earlier = tap < TAPS - 1
            state = CONV_STATE + _held(ROWS, row) * state_stride + lane * TAPS
            # Last written a whole step ago, and between steps are launches that wait for all before them.
            past = tl.load(state[:, None] + tap + 1, mask=earlier, other=0.0)  # [D, TAPS_PADDED]
            weight = tl.load(CONV_WEIGHT + lane[:, None] * TAPS + tap, mask=earlier, other=0.0)
            last = tl.load(CONV_WEIGHT + lane * TAPS + TAPS - 1).to(tl.float32)
            y = tl.load(CONV_BIAS + lane).to(tl.float32) + tl.sum(past.to(tl.float32) * weight.to(tl.float32), 1)
            tl.debug_barrier()  # a thread stores where another one loads
            tl.store(state[:, None] + tap, past, mask=earlier)
            if OVERLAP:
                tl.extra.cuda.gdc_wait()
            new = tl.load(x + lane)
            tl.store(state + TAPS - 1, new)
            y += last * new.to(tl.float32)
            if SILU:
                y = y / (1.0 + tl.exp(-y))
            if part < HEADS + GROUPS:
                y = y * tl.rsqrt(tl.sum(y * y, 0) + 1e-6)
            tl.store(MIXED + row * convolved * WIDTH + lane, y.to(MIXED.dtype.element_ty))
        elif part < convolved + HEADS:
            head = part - convolved
            if KIND == 2:
                if OVERLAP:
                    tl.extra.cuda.gdc_wait()
                log_decay = tl.load(FIXED_DECAY + head + channel * 0)
            elif KIND == 0:
                A = tl.exp(tl.load(A_LOG + head).to(tl.float32))  # whatever a user has cast the model to
                bias = tl.load(DT_BIAS + head * WIDTH + channel)
                weight_of_decay = _second(DECAY_WEIGHT, head, WIDTH)
                if OVERLAP:
                    tl.extra.cuda.gdc_wait()
                narrow = tl.load(x + decay_offset + channel).to(tl.float32)
                raw = tl.sum(weight_of_decay.to(tl.float32) * narrow, 1)
                log_decay = _log_decay(raw.to(X.dtype.element_ty).to(tl.float32) + bias, A, bound, BOUNDED)
            elif KIND == 1:
                A = tl.exp(tl.load(A_LOG + head).to(tl.float32))
                bias = tl.load(DT_BIAS + head)
                if OVERLAP:
                    tl.extra.cuda.gdc_wait()
                raw = tl.load(x + decay_offset + head + channel * 0).to(tl.float32)
                log_decay = _log_decay(raw + bias, A, bound, BOUNDED)
            tl.store(DECAY + (row * HEADS + head) * WIDTH + channel, tl.exp(log_decay))
        else:
            head = part - convolved - HEADS
            gate_bias = tl.load(GATE_BIAS + head * WIDTH + channel).to(tl.float32)
            weight_of_gate = _second(GATE_WEIGHT, head, WIDTH)
            if OVERLAP:
                tl.extra.cuda.gdc_wait()
            narrow_gate = tl.load(x + gate_offset + channel).to(tl.float32)
            gate = tl.sum(weight_of_gate.to(tl.float32) * narrow_gate, 1) + gate_bias
            gate = (gate if SILU_GATE else 1.0) / (1.0 + tl.exp(-gate))
            tl.store(GATE + (row * HEADS + head) * WIDTH + channel, gate)

    @triton.jit
    def _recur(
        MIXED, X, row_stride, beta_offset, DECAY, GATE, NORM, STATE, state_stride, ROWS,
        SHARE_LOGIT, share_offset, token_scale, SEEN, POSITION, seen_whole,
        OUT, scale, eps, BY_TOKEN: tl.constexpr,
        HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, DELTA: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        row = tl.program_id(0) // HEADS
        head = tl.program_id(0) % HEADS
        group = head // (HEADS // GROUPS)
        channel = tl.arange(0, WIDTH)
        here = (row * HEADS + head) * WIDTH
        # Before the wait what nobody writes meanwhile: the state was last written a whole step ago, and between steps
        # are launches that wait for all before them. Behind it all loads at once: each takes longer than the products.
        place = STATE + _held(ROWS, row) * state_stride + head * (WIDTH * WIDTH) + channel[:, None] * WIDTH + channel
        state = tl.load(place)  # [K, V]
        norm = channel
        if NORM is not None:
            norm = tl.load(NORM + channel)
        logit = 0.0
        if SEEN is not None:
            logit = tl.load(SHARE_LOGIT + head).to(tl.float32)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        x = X + row * row_stride
        mixed = MIXED + row * (HEADS + 2 * GROUPS) * WIDTH
        q = tl.load(mixed + head * WIDTH + channel).to(tl.float32) * scale  # [K]
        k = tl.load(mixed + (HEADS + group) * WIDTH + channel).to(tl.float32)
        v = tl.load(mixed + (HEADS + GROUPS + group) * WIDTH + channel).to(tl.float32)  # [V]
        decay = tl.load(DECAY + here + channel)  # [K]
        gate = tl.load(GATE + here + channel)  # [V]
        write = v  # [V]
        beta = 1.0
        if DELTA:
            beta = 1.0 / (1.0 + tl.exp(-tl.load(x + beta_offset + head).to(tl.float32)))
        seen = gate
        position = 0
        if SEEN is not None:
            seen = tl.load(SEEN + here + channel).to(tl.float32)
            position = tl.load(POSITION + row)
            if BY_TOKEN:
                logit += token_scale * tl.load(x + share_offset + head).to(tl.float32)
        state *= decay[:, None]
        if DELTA:
            write = beta * (v - tl.sum(state * k[:, None], 0))
        state += k[:, None] * write  # an outer product
        tl.store(place, state)
        kind = OUT.dtype.element_ty
        o = tl.sum(state * q[:, None], 0)  # [V]
        if NORM is not None:
            o = o * tl.rsqrt(tl.sum(o * o, 0) / WIDTH + eps)
            o = (norm * o.to(kind)).to(tl.float32)
        o = o * gate
        if SEEN is not None:
            share = 1.0 / (1.0 + tl.exp(-logit))  # the recurrence's, for float32 rounds the window's
            o = tl.where(position < seen_whole, seen, seen + share * (o - seen))
        tl.store(OUT + here + channel, o.to(kind))
