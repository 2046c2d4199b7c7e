"""A trial: what happens inside the chunks of a prefill by Kimi Delta Attention with bounded gates, in one kernel.

    python benchmarks/kda_prefill.py > results/gpu/kda_prefill.txt     # on a CUDA device

The package's prefill (`ops/bounded_kda.py`) has four kernels of fla's do it, each of which reads queries, keys and
gates again: the gates' sums, products within and between parts of 16 tokens with the triangular system's solution, and
what keys write and read. `_inside` does all of it and reads each once; `_outputs` takes the queries with their decays,
so that the sums of gates, in float32, need not go through memory. The sweep over chunks between them is the package's.
Not used by the package: it has not run on a GPU yet. In Triton's interpreter, in float32, it is the reference to 1e-4.

With C_t the sum of log decays from the chunk's first token, beta the write strength and A_ij = beta_i sum_d k_id k_jd
exp(C_id - C_jd) for j < i: the chunk writes u = (I + A)^-1 beta v and reads w = (I + A)^-1 beta k exp(C) (Kimi Linear,
arXiv 2510.26692). A part's keys are divided by its own decays, no more than 16 tokens of them, which a bounded gate
keeps within float32; queries and keys behind it have theirs since its first token.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from figures import gpu_machine
from triton.testing import do_bench

from gendistill.ops.bounded_kda import _sweep, bounded_kda_prefill
from gendistill.ops.decay import DecayGate
from gendistill.ops.kda_kernels import CHUNK
from gendistill.ops.optional_triton import tl, triton
from gendistill.ops.reference import recurrent_linear_attention

LENGTHS = (2048, 8192, 16384)  # tokens
HEADS, WIDTH, BOUND = 16, 128, -5.0
# Warps of _inside, precision of its small products, registers of a thread at most; columns and warps of _outputs.
INSIDE = [(warps, small, most) for warps in (4, 8) for small in ("ieee", "tf32x3", "tf32") for most in (None, 128)]
OUTPUTS = list(itertools.product((64, 128), (4, 8)))


@triton.jit
def _inverses(L, SMALL: tl.constexpr):
    """(I + L)^-1 of strictly lower triangles [4, 16, 16], by squares: L to the 16th is 0."""
    i = tl.arange(0, 16)
    power = -L
    result = tl.where((i[:, None] == i[None, :])[None], 1.0, 0.0) + power
    for _ in tl.static_range(3):
        power = tl.dot(power, power, input_precision=SMALL)
        result += tl.dot(result, power, input_precision=SMALL)
    return result


@triton.jit
def _decay(raw, bias, A, bound, there):
    """Log decays to the base of 2; 0 behind the last token."""
    return tl.where(there, bound / (1.0 + tl.exp(-A * (raw + bias))), 0.0)


@triton.jit
def _inside(
    Q, K, V, RAW, BETA, A_LOG, DT_BIAS, READING, WRITING, W, U, A_QK, BELOW, LAST, T, bound, scale,
    H: tl.constexpr, D: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    """A chunk of 64 tokens of one head, in four parts of 16."""
    chunk = tl.program_id(0)
    b = tl.program_id(1) // H
    h = tl.program_id(1) % H
    i = tl.arange(0, 64)
    j = tl.arange(0, 16)
    d = tl.arange(0, D)
    part = tl.arange(0, 4)[:, None, None]
    kind = Q.dtype.element_ty
    A = tl.exp(tl.load(A_LOG + h).to(tl.float32))
    bias = tl.load(DT_BIAS + h * D + d).to(tl.float32)
    row = chunk * 64 + i
    there = row < T
    at = (b * T + row).to(tl.int64) * H + h
    place = at[:, None] * D + d
    mask = there[:, None]
    beta = tl.load(BETA + at, mask=there, other=0.0).to(tl.float32)
    raw = tl.load(RAW + place, mask=mask, other=0.0).to(tl.float32)
    C = tl.cumsum(_decay(raw, bias, A, bound, mask), 0)  # [64, D]
    k = tl.load(K + place, mask=mask, other=0.0)
    q = tl.load(Q + place, mask=mask, other=0.0)
    since = tl.exp2(C)
    reads = (k.to(tl.float32) * since * beta[:, None]).to(kind)
    tl.store(READING + place, (q.to(tl.float32) * since * scale).to(kind), mask=mask)
    last = tl.sum(tl.where(i[:, None] == 63, C, 0.0), 0)
    tl.store(WRITING + place, (k.to(tl.float32) * tl.exp2(last - C)).to(kind), mask=mask)
    final = tl.minimum(chunk * 64 + 63, T - 1)
    tl.store(LAST + ((b * T + final).to(tl.int64) * H + h) * D + d, last)
    within = tl.zeros([4, 16, 16], tl.float32)
    for c in tl.static_range(4):
        theirs = chunk * 64 + c * 16 + j
        place_c = ((b * T + theirs).to(tl.int64) * H + h)[:, None] * D + d
        mask_c = (theirs < T)[:, None]
        raw_c = tl.load(RAW + place_c, mask=mask_c, other=0.0).to(tl.float32)
        k_c = tl.load(K + place_c, mask=mask_c, other=0.0).to(tl.float32)
        C_c = tl.cumsum(_decay(raw_c, bias, A, bound, mask_c), 0)
        keys = tl.trans((k_c * tl.exp2(-C_c)).to(kind))  # [D, 16]
        if c > 0:
            begin = tl.sum(tl.where(i[:, None] == c * 16 - 1, C, 0.0), 0)
            since = tl.exp2(tl.minimum(C - begin, 0.0))  # of the rows before nothing is used
        column = c * 16 + j
        A_qk = tl.dot((q.to(tl.float32) * since).to(kind), keys) * scale  # [64, 16]
        tl.store(A_QK + at[:, None] * 64 + column, tl.where(i[:, None] >= column, A_qk, 0.0).to(kind), mask=mask)
        A_kk = tl.dot((k.to(tl.float32) * since).to(kind), keys) * beta[:, None]
        A_kk = tl.where(i[:, None] > column, A_kk, 0.0)
        within = tl.where(part == c, tl.reshape(A_kk, [4, 16, 16]), within)
        tl.store(BELOW + at[:, None] * 64 + column, tl.where(i[:, None] >= c * 16 + 16, A_kk, 0.0), mask=mask)
    own = _inverses(within, SMALL)
    tl.debug_barrier()  # a thread reads what others have written
    column = tl.arange(0, 64)
    below = tl.load(BELOW + at[:, None] * 64 + column, mask=mask, other=0.0)
    M = tl.reshape(tl.dot(own, tl.reshape(below, [4, 16, 64]), input_precision=SMALL), [64, 64])
    # (I + M)^-1 is (I - M)(I + M^2), for M^4 is 0
    P = tl.where(i[:, None] == column, 1.0, 0.0) - M
    P += tl.dot(P, tl.dot(M, M, input_precision="tf32"), input_precision="tf32")
    P = P.to(kind)
    own = own.to(kind)
    w = tl.reshape(tl.dot(own, tl.reshape(reads, [4, 16, D])), [64, D])
    tl.store(W + place, tl.dot(P, w.to(kind)).to(kind), mask=mask)
    v = (tl.load(V + place, mask=mask, other=0.0).to(tl.float32) * beta[:, None]).to(kind)
    u = tl.reshape(tl.dot(own, tl.reshape(v, [4, 16, D])), [64, D])
    tl.store(U + place, tl.dot(P, u.to(kind)).to(kind), mask=mask)


@triton.jit
def _outputs(READING, STATES, NEW, A_QK, OUT, T, H: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr):
    """A chunk's outputs: what its queries read of the state before it, and of its own tokens."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(1)
    b = tl.program_id(2) // H
    h = tl.program_id(2) % H
    row = chunk * 64 + tl.arange(0, 64)
    there = (row < T)[:, None]
    at = (b * T + row).to(tl.int64) * H + h
    d = tl.arange(0, D)
    q = tl.load(READING + at[:, None] * D + d, mask=there, other=0.0)
    before = ((b * tl.cdiv(T, 64) + chunk).to(tl.int64) * H + h) * D * D
    o = tl.dot(q, tl.load(STATES + before + d[:, None] * D + column))
    a = tl.load(A_QK + at[:, None] * 64 + tl.arange(0, 64), mask=there, other=0.0)
    o = tl.dot(a, tl.load(NEW + at[:, None] * D + column, mask=there, other=0.0), o)
    tl.store(OUT + at[:, None] * D + column, o.to(OUT.dtype.element_ty), mask=there)


def inside(q, k, v, raw, beta, A_log, dt_bias, warps: int, small: str, most: int | None) -> tuple[torch.Tensor, ...]:
    """Queries and keys as they meet states, w, u, A of queries and keys [B, T, H, 64], log2 decays of chunks [B, T, H,
    D] at their last tokens."""
    B, T, H, D = q.shape
    reading, writing, w, u = (torch.empty_like(q) for _ in range(4))
    A_qk = q.new_empty(B, T, H, CHUNK)
    below = q.new_empty(B, T, H, CHUNK, dtype=torch.float32)
    last = q.new_empty(B, T, H, D, dtype=torch.float32)
    _inside[(-(-T // CHUNK), B * H)](
        q, k, v, raw, beta, A_log, dt_bias, reading, writing, w, u, A_qk, below, last, T, BOUND / math.log(2), D**-0.5,
        H=H, D=D, SMALL=small, num_warps=warps, num_stages=1, maxnreg=most,
    )  # fmt: skip
    return reading, writing, w, u, A_qk, last


def outputs(reading, states, new, A_qk, columns: int, warps: int) -> torch.Tensor:
    B, T, H, D = reading.shape
    o = torch.empty_like(new)
    _outputs[(D // columns, -(-T // CHUNK), B * H)](
        reading, states, new, A_qk, o, T, H=H, D=D, COLUMNS=columns, num_warps=warps, num_stages=2
    )
    return o


def prefill(*given, setting: tuple, columns: int, warps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `bounded_kda_prefill`, from no state."""
    reading, writing, w, u, A_qk, last = inside(*given, *setting)
    states, new, state = _sweep(writing, w, u, last, None)
    return outputs(reading, states, new, A_qk, columns, warps), state


def make_inputs(length: int, gates: str, kind: torch.dtype) -> list[torch.Tensor]:
    """q, k, v, what gates are projected from, write strengths, A_log, dt_bias. "same": one key, hardly any decay."""
    source = torch.Generator("cuda").manual_seed(0)
    q, k, v, raw = (torch.randn(1, length, HEADS, WIDTH, generator=source, device="cuda") for _ in range(4))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    beta = torch.rand(1, length, HEADS, generator=source, device="cuda")
    if gates == "floor":  # the lowest decay that there is
        raw += 20
    elif gates == "same":
        k, beta, raw = k[:, :1].expand_as(k).contiguous(), torch.ones_like(beta), raw - 20
    elif gates != "mixed":
        raise ValueError(f"gates are mixed, floor or same, not '{gates}'")
    A_log, dt_bias = torch.zeros(HEADS, device="cuda"), torch.zeros(HEADS * WIDTH, device="cuda")
    return [*(x.to(kind) for x in (q, k, v, raw * 3)), beta, A_log, dt_bias]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@torch.no_grad()
def main() -> None:
    print(gpu_machine())
    for gates in ("mixed", "floor", "same"):
        given = make_inputs(300, gates, torch.bfloat16)
        q, k, v, raw, beta, A_log, dt_bias = (x.double() for x in given)
        expected, state = recurrent_linear_attention(q, k, v, DecayGate(raw, A_log, dt_bias, BOUND).log_decay(), beta)
        made = {"fla's": by_fla(*given)}
        for setting in INSIDE:
            made[f"ours {setting}"] = prefill(*given, setting=setting, columns=128, warps=4)
        for name, (o, last) in made.items():
            print(f"{gates}, 300 tokens, {name}: errors {error(o, expected):.1e}, {error(last, state):.1e}", flush=True)
    for length in LENGTHS:
        given = make_inputs(length, "mixed", torch.bfloat16)
        print(f"{length} tokens, milliseconds: fla's, whole, {took(by_fla, *given)}")
        for setting in INSIDE:
            print(f"  inside {setting} {took(inside, *given, *setting)}", flush=True)
        reading, writing, w, u, A_qk, last = inside(*given, *INSIDE[0])
        states, new, _ = _sweep(writing, w, u, last, None)
        print(f"  sweep {took(_sweep, writing, w, u, last, None)}")
        for columns, warps in OUTPUTS:
            print(
                f"  outputs {columns} {warps} {took(outputs, reading, states, new, A_qk, columns, warps)}", flush=True
            )


def by_fla(q, k, v, raw, beta, A_log, dt_bias) -> tuple[torch.Tensor, torch.Tensor]:
    return bounded_kda_prefill(q, k, v, raw, beta, A_log=A_log, dt_bias=dt_bias, lower_bound=BOUND)


def took(function: Callable, *given) -> str:
    return f"{do_bench(partial(function, *given)):.4f}"


if __name__ == "__main__":
    main()
