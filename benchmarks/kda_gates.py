"""A trial: the two gates of Kimi Delta Attention projected inside the kernels that use them, in a prefill.

    python benchmarks/kda_gates.py > results/gpu/kda_gates.txt     # on a CUDA device

A layer makes the forget gate [B, T, H * D] and the output gate [B, T, H * D] of narrow projections [B, T, R], R as many
as a head's channels. Today two products write them and two kernels read them again (ops/kda_prefill_kernels.py,
ops/output_gate_kernels.py). Here a chunk's program multiplies its own tokens' narrow projections by its head's weights,
and the norm and the output gate happen where the outputs are made: two products and a kernel less a layer. Not used by
the package: it has not run on a GPU yet. In Triton's interpreter, in float32, it is what the package computes.

Shapes: B sequences, T tokens in each, H heads, D channels of a key and of a value, N = ceil(T / 64) chunks a sequence.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from kda_prefill import BOUND, HEADS, LENGTHS, WIDTH, error, make_inputs, took
from ledger import gpu_machine, takes_no_arguments

from gendistill.ops import gated_norm
from gendistill.ops import kda_prefill_kernels as kernels
from gendistill.ops.bounded_kda import bounded_kda_prefill
from gendistill.ops.kda_prefill_kernels import _exponents
from gendistill.ops.optional_triton import tl, triton

ROOM = 2 * WIDTH + HEADS  # of a token's narrow projections, which lie side by side


@triton.jit(do_not_specialize=["T"])
def _products(
    q, k, narrow, weight, beta, A_log, dt_bias, sums, reading, writing, w, L, P, decay, bound, scale, T,
    H: tl.constexpr, D: tl.constexpr, R: tl.constexpr, STRIDE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """As the package's `_products_kernel`, with the forget gate's projection: narrow [B T, STRIDE], weight [H D, R]."""
    chunk, row, head = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
    kind = q.dtype.element_ty
    count = T - chunk * 64
    token = row.to(tl.int64) * T + chunk * 64
    first = token * H + head
    place = ((row * tl.num_programs(0) + chunk).to(tl.int64) * 64) * H + head
    i, j = tl.arange(0, 64)[:, None], tl.arange(0, 64)[None, :]
    r = tl.arange(0, R)
    has = i < count
    A = tl.exp(tl.load(A_log + head).to(tl.float32))
    strength = tl.load(beta + first + i * H, mask=has, other=0.0).to(tl.float32)  # [64, 1]
    given = tl.load(narrow + (token + i) * STRIDE + r[None, :], mask=has, other=0.0)  # [64, R]
    within = ((i & 32) == (j & 32)) & (j <= i)
    sums += i * 64 + j
    to_q, to_k = tl.zeros([64, 64], tl.float32), tl.zeros([64, 64], tl.float32)
    for at in tl.range(0, D, KEYS, num_stages=1):
        d = at + tl.arange(0, KEYS)[None, :]
        wide, padded = first * D + i * (H * D) + d, place * D + i * (H * D) + d
        x = tl.dot(given, tl.load(weight + (head * D + d) * R + r[:, None]))  # [64, KEYS]
        x += tl.load(dt_bias + head * D + d).to(tl.float32)
        g = tl.where(has, bound * tl.sigmoid(A * x), 0.0)
        high = g.to(kind)
        low = (g - high.to(tl.float32)).to(kind)
        q_ = tl.load(q + wide, mask=has, other=0.0)
        k_ = tl.load(k + wide, mask=has, other=0.0)
        e = tl.exp2(_exponents(sums, high, low))
        early = tl.trans((k_.to(tl.float32) * tl.where(i < 32, e, 0.0)).to(kind))
        e = tl.where(i < 32, 0.0, e)
        to_q = tl.dot((q_.to(tl.float32) * e).to(kind), early, to_q)
        to_k = tl.dot((k_.to(tl.float32) * e).to(kind), early, to_k)
        e = _exponents(sums + 4096, high, low)
        keys = tl.trans((k_.to(tl.float32) * tl.exp2(-e)).to(kind))
        e = tl.exp2(e)
        to_q += tl.where(within, tl.dot((q_.to(tl.float32) * e).to(kind), keys), 0.0)
        to_k += tl.where(within, tl.dot((k_.to(tl.float32) * e).to(kind), keys), 0.0)
        e = tl.exp2(_exponents(sums + 2 * 4096, high, low))
        tl.store(writing + padded, (k_.to(tl.float32) * e).to(kind))
        e = tl.exp2(_exponents(sums + 3 * 4096, high, low))
        tl.store(reading + padded, (q_.to(tl.float32) * (e * scale)).to(kind))
        tl.store(w + padded, (k_.to(tl.float32) * (e * strength)).to(kind))
        number = (row * tl.num_programs(0) + chunk).to(tl.int64) * H + head
        tl.store(decay + number * D + d + i * 0, e, mask=i == 63)
    square = place * 64 + i * (H * 64) + j
    tl.store(P + square, (to_q * scale).to(kind))
    tl.store(L + square, tl.where(j < i, to_k * strength, 0.0))


@triton.jit(do_not_specialize=["T"])
def _outputs(
    reading, h, v_new, P, narrow, weight, bias, norm, y, eps, T,
    H: tl.constexpr, D: tl.constexpr, R: tl.constexpr, STRIDE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """As the package's `_outputs_kernel`, with the norm and the output gate, whose projection has weight [H D, R]."""
    chunk, row, head = tl.program_id(0), (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    i = chunk * 64 + tl.arange(0, 64)[:, None]
    has = i < T
    d, r = tl.arange(0, D), tl.arange(0, R)
    padded = (row * tl.num_programs(0) * 64 + i) * H + head  # where each chunk has 64 tokens
    before = ((row * tl.num_programs(0) + chunk) * H + head) * (D * D)
    o = tl.dot(tl.load(reading + padded * D + d[None, :]), tl.load(h + before + d[:, None] * D + d[None, :]))
    inside = tl.load(P + padded * 64 + tl.arange(0, 64)[None, :])
    o = tl.dot(inside, tl.load(v_new + padded * D + d[None, :]), o)  # [64, D]
    given = tl.load(narrow + (row * T + i) * STRIDE + r[None, :], mask=has, other=0.0)  # [64, R]
    gate = tl.dot(given, tl.load(weight + (head * D + d[None, :]) * R + r[:, None]))  # [64, D]
    gate += tl.load(bias + head * D + d).to(tl.float32)[None, :]
    if norm is not None:
        o *= tl.rsqrt(tl.sum(o * o, 1)[:, None] / D + eps) * tl.load(norm + d).to(tl.float32)[None, :]
    o *= tl.sigmoid(gate)
    if SILU:
        o *= gate
    tl.store(y + ((row * T + i) * H + head) * D + d[None, :], o.to(y.dtype.element_ty), mask=has)


def products(q, k, narrow, weight, beta, A_log, dt_bias, warps: int, keys: int) -> tuple[torch.Tensor, ...]:
    """As the package's, of narrow [B, T, R], which may be a part of something wider."""
    B, T, H, D = q.shape
    number = triton.cdiv(T, 64)
    reading, writing, w = (q.new_empty(B, number * 64, H, D) for _ in range(3))
    L, P = q.new_empty(B, number * 64, H, 64, dtype=torch.float32), q.new_empty(B, number * 64, H, 64)
    decay = q.new_empty(B, number, H, D, dtype=torch.float32)
    _products[number, B * H](
        q, k, narrow, weight, beta, A_log, dt_bias, kernels._sums(q.device).to(q.dtype), reading, writing, w, L, P,
        decay, BOUND / math.log(2), D**-0.5, T, H=H, D=D, R=narrow.shape[2], STRIDE=narrow.stride(1), KEYS=keys,
        num_warps=warps, num_stages=1,
    )  # fmt: skip
    return reading, writing, w, L, P, decay


def outputs(reading, h, v_new, P, narrow, weight, bias, norm, eps: float, silu: bool, warps: int) -> torch.Tensor:
    """[B, T, H * D]."""
    B, N, H, D = h.shape[:4]
    T = narrow.shape[1]
    y = v_new.new_empty(B, T, H * D)
    _outputs[N, B * H](
        reading, h, v_new, P, narrow, weight, bias, norm, y, eps, T, H=H, D=D, R=narrow.shape[2],
        STRIDE=narrow.stride(1), SILU=silu, num_warps=warps, num_stages=1,
    )  # fmt: skip
    return y


def fused(q, k, v, beta, A_log, dt_bias, narrow, weights, bias, norm, warps=(4, 4), keys=64) -> torch.Tensor:
    forget, gate = narrow[..., :WIDTH], narrow[..., WIDTH : 2 * WIDTH]
    reading, writing, w, L, P, decay = products(q, k, forget, weights[0], beta, A_log, dt_bias, warps[0], keys)
    u = kernels.solve(v, beta, L, w)
    h, v_new, _ = kernels.chunks(writing, w, u, decay, None)
    return outputs(reading, h, v_new, P, gate, weights[1], bias, norm, 1e-6, False, warps[1])


def apart(q, k, v, beta, A_log, dt_bias, narrow, weights, bias, norm) -> torch.Tensor:
    """As the package does it."""
    forget, gate = narrow[..., :WIDTH], narrow[..., WIDTH : 2 * WIDTH]
    raw = F.linear(forget, weights[0]).unflatten(-1, (HEADS, -1))
    o, _ = bounded_kda_prefill(q, k, v, raw, beta, A_log=A_log, dt_bias=dt_bias, lower_bound=BOUND)
    return gated_norm(o, F.linear(gate, weights[1]), bias, norm, eps=1e-6, activation="sigmoid")


@torch.no_grad()
def main() -> None:
    print(gpu_machine())
    for length in (300, *LENGTHS):
        q, k, v, _, beta, A_log, dt_bias = make_inputs(length, "mixed")
        narrow = torch.randn(1, length, ROOM, device="cuda").bfloat16()
        weights = [(torch.randn(HEADS * WIDTH, WIDTH, device="cuda") * WIDTH**-0.5).bfloat16() for _ in range(2)]
        bias, norm = torch.randn(HEADS * WIDTH, device="cuda").bfloat16(), torch.ones(WIDTH, device="cuda").bfloat16()
        given = (q, k, v, beta, A_log, dt_bias, narrow, weights, bias, norm)
        expected = apart(*given).double()
        print(f"{length} tokens: apart {took(apart, *given)} us", flush=True)
        for warps, keys in (((4, 4), 64), ((4, 8), 64), ((8, 4), 64), ((4, 4), 32), ((8, 8), 32)):
            whole = partial(fused, warps=warps, keys=keys)
            differs = error(whole(*given), expected)
            print(f"  fused, {warps} warps, {keys} keys {took(whole, *given)} us, differs {differs:.1e}", flush=True)


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
