"""A trial: what happens inside the chunks of a prefill by Kimi Delta Attention with bounded gates, in fewer kernels.

    python benchmarks/kda_prefill.py > results/gpu/kda_prefill.txt     # on a CUDA device

The package's prefill (`ops/bounded_kda.py`) has four kernels of fla's do it, each of which reads queries, keys or
gates again: the gates' sums, products within and between parts of 16 tokens with the triangular system's solution, and
what keys write and read. `_inside` does all of it in one launch, or in two; `_outputs` takes the queries with their
decays, so that the sums of gates, in float32, need not go through memory. Between them stands the sweep over chunks,
fla's kernel, or `_chunks`, the same without masks. Not used by the package: it has not run on a GPU yet. In Triton's
interpreter, in float32, it is the reference to 1e-4; compiled for Hopper nothing spills.

With C_t the sum of log decays from the chunk's first token, beta the write strength and A_ij = beta_i sum_d k_id k_jd
exp(C_id - C_jd) for j < i: the chunk writes u = (I + A)^-1 beta v and reads w = (I + A)^-1 beta k exp(C) (Kimi Linear,
arXiv 2510.26692). A part's keys are divided by its own decays, no more than 16 tokens of them, which a bounded gate
keeps within float32; queries and keys behind it have theirs since its first token.
"""

import itertools
import math
from collections.abc import Callable, Sequence
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
# Launches of _inside, each with its warps and a thread's registers at most, and the precision of its small products;
# columns and warps of _outputs.
KINDS = [(4, None), (8, None), (4, 168), (8, 128)]
INSIDE = [([one], small) for one in KINDS for small in ("ieee", "tf32x3")]
INSIDE += [([(4, None), one], small) for one in KINDS for small in ("ieee", "tf32x3", "tf32")]
INSIDE += [([one, (4, None)], "ieee") for one in KINDS[1:]]
CHUNKS = list(itertools.product((16, 32), (4, 8), (2, 3, 4)))  # columns, warps, stages
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
def _products(
    Q, K, RAW, BETA, A_LOG, DT_BIAS, READING, WRITING, W, A_QK, A_KK, LAST, bound, scale, start, count, h, of_queries,
    H: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Queries or keys with their decays, and their products with keys within a chunk; in W what is to be solved for.

    start: number of the chunk's first token and this head among all tokens' heads. count: tokens from there on.
    """
    i = tl.arange(0, 64)
    j = tl.arange(0, 16)
    d = tl.arange(0, D)
    kind = Q.dtype.element_ty
    A = tl.exp(tl.load(A_LOG + h).to(tl.float32))
    bias = tl.load(DT_BIAS + h * D + d).to(tl.float32)
    there = i < count
    mask = there[:, None]
    wide = start * D
    place = i[:, None] * (H * D) + d
    raw = tl.load(RAW + wide + place, mask=mask, other=0.0).to(tl.float32)
    C = tl.cumsum(_decay(raw, bias, A, bound, mask), 0)  # [64, D]
    if of_queries:
        x = tl.load(Q + wide + place, mask=mask, other=0.0)
        factor = tl.full([64], scale, tl.float32)
        tl.store(READING + wide + place, (x.to(tl.float32) * tl.exp2(C) * scale).to(kind), mask=mask)
    else:
        x = tl.load(K + wide + place, mask=mask, other=0.0)
        factor = tl.load(BETA + start + i * H, mask=there, other=0.0).to(tl.float32)
        tl.store(W + wide + place, (x.to(tl.float32) * tl.exp2(C) * factor[:, None]).to(kind), mask=mask)
        last = tl.sum(tl.where(i[:, None] == 63, C, 0.0), 0)
        tl.store(WRITING + wide + place, (x.to(tl.float32) * tl.exp2(last - C)).to(kind), mask=mask)
        tl.store(LAST + wide + (tl.minimum(count, 64) - 1) * (H * D) + d, last)
    for c in range(4):  # not unrolled: the compiler would load all four parts first, and run out of registers
        theirs = c * 16 + j
        place_c = theirs[:, None] * (H * D) + d
        mask_c = (theirs < count)[:, None]
        raw_c = tl.load(RAW + wide + place_c, mask=mask_c, other=0.0).to(tl.float32)
        k_c = tl.load(K + wide + place_c, mask=mask_c, other=0.0).to(tl.float32)
        C_c = tl.cumsum(_decay(raw_c, bias, A, bound, mask_c), 0)
        keys = tl.trans((k_c * tl.exp2(-C_c)).to(kind))  # [D, 16]
        begin = tl.sum(tl.where(i[:, None] == c * 16 - 1, C, 0.0), 0)
        since = tl.exp2(tl.minimum(C - begin, 0.0))  # of the rows before nothing is used
        products = tl.dot((x.to(tl.float32) * since).to(kind), keys) * factor[:, None]  # [64, 16]
        block = start * 64 + i[:, None] * (H * 64) + theirs
        if of_queries:
            tl.store(A_QK + block, tl.where(i[:, None] >= theirs, products, 0.0).to(kind), mask=mask)
        else:
            tl.store(A_KK + block, tl.where(i[:, None] > theirs, products, 0.0), mask=mask)


@triton.jit
def _solutions(V, BETA, W, U, A_KK, start, count, H: tl.constexpr, D: tl.constexpr, SMALL: tl.constexpr):
    """w and u of a chunk, (I + A)^-1 times what stands in W and times beta v; in four parts of 16 tokens."""
    part = tl.arange(0, 4)[:, None, None]
    column = tl.arange(0, 64)
    d = tl.arange(0, D)[None, None, :]
    kind = V.dtype.element_ty
    row = part * 16 + tl.arange(0, 16)[None, :, None]  # [4, 16, 1]
    mask = row < count
    A = A_KK + start * 64 + row * (H * 64)
    own = _inverses(tl.load(A + part * 16 + tl.arange(0, 16)[None, None, :], mask=mask, other=0.0), SMALL)
    below = tl.load(A + column[None, None, :], mask=mask & (column[None, None, :] < part * 16), other=0.0)
    M = tl.reshape(tl.dot(own, below, input_precision=SMALL), [64, 64])
    # (I + M)^-1 is (I - M)(I + M^2), for M^4 is 0
    P = tl.where(column[:, None] == column, 1.0, 0.0) - M
    P += tl.dot(P, tl.dot(M, M, input_precision="tf32"), input_precision="tf32")
    P = P.to(kind)
    own = own.to(kind)
    wide = start * D
    place = row * (H * D) + d
    beta = tl.load(BETA + start + row * H, mask=mask, other=0.0).to(tl.float32)
    u = tl.dot(own, (tl.load(V + wide + place, mask=mask, other=0.0).to(tl.float32) * beta).to(kind))
    u = tl.reshape(tl.dot(P, tl.reshape(u, [64, D]).to(kind)), [4, 16, D])
    tl.store(U + wide + place, u.to(kind), mask=mask)
    w = tl.dot(own, tl.load(W + wide + place, mask=mask, other=0.0))
    w = tl.reshape(tl.dot(P, tl.reshape(w, [64, D]).to(kind)), [4, 16, D])
    tl.debug_barrier()  # all have read what stood there
    tl.store(W + wide + place, w.to(kind), mask=mask)


@triton.jit
def _inside(
    Q, K, V, RAW, BETA, A_LOG, DT_BIAS, READING, WRITING, W, U, A_QK, A_KK, LAST, T, bound, scale,
    H: tl.constexpr, D: tl.constexpr, SMALL: tl.constexpr, MULTIPLIES: tl.constexpr, SOLVES: tl.constexpr,
):  # fmt: skip
    """A chunk of 64 tokens of one head: both steps, or one. Programs of keys come first, then those of queries."""
    first = tl.program_id(0) * 64
    h = tl.program_id(1) % H
    start = ((tl.program_id(1) // H) * T + first).to(tl.int64) * H + h
    count = T - first
    of_queries = tl.program_id(2) > 0
    if MULTIPLIES:
        _products(
            Q, K, RAW, BETA, A_LOG, DT_BIAS, READING, WRITING, W, A_QK, A_KK, LAST, bound, scale, start, count, h,
            of_queries, H, D,
        )  # fmt: skip
    if MULTIPLIES and SOLVES:
        tl.debug_barrier()  # a thread reads what others have written
    if SOLVES and not of_queries:
        _solutions(V, BETA, W, U, A_KK, start, count, H, D, SMALL)


@triton.jit
def _chunks(
    WRITING, W, U, LAST, STATES, NEW, FINAL, T, H: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """From chunk to chunk, from no state: the states before each, and what is written. T is a multiple of 64."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    b = tl.program_id(1) // H
    h = tl.program_id(1) % H
    i = tl.arange(0, 64)
    d = tl.arange(0, D)
    kind = W.dtype.element_ty
    wide = (b.to(tl.int64) * T * H + h) * D
    chunks = T // 64
    states = STATES + (b.to(tl.int64) * chunks * H + h) * D * D + d[:, None] * D + column
    state = tl.zeros([D, COLUMNS], tl.float32)
    rows = i[:, None] * (H * D)
    for c in tl.range(0, chunks, num_stages=STAGES):
        start = wide + c * (64 * H * D)
        w = tl.load(W + start + rows + d)  # [64, D]
        u = tl.load(U + start + rows + column).to(tl.float32)  # [64, COLUMNS]
        keys = tl.load(WRITING + start + i[None, :] * (H * D) + d[:, None])  # [D, 64]
        decay = tl.exp2(tl.load(LAST + start + 63 * H * D + d))
        held = state.to(kind)
        tl.store(states + c * (H * D * D), held)
        new = (u - tl.dot(w, held)).to(kind)
        tl.store(NEW + start + rows + column, new)
        state = tl.dot(keys, new, state * decay[:, None])
    tl.store(FINAL + tl.program_id(1).to(tl.int64) * D * D + d[:, None] * D + column, state)


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


def inside(q, k, v, raw, beta, A_log, dt_bias, launches: Sequence[tuple], small: str) -> tuple[torch.Tensor, ...]:
    """Queries and keys as they meet states, w, u, A of queries and keys [B, T, H, 64], log2 decays of chunks [B, T, H,
    D] at their last tokens. A launch is warps and a thread's registers at most: one for both steps, or one for each."""
    B, T, H, D = q.shape
    reading, writing, w, u = (torch.empty_like(q) for _ in range(4))
    A_qk = q.new_empty(B, T, H, CHUNK)
    A_kk = q.new_empty(B, T, H, CHUNK, dtype=torch.float32)
    last = q.new_empty(B, T, H, D, dtype=torch.float32)
    for number, (warps, most) in enumerate(launches):
        _inside[(-(-T // CHUNK), B * H, 2 - (number > 0))](
            q, k, v, raw, beta, A_log, dt_bias, reading, writing, w, u, A_qk, A_kk, last, T,
            BOUND / math.log(2), D**-0.5, H=H, D=D, SMALL=small,
            MULTIPLIES=number == 0, SOLVES=number == len(launches) - 1,
            num_warps=warps, num_stages=1, maxnreg=most,
        )  # fmt: skip
    return reading, writing, w, u, A_qk, last


def chunks(writing, w, u, last, columns: int, warps: int, stages: int) -> tuple[torch.Tensor, ...]:
    """As the package's `_sweep`, from no state and for whole chunks."""
    B, T, H, D = w.shape
    states = w.new_empty(B, T // CHUNK, H, D, D)
    new = torch.empty_like(u)
    final = w.new_empty(B, H, D, D, dtype=torch.float32)
    _chunks[(D // columns, B * H)](
        writing, w, u, last, states, new, final, T, H=H, D=D, COLUMNS=columns, STAGES=stages, num_warps=warps
    )
    return states, new, final


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
        print(f"  sweep of the package {took(_sweep, writing, w, u, last, None)}")
        for setting in CHUNKS:
            found, *_ = chunks(writing, w, u, last, *setting)
            lasts = took(chunks, writing, w, u, last, *setting)
            print(f"  sweep {setting} {lasts}, error {error(found, states.double()):.1e}", flush=True)
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
