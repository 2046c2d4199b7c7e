"""What comes out of a recurrence's chunks in a prefill, and what follows up to the output projection.

Shapes: B sequences, T tokens in each, H heads, D channels of a key and of a value, R of a low-rank gate,
N = ceil(T / 64) chunks a sequence, S = 64 N.
"""

from typing import NamedTuple

import torch

from gendistill.ops.optional_triton import tl, triton
from gendistill.ops.prefill_tokens import spacing

SETTING = {"num_warps": 8, "num_stages": 2}


class Beside(NamedTuple):
    """A window's outputs, of which a recurrence beside it takes a share; see `share_beside`.

    Attributes:
        seen: [B, T, H, D], contiguous.
        logit: [H], of the recurrence's share.
        raw: [B, T, H], what tokens add to it times `scale`, evenly spaced in memory; None for nothing.
        start: tokens before the first of these.
        seen_whole: first tokens of a text that are all the window's.
    """

    seen: torch.Tensor
    logit: torch.Tensor
    raw: torch.Tensor | None
    scale: float
    start: int
    seen_whole: int


class OutputGate(NamedTuple):
    """What happens behind the recurrence; see `gated_norm`.

    Attributes:
        raw: [B, T, R], tokens evenly spaced in memory.
        weight, bias: [H * D, R] and [H * D].
        norm: weight [D] of the norm of each head before it, with its eps; None for no norm.
        silu: the activation; otherwise a sigmoid.
        beside: None for no window.
    """

    raw: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    norm: torch.Tensor | None
    eps: float
    silu: bool
    beside: Beside | None


def outputs(
    reading: torch.Tensor, h: torch.Tensor, v_new: torch.Tensor, P: torch.Tensor, gate: OutputGate | None, T: int
) -> torch.Tensor:
    """[B, T, H * D] of queries with their decays, states before chunks, new values and products inside chunks.

    reading, v_new: [B, S, H, D]. h: [B, N, H, D, D]. P: [B, S, H, 64].
    """
    B, N, H, D = h.shape[:4]
    assert all(x.is_contiguous() for x in (reading, h, v_new, P))
    y = v_new.new_empty(B, T, H * D)
    of_gate, width, silu, beside = (None, 0, None, None, None, 0.0), 0, False, None
    if gate is not None:
        assert gate.weight.is_contiguous()
        of_gate = (gate.raw, spacing(gate.raw), gate.weight, gate.bias, gate.norm, gate.eps)
        width, silu, beside = gate.raw.shape[2], gate.silu, gate.beside
    of_window = (None, None, None, 0, 0.0, 0, 0)
    if beside is not None:
        assert beside.seen.is_contiguous()
        apart = 0 if beside.raw is None else spacing(beside.raw)
        of_window = (*beside[:3], apart, *beside[3:])
    _kernel[N, B * H](reading, h, v_new, P, *of_gate, *of_window, y, T, H=H, D=D, R=width, SILU=silu, **SETTING)
    return y


if triton is not None:
    from gendistill.ops.prefill_tokens import sigmoid

    @triton.jit(do_not_specialize=["T", "start", "seen_whole"])
    def _kernel(
        reading, h, v_new, P, raw, raw_spacing, weight, bias, norm, eps,
        seen, logit, share, share_spacing, share_scale, start, seen_whole, y, T,
        H: tl.constexpr, D: tl.constexpr, R: tl.constexpr, SILU: tl.constexpr,
    ):  # fmt: skip
        """A chunk of one head: what its queries read of the state before it and of its own tokens; what follows."""
        chunk, row, head = tl.program_id(0), (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
        i = chunk * 64 + tl.arange(0, 64)[:, None]
        has = i < T
        padded = (row * tl.num_programs(0) * 64 + i) * H + head  # where each chunk has 64 tokens
        d = tl.arange(0, D)[None, :]
        before = ((row * tl.num_programs(0) + chunk) * H + head) * (D * D)
        o = tl.dot(tl.load(reading + padded * D + d), tl.load(h + before + tl.arange(0, D)[:, None] * D + d))
        inside = tl.load(P + padded * 64 + tl.arange(0, 64)[None, :])
        o = tl.dot(inside, tl.load(v_new + padded * D + d), o)  # [64, D]
        if norm is not None:
            o *= tl.rsqrt(tl.sum(o * o, 1)[:, None] / D + eps) * tl.load(norm + d).to(tl.float32)
        if weight is not None:
            r = tl.arange(0, R)
            given = tl.load(raw + (row * T + i) * raw_spacing + r[None, :], mask=has, other=0.0)  # [64, R]
            gate = tl.dot(given, tl.load(weight + (head * D + d) * R + r[:, None]))  # [64, D]
            gate += tl.load(bias + head * D + d).to(tl.float32)
            o *= sigmoid(gate)
            if SILU:
                o *= gate
        place = ((row * T + i) * H + head) * D + d
        if seen is not None:
            of_head = tl.load(logit + head).to(tl.float32)
            if share is not None:
                added = tl.load(share + (row * T + i) * share_spacing + head, mask=has, other=0.0)  # [64, 1]
                of_head += share_scale * added.to(tl.float32)
            window = tl.load(seen + place, mask=has, other=0.0).to(tl.float32)
            o = tl.where(start + i < seen_whole, window, window + sigmoid(of_head) * (o - window))
        tl.store(y + place, o.to(y.dtype.element_ty), mask=has)
