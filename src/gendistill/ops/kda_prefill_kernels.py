"""Prefill by Kimi Delta Attention with bounded gates, as four Triton kernels.

Shapes: B sequences, T tokens in each, H heads, D channels of a key and of a value, N = ceil(T / 64) chunks a sequence.

Between the kernels every chunk has 64 tokens, S = 64 N in all, so that none of it needs masks: zeros behind the last.

With C_i the sum of log decays (to the base of 2) from a chunk's first token to token i, one chunk and head computes

    L_ij = beta_i sum_d k_id k_jd 2^(C_id - C_jd), i > j;  P_ij = scale sum_d q_id k_jd 2^(C_id - C_jd), i >= j
    w = (I + L)^-1 beta k 2^C;  u = (I + L)^-1 beta v

`_products_kernel` makes L and P, and queries and keys with the decays that they meet states with; `_solutions_kernel`
makes w and u. Both take all chunks at once. `_chunks_kernel` goes from chunk to chunk, for some channels of the values
(h is the state before a chunk), and `prefill_outputs_kernels` again take all at once:

    v_new = u - w h;  h_next = 2^C_last h + (k 2^(C_last - C))^T v_new;  o = scale (q 2^C) h + P v_new

In a layer both gates are projected where they are used, from the narrow projections of a chunk's own tokens: the forget
gate by the first kernel, the output gate, behind the norm of each head, by the last.
"""

import functools
import math

import torch
from torch import Tensor

from gendistill.ops.decay import DecayGate
from gendistill.ops.kda_kernels import CHUNK, HEAD_SIZES
from gendistill.ops.optional_triton import tl, triton
from gendistill.ops.prefill_outputs_kernels import OutputGate, outputs
from gendistill.ops.prefill_tokens import spacing

# Swept on an H200: results/gpu/kda_prefill.txt.
PRODUCTS = {"KEYS": 64, "num_warps": 4, "num_stages": 1}
SOLUTIONS = {"num_warps": 4, "num_stages": 1}
# Channels of the values to a program: where programs of FINE do not outnumber the GPU's processors, and where they do.
FINE = {"COLUMNS": 16, "STAGES": 4, "num_warps": 4}
COARSE = {"COLUMNS": 64, "STAGES": 3, "num_warps": 4}


def takes_prefill(kind: torch.dtype, head_size: int) -> bool:
    """Whether these kernels are written for numbers of a kind (decayed keys outrange float16) and heads of a size."""
    return kind == torch.bfloat16 and head_size in HEAD_SIZES


def through_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: DecayGate,
    weight: Tensor | None,
    beta: Tensor,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    final: Tensor,
    output: OutputGate | None,
) -> Tensor:
    """The recurrence over pieces of sequences, norm and output gate behind it.

    Args:
        q, k, v: [B, T, H, D] and twice [B, T, G, D], contiguous, bfloat16, D = 64 or 128; q and k of length 1.
            Neighbouring heads of q share one of k and v.
        gate: without a mask; `raw` is [B, T, H * D], or [B, T, R] where `weight` [H * D, R] is still to be applied.
        beta: [B, T, H]; with `weight` before its sigmoid. Of it and `raw` tokens are evenly spaced in memory.
        lengths: [B], tokens of each row; None for T. States pass the others by.
        initial_state: [B, H, D, D], key channels before value channels; None is zeros.
        final: [B, H, D, D] float32, written; it may be the initial one.
        output: None for neither norm nor gate.

    Returns:
        [B, T, H * D].
    """
    with torch.cuda.device_of(q):  # Triton launches on the current GPU, whichever has the tensors
        reading, writing, w, L, P, decay = products(q, k, gate, weight, beta, lengths)
        u = solve(v, beta, weight is not None, L, w, lengths)
        h, v_new = chunks(writing, w, u, decay, initial_state, final)
        return outputs(reading, h, v_new, P, output, q.shape[1])


def products(
    q: Tensor, k: Tensor, gate: DecayGate, weight: Tensor | None, beta: Tensor, lengths: Tensor | None
) -> tuple[Tensor, ...]:
    """What depends on single chunks and on no system of equations; arguments as of `through_chunks`.

    Returns:
        scale q 2^C, k 2^(C_last - C) and beta k 2^C [B, S, H, D]; L [B, S, H, 64] float32 and P [B, S, H, 64]; and
        2^C_last [B, N, H, D] float32.
    """
    B, T, H, D = q.shape
    assert D in HEAD_SIZES, D
    assert all(x.is_contiguous() for x in (q, k, gate.A_log, gate.dt_bias))
    assert weight is None or weight.is_contiguous()
    number = triton.cdiv(T, CHUNK)
    reading, writing, w = (q.new_empty(B, number * CHUNK, H, D) for _ in range(3))
    L = q.new_empty(B, number * CHUNK, H, CHUNK, dtype=torch.float32)
    P = q.new_empty(B, number * CHUNK, H, CHUNK)
    decay = q.new_empty(B, number, H, D, dtype=torch.float32)
    _products_kernel[number, B * H](
        q, k, gate.raw, weight, beta, gate.A_log, gate.dt_bias, _sums(q.device), lengths, reading, writing, w, L, P,
        decay, gate.bound / math.log(2), D**-0.5, T, spacing(gate.raw), spacing(beta), H=H, G=k.shape[2], D=D,
        R=gate.raw.shape[2], RAW_BETA=weight is not None, **PRODUCTS,
    )  # fmt: skip
    return reading, writing, w, L, P, decay


def solve(v: Tensor, beta: Tensor, raw_beta: bool, L: Tensor, w: Tensor, lengths: Tensor | None) -> Tensor:
    """u [B, S, H, D], (I + L)^-1 beta v; in w [B, S, H, D], beta k 2^C, is then (I + L)^-1 of that."""
    B, T, G, D = v.shape
    H = w.shape[2]
    assert all(x.is_contiguous() for x in (v, L, w))
    u = torch.empty_like(w)
    _solutions_kernel[triton.cdiv(T, CHUNK), B * H](
        v, beta, L, w, lengths, u, T, spacing(beta), H=H, G=G, D=D, RAW_BETA=raw_beta, **SOLUTIONS
    )
    return u


def chunks(
    writing: Tensor, w: Tensor, u: Tensor, decay: Tensor, initial_state: Tensor | None, final: Tensor
) -> tuple[Tensor, Tensor]:
    """From chunk to chunk: the states before each [B, N, H, D, D], and v_new [B, S, H, D].

    writing, w, u: [B, S, H, D]. decay: [B, N, H, D]. initial_state: [B, H, D, D] or None. final: the same, written; it
    may be the initial one.
    """
    B, N, H, D = decay.shape
    assert all(x.is_contiguous() for x in (writing, w, u, decay, final))
    assert initial_state is None or initial_state.is_contiguous()
    h = w.new_empty(B, N, H, D, D)
    v_new = torch.empty_like(u)
    fine = B * H * D // FINE["COLUMNS"] <= torch.cuda.get_device_properties(w.device).multi_processor_count
    setting = FINE if fine else COARSE
    _chunks_kernel[D // setting["COLUMNS"], B * H](
        writing, w, u, decay, initial_state, h, v_new, final, N, H=H, D=D, **setting
    )
    return h, v_new


@functools.cache
def _sums(device: torch.device) -> Tensor:
    """[4, 64, 64]: which log decays of a chunk to add up for each of its tokens, by a product with ones and zeros: a
    fraction of tl.cumsum's instructions.

    Those between the token and the middle of the chunk; those from the token before the middle of its half, of which
    earlier ones are subtracted; those behind the token; those up to it.
    """
    i, j = torch.arange(CHUNK)[:, None], torch.arange(CHUNK)
    up_to, same = j <= i, i // 32 == j // 32
    late = i >= 32
    across = same & torch.where(late, up_to, ~up_to)
    before = j % 32 < 16
    within = (same & ~before & up_to).float() - (same & before & ~up_to).float()
    return torch.stack([across, within, ~up_to, up_to]).to(device, torch.float16)


if triton is not None:
    from gendistill.ops.prefill_tokens import count_of, sigmoid

    @triton.jit
    def _strength(beta, has, RAW_BETA: tl.constexpr):
        """How strongly tokens write, 0 for padding; beta: pointers."""
        strength = tl.load(beta, mask=has, other=0.0).to(tl.float32)
        if RAW_BETA:
            strength = tl.where(has, sigmoid(strength), 0.0)
        return strength

    @triton.jit(do_not_specialize=["T"])
    def _products_kernel(
        q, k, raw, weight, beta, A_log, dt_bias, sums, lengths, reading, writing, w, L, P, decay, bound, scale, T,
        raw_spacing, beta_spacing, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
        RAW_BETA: tl.constexpr, KEYS: tl.constexpr,
    ):  # fmt: skip
        """A chunk of one head, KEYS channels at a time."""
        chunk, row, head = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
        token = row.to(tl.int64) * T + chunk * 64
        place = ((row * tl.num_programs(0) + chunk).to(tl.int64) * 64) * H + head  # where each chunk has 64 tokens
        i, j = tl.arange(0, 64)[:, None], tl.arange(0, 64)[None, :]
        has = i < count_of(row, T, lengths) - chunk * 64
        A = tl.exp(tl.load(A_log + head).to(tl.float32))
        # Pointers to the chunk first, so that what is added for its numbers fits 32 bits.
        strength = _strength(beta + token * beta_spacing + head + i * beta_spacing, has, RAW_BETA)  # [64, 1]
        raw += token * raw_spacing
        q += token * (H * D) + head * D
        k += token * (G * D) + head // (H // G) * D
        reading += place * D
        writing += place * D
        w += place * D
        P += place * 64
        L += place * 64
        decay += (row * tl.num_programs(0) + chunk).to(tl.int64) * (H * D) + head * D
        dt_bias += head * D
        if weight is not None:
            r = tl.arange(0, R)
            given = tl.load(raw + i * raw_spacing + r[None, :], mask=has, other=0.0)  # [64, R]
            weight += head * (D * R)
        within = ((i & 32) == (j & 32)) & (j <= i)
        sums += i * 64 + j
        to_q, to_k = tl.zeros([64, 64], tl.float32), tl.zeros([64, 64], tl.float32)
        for at in tl.range(0, D, KEYS, num_stages=1):
            d = at + tl.arange(0, KEYS)[None, :]
            wide = i * (H * D) + d
            if weight is not None:
                x = tl.dot(given, tl.load(weight + d * R + r[:, None]))  # [64, KEYS]
            if weight is None:
                x = tl.load(raw + head * D + i * raw_spacing + d, mask=has, other=0.0).to(tl.float32)
            x += tl.load(dt_bias + d).to(tl.float32)
            # In 11 bits: a sum of log decays is then off by no more than 2^-12 of itself.
            g = tl.where(has, bound * sigmoid(A * x), 0.0).to(sums.dtype.element_ty)
            q_ = tl.load(q + wide, mask=has, other=0.0)
            k_ = tl.load(k + i * (G * D) + d, mask=has, other=0.0)
            # Pairs of tokens i >= j decay by 2^(C_i - r) 2^(r - C_j). With r of token 31 for pairs across it, where
            # neither factor is above 1 and a token needs but one of both; within 32 tokens r is that of the 16th, and
            # the bound of the gate keeps factors between 2^-116 and 2^116.
            e = tl.exp2(tl.dot(tl.load(sums), g))
            early = tl.trans((k_.to(tl.float32) * tl.where(i < 32, e, 0.0)).to(tl.bfloat16))
            e = tl.where(i < 32, 0.0, e)
            to_q = tl.dot((q_.to(tl.float32) * e).to(tl.bfloat16), early, to_q)
            to_k = tl.dot((k_.to(tl.float32) * e).to(tl.bfloat16), early, to_k)
            e = tl.dot(tl.load(sums + 4096), g)
            keys = tl.trans((k_.to(tl.float32) * tl.exp2(-e)).to(tl.bfloat16))
            e = tl.exp2(e)
            to_q += tl.where(within, tl.dot((q_.to(tl.float32) * e).to(tl.bfloat16), keys), 0.0)
            to_k += tl.where(within, tl.dot((k_.to(tl.float32) * e).to(tl.bfloat16), keys), 0.0)
            e = tl.exp2(tl.dot(tl.load(sums + 2 * 4096), g))
            tl.store(writing + wide, (k_.to(tl.float32) * e).to(tl.bfloat16))
            e = tl.exp2(tl.dot(tl.load(sums + 3 * 4096), g))
            tl.store(reading + wide, (q_.to(tl.float32) * (e * scale)).to(tl.bfloat16))
            tl.store(w + wide, (k_.to(tl.float32) * (e * strength)).to(tl.bfloat16))
            tl.store(decay + d + i * 0, e, mask=i == 63)
        square = i * (H * 64) + j
        tl.store(P + square, (to_q * scale).to(P.dtype.element_ty))
        tl.store(L + square, tl.where(j < i, to_k * strength, 0.0))

    @triton.jit
    def _inverses(L):
        """(I + L)^-1 of strictly lower triangles [4, 16, 16], by squares: L to the 16th is 0."""
        i = tl.arange(0, 16)
        power = -L
        result = tl.where((i[:, None] == i[None, :])[None], 1.0, 0.0) + power
        for _ in tl.static_range(3):
            power = tl.dot(power, power, input_precision="tf32x3")
            result += tl.dot(result, power, input_precision="tf32x3")
        return result

    @triton.jit(do_not_specialize=["T"])
    def _solutions_kernel(
        v, beta, L, w, lengths, u, T, beta_spacing, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
        RAW_BETA: tl.constexpr,
    ):  # fmt: skip
        """A chunk of one head, in four parts of 16 tokens."""
        chunk, row, head = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
        token = row.to(tl.int64) * T + chunk * 64
        place = ((row * tl.num_programs(0) + chunk).to(tl.int64) * 64) * H + head  # where each chunk has 64 tokens
        part = tl.arange(0, 4)[:, None, None]
        column = tl.arange(0, 64)
        i = part * 16 + tl.arange(0, 16)[None, :, None]  # [4, 16, 1]
        has = i < count_of(row, T, lengths) - chunk * 64
        square = L + place * 64 + i * (H * 64)
        own = _inverses(tl.load(square + part * 16 + tl.arange(0, 16)[None, None, :]))
        below = tl.load(square + column[None, None, :], mask=column[None, None, :] < part * 16, other=0.0)
        M = tl.reshape(tl.dot(own, below, input_precision="tf32x3"), [64, 64])
        # (I + M)^-1 is (I - M)(I + M^2), for M^4 is 0
        inverse = tl.where(column[:, None] == column, 1.0, 0.0) - M
        inverse += tl.dot(inverse, tl.dot(M, M, input_precision="tf32"), input_precision="tf32")
        inverse, own = inverse.to(tl.bfloat16), own.to(tl.bfloat16)
        d = tl.arange(0, D)[None, None, :]
        wide = i * (H * D) + d
        u += place * D
        w += place * D
        strength = _strength(beta + token * beta_spacing + head + i * beta_spacing, has, RAW_BETA)
        v += token * (G * D) + head // (H // G) * D
        v_ = (tl.load(v + i * (G * D) + d, mask=has, other=0.0).to(tl.float32) * strength).to(tl.bfloat16)
        v_ = tl.reshape(tl.dot(own, v_), [64, D]).to(tl.bfloat16)
        tl.store(u + wide, tl.reshape(tl.dot(inverse, v_), [4, 16, D]).to(tl.bfloat16))
        w_ = tl.reshape(tl.dot(own, tl.load(w + wide)), [64, D]).to(tl.bfloat16)
        w_ = tl.reshape(tl.dot(inverse, w_), [4, 16, D]).to(tl.bfloat16)
        tl.debug_barrier()  # all have read what stood there
        tl.store(w + wide, w_)

    @triton.jit(do_not_specialize=["N"])
    def _chunks_kernel(
        writing, w, u, decay, initial, h, v_new, final, N,
        H: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """From chunk to chunk, of one head, COLUMNS channels of the values."""
        column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
        row, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
        i, d = tl.arange(0, 64), tl.arange(0, D)
        square = d[:, None] * D + column
        final += tl.program_id(1).to(tl.int64) * (D * D)
        if initial is None:
            state = tl.zeros([D, COLUMNS], tl.float32)
        if initial is not None:
            state = tl.load(initial + tl.program_id(1).to(tl.int64) * (D * D) + square).to(tl.float32)
        chunk = row * N * H + head  # among all chunks' heads
        first = (row * N * 64 * H + head) * D
        tokens = i[:, None] * (H * D)
        for c in tl.range(0, N, num_stages=STAGES):
            at = first + c.to(tl.int64) * (64 * H * D)
            w_ = tl.load(w + at + tokens + d[None, :])
            u_ = tl.load(u + at + tokens + column).to(tl.float32)
            keys = tl.load(writing + at + i[None, :] * (H * D) + d[:, None])  # [D, 64]
            decay_ = tl.load(decay + (chunk + c * H) * D + d)
            held = state.to(w_.dtype)
            tl.store(h + (chunk + c * H) * (D * D) + square, held)
            new = (u_ - tl.dot(w_, held)).to(w_.dtype)
            tl.store(v_new + at + tokens + column, new)
            state = tl.dot(keys, new, state * decay_[:, None])
        tl.store(final + square, state)
