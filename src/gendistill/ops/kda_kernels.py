"""Backward pass of Kimi Delta Attention inside chunks, as four Triton kernels.

Shapes: B sequences, T tokens in each, H heads, D channels of a key and of a value, N chunks in all of C = 64 tokens.

Of one chunk and head, forward (g sums up the decay from the chunk's start; h is the state before the chunk):

    L_ij = beta_i sum_c k_ic k_jc 2^(g_ic - g_jc), i > j;  A = (I + L)^-1;  v_new = A beta (v - (k 2^g) h)
    P_ij = scale sum_c q_ic k_jc 2^(g_ic - g_jc), i >= j;  o = scale (q 2^g) h + P v_new
    h_next = 2^g_last h + (k 2^(g_last - g))^T v_new

Backward, with dv the whole gradient of v_new and Y = A^T dv the one of beta (v - (k 2^g) h): A needs no gradient of its
own, for dL = -A^T (dv (A^-1 v_new)^T) A^T = -Y v_new^T. And dbeta_i = Y_i v_new_i / beta_i, which has all that comes by
way of L. So nothing is summed over the channels of keys: what they share, one kernel computes first, and in the other a
program takes as few of them as it likes. Another makes P^T do, which dv needs before; the last resumes from log decays
to what their gates come from.
"""

import torch

from gendistill.ops.optional_triton import tl, triton

CHUNK = 64  # tokens; fla's, whose products of the forward pass are taken over
HEAD_SIZES = (64, 128)
# Channels of values and of keys at work at a time: the fastest of those in results/gpu/kda.txt, where 4 warps fail.
OUTPUTS = {"num_warps": 4, "num_stages": 1}
PAIRS = {"VALUES": 64, "num_warps": 4, "num_stages": 1}
CHANNELS = {"KEYS": 32, "VALUES": 64, "num_warps": 8, "num_stages": 1, "maxnreg": 128}
GATE = {"TOKENS": 128, "ROWS": 4, "num_warps": 4}  # tokens of a program, and of those at once


def values_backward(
    P: torch.Tensor,
    do: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradient of v_new [B, T, H, D] that comes by way of the outputs of its own chunk, P^T do.

    Args:
        P: [B, T, H, 64]; what lies above the diagonal is not looked at.
        do: [B, T, H, D].
        cu_seqlens, chunk_indices: see `chunk_backward`.
    """
    B, T, H, D = do.shape
    assert P.is_contiguous() and do.is_contiguous()
    chunks = triton.cdiv(T, CHUNK) if chunk_indices is None else len(chunk_indices)  # of a sequence, or of all
    dv = torch.empty_like(do)
    with torch.cuda.device_of(do):
        _outputs_kernel[H, chunks, B](P, do, dv, cu_seqlens, chunk_indices, T, H=H, D=D, C=CHUNK, **OUTPUTS)
    return dv


def chunk_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v_new: torch.Tensor,
    raw: torch.Tensor,
    g: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    bound: float,
    beta: torch.Tensor,
    A: torch.Tensor,
    h: torch.Tensor,
    do: torch.Tensor,
    dh: torch.Tensor,
    dv: torch.Tensor,
    scale: float,
    cu_seqlens: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Gradients of the inputs from those of o (do), of v_new (dv) and of the states after each chunk (dh).

    All tensors are contiguous, and every token belongs to a chunk.

    Args:
        q, k, v_new, do, dv: [B, T, H, D], D = 64 or 128.
        raw, A_log, dt_bias, bound: where the decay comes from: [B, T, H, D], [H], [H * D]; see `DecayGate`.
        g: [B, T, H, D] float32, log2 of the decay, summed up inside chunks; no token's own below -5 / ln 2 nor above 0.
        beta: [B, T, H]. Where it is exactly 0, its gradient comes out as 0.
        A: [B, T, H, 64].
        h, dh: [N, H, D, D], key channels before value channels; N = B * ceil(T / 64) without documents.
        scale: of q.
        cu_seqlens: [documents + 1], the boundaries of documents, for B = 1.
        chunk_indices: [N, 2], document and chunk in it; a document of -1 is a chunk that does not exist.

    Returns:
        dq, dk, dv (gradient of the values v) and draw in their tensors' dtypes, dbeta, dA_log and ddt_bias in float32.
    """
    B, T, H, D = q.shape
    assert D in HEAD_SIZES, D
    assert all(x.is_contiguous() for x in (q, k, v_new, raw, g, A_log, dt_bias, beta, A, h, do, dh, dv))
    chunks = triton.cdiv(T, CHUNK) if chunk_indices is None else len(chunk_indices)
    dq, dk, dv_out = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v_new)
    draw, dbeta = torch.empty_like(raw), torch.empty_like(beta, dtype=torch.float32)
    dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32  # decayed keys outrange float16
    # dP and dL of every chunk and head, which the first kernel writes and the second reads.
    pairs = q.new_empty(B * chunks, H, 2, CHUNK, CHUNK, dtype=dtype)
    gate_sums = g.new_empty(triton.cdiv(B * T, GATE["TOKENS"]), 2, H, D)
    where, sizes = (cu_seqlens, chunk_indices, scale, T), {"H": H, "D": D, "C": CHUNK}
    # At least two steps: without a loop around them, the first products would be chained to the others (see below).
    first, second = ({**tile, "VALUES": min(tile["VALUES"], D // 2)} for tile in (PAIRS, CHANNELS))
    with torch.cuda.device_of(q):  # Triton launches on the current GPU, whichever has the tensors
        _pairs_kernel[H, chunks, B](v_new, beta, A, do, dv, dv_out, dbeta, pairs, *where, **sizes, **first)
        _channels_kernel[D // second["KEYS"] * H, chunks, B](
            q, k, v_new, g, h, do, dh, dv_out, pairs, dq, dk, draw, *where, **sizes, **second
        )
        # So far draw holds gradients of log decays. The rest takes less time by itself than in the kernel before.
        gate = (raw, A_log, dt_bias, bound)
        _gate_kernel[H, len(gate_sums)](*gate, draw, gate_sums, B * T, H=H, D=D, **GATE)
    ddt_bias, dA_log = gate_sums.sum(0)
    return dq, dk, dv_out, draw, dbeta, dA_log.sum(-1), ddt_bias.flatten()


if triton is not None:

    @triton.jit
    def _locate(cu_seqlens, chunk_indices, T, C: tl.constexpr):
        """Chunk (program_id(1), program_id(2)): its number, first token in the batch, last token in itself.

        The last one is -1 if the chunk does not exist.
        """
        chunk, row = tl.program_id(1), tl.program_id(2)
        if chunk_indices is None:
            number, start, length = row * tl.num_programs(1) + chunk, row.to(tl.int64) * T, T
        else:
            number = chunk
            document = tl.load(chunk_indices + 2 * number).to(tl.int32)
            chunk = tl.load(chunk_indices + 2 * number + 1).to(tl.int32)
            start = tl.load(cu_seqlens + tl.maximum(document, 0)).to(tl.int64)
            end = tl.load(cu_seqlens + tl.maximum(document, 0) + 1)
            length = tl.where(document < 0, 0, (end - start).to(tl.int32))
        return number.to(tl.int64), start + chunk * C, tl.maximum(tl.minimum(length - chunk * C, C), 0) - 1

    @triton.jit(do_not_specialize=["T"])
    def _outputs_kernel(
        P, do, dv, cu_seqlens, chunk_indices, T, H: tl.constexpr, D: tl.constexpr, C: tl.constexpr
    ):  # fmt: skip
        """P^T do of one head."""
        head = tl.program_id(0)
        chunk, first, last = _locate(cu_seqlens, chunk_indices, T, C)
        if last < 0:
            return
        first = first * H + head
        i, w = tl.arange(0, C), tl.arange(0, D)
        has = (i <= last)[:, None]
        values = first * D + i[:, None] * (H * D) + w[None, :]
        within = has & (i[:, None] >= i[None, :])
        P_ = tl.load(P + first * C + i[:, None] * (H * C) + i[None, :], mask=within, other=0.0)
        dv_ = tl.dot(tl.trans(P_), tl.load(do + values, mask=has, other=0.0))
        tl.store(dv + values, dv_.to(dv.dtype.element_ty), mask=has)

    @triton.jit(do_not_specialize=["T"])
    def _pairs_kernel(
        v_new, beta, A, do, dv, dv_out, dbeta, pairs, cu_seqlens, chunk_indices, scale, T,
        H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, VALUES: tl.constexpr,
    ):  # fmt: skip
        """dv and dbeta, and the gradients of P / scale and of L / beta, that times beta: one head, VALUES at a time."""
        head = tl.program_id(0)
        chunk, first, last = _locate(cu_seqlens, chunk_indices, T, C)
        if last < 0:
            return
        first, chunk = first * H + head, chunk * H + head
        i, w = tl.arange(0, C), tl.arange(0, VALUES)
        exists = i <= last
        has = exists[:, None]
        values = i[:, None] * (H * D) + w[None, :]
        A_ = tl.load(A + first * C + i[:, None] * (H * C) + i[None, :], mask=has, other=0.0)
        beta_ = tl.load(beta + first + i * H, mask=exists, other=0.0).to(tl.float32)
        dP, dL, along = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32), tl.zeros([C], tl.float32)
        for at in range(0, D, VALUES):
            # [C, VALUES] each: a chunk's tokens, some of a head's channels.
            dv_ = tl.load(dv + (first * D + at) + values, mask=has, other=0.0)
            v_ = tl.load(v_new + (first * D + at) + values, mask=has, other=0.0)
            do_ = tl.load(do + (first * D + at) + values, mask=has, other=0.0)
            Y = tl.dot(tl.trans(A_), dv_)
            dP = tl.dot(do_, tl.trans(v_), dP)
            dL = tl.dot(Y.to(v_.dtype), tl.trans(v_), dL)
            along += tl.sum(Y * v_.to(tl.float32), 1)
            Y = (Y * beta_[:, None]).to(dv_out.dtype.element_ty)
            tl.store(dv_out + (first * D + at) + values, Y, mask=has)
        tl.store(dbeta + first + i * H, tl.where(beta_ == 0, 0.0, along / beta_), mask=exists)
        # A token reads its own write, but what it writes depends on earlier ones only.
        dP = tl.where(i[:, None] >= i[None, :], dP * scale, 0.0)
        dL = tl.where(i[:, None] > i[None, :], dL * -beta_[:, None], 0.0)
        pairs += chunk * (2 * C * C) + i[:, None] * C + i[None, :]
        tl.store(pairs, dP.to(pairs.dtype.element_ty))
        tl.store(pairs + C * C, dL.to(pairs.dtype.element_ty))

    @triton.jit(do_not_specialize=["T"])
    def _channels_kernel(
        q, k, v_new, g, h, do, dh, dv_out, pairs, dq, dk, dg, cu_seqlens, chunk_indices, scale, T,
        H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
    ):  # fmt: skip
        """dq, dk and dg in KEYS channels of one head."""
        block, head = tl.program_id(0) % (D // KEYS), tl.program_id(0) // (D // KEYS)
        chunk, first, last = _locate(cu_seqlens, chunk_indices, T, C)
        if last < 0:
            return
        first, chunk = (first * H + head) * D, chunk * H + head
        i, c, w = tl.arange(0, C), block * KEYS + tl.arange(0, KEYS), tl.arange(0, VALUES)
        has = (i <= last)[:, None]
        keys, values = i[:, None] * (H * D) + c[None, :], i[:, None] * (H * D) + w[None, :]
        states = c[:, None] * D + w[None, :]

        # Tokens past the end are zeros, but decay like the last one that exists: exponents stay in range.
        q_ = tl.load(q + first + keys, mask=has, other=0.0)
        k_ = tl.load(k + first + keys, mask=has, other=0.0)
        g_ = tl.load(g + first + tl.minimum(i, last)[:, None] * (H * D) + c[None, :])
        rows = g + first + c
        g_last = tl.load(rows + last * (H * D))

        # All by way of the states: dq, and dk by writes to the one after (late) and by reads of the one before (early).
        dq_, late = tl.zeros([C, KEYS], tl.float32), tl.zeros([C, KEYS], tl.float32)
        early, dlast = tl.zeros([C, KEYS], tl.float32), tl.zeros([KEYS], tl.float32)
        for at in range(0, D, VALUES):
            do_ = tl.load(do + (first + at) + values, mask=has, other=0.0)
            v_ = tl.load(v_new + (first + at) + values, mask=has, other=0.0)
            dv_ = tl.load(dv_out + (first + at) + values, mask=has, other=0.0)
            h_ = tl.load(h + (chunk * (D * D) + at) + states)
            dh_ = tl.load(dh + (chunk * (D * D) + at) + states)
            dq_ = tl.dot(do_, tl.trans(h_), dq_)
            late = tl.dot(v_, tl.trans(dh_), late)
            early = tl.dot(dv_, tl.trans(h_), early)
            dlast += tl.sum(h_.to(tl.float32) * dh_.to(tl.float32), 1)

        # Zeros past the end from dq_ change no number. They have q, k and g laid out over threads as products are, once
        # for all that follows.
        q_, k_ = tl.where(has, q_.to(tl.float32), dq_), tl.where(has, k_.to(tl.float32), dq_)
        g_ = tl.where(has, g_, g_ + dq_)
        decay = tl.exp2(g_)
        dq_ *= decay * scale
        early *= -decay
        late *= tl.exp2(g_last[None, :] - g_)
        dlast = dlast * tl.exp2(g_last) + tl.sum(k_ * late, 0)
        dk_, dG = early + late, q_ * dq_ + k_ * (early - late)

        # Pairs of tokens i >= j decay by 2^(g_i - r) 2^(r - g_j). First all with token 32 between them, then those with
        # 16 or 48: r is g there, and neither factor is above 1. Last the blocks of 16, r from their middle, where
        # factors reach 2^58. As a loop, for the compiler would move all sums to the end and run out of registers.
        pairs += chunk * (2 * C * C) + i[:, None] * C + i[None, :]
        for level in tl.range(0, 3, num_stages=1):
            span = 32 >> level
            group, second = i >> (6 - level), (i & span) != 0
            within = group[:, None] == group[None, :]
            within &= (second[:, None] & ~second[None, :]) | (level == 2)
            dP, dL = tl.load(pairs, mask=within, other=0.0), tl.load(pairs + C * C, mask=within, other=0.0)
            r = tl.where(
                i[:, None] < 32,
                tl.where(i[:, None] < 16, _between(0, span, rows, last, H * D), _between(16, span, rows, last, H * D)),
                tl.where(i[:, None] < 48, _between(32, span, rows, last, H * D), _between(48, span, rows, last, H * D)),
            )
            limit = tl.where(level < 2, 0.0, 64.0)
            down, up = tl.exp2(tl.minimum(g_ - r, limit)), tl.exp2(tl.minimum(r - g_, limit))
            q_down, k_down, k_up = (q_ * down).to(dP.dtype), (k_ * down).to(dP.dtype), (k_ * up).to(dP.dtype)
            # What a pair adds to dG at i and takes from it at j cancels in the sum over later tokens, for those before
            # both: if both come from the same rounded numbers, so does their error.
            to_q, to_i = tl.dot(dP, k_up), tl.dot(dL, k_up)
            dq_ += to_q * down
            dk_ += to_i * down
            dG += q_down.to(tl.float32) * to_q + k_down.to(tl.float32) * to_i
            # Apart, for chained products are given layouts in which half of the warps repeat the other half's work.
            to_j = tl.dot(tl.trans(dL), k_down)
            dk_ += to_j * up
            dG -= k_up.to(tl.float32) * to_j
            to_j = tl.dot(tl.trans(dP), q_down)
            dk_ += to_j * up
            dG -= k_up.to(tl.float32) * to_j
        tl.store(dq + first + keys, dq_.to(dq.dtype.element_ty), mask=has)
        tl.store(dk + first + keys, dk_.to(dk.dtype.element_ty), mask=has)

        # The sum over later tokens as a product with ones, of three parts that together are all bits of a float32: a
        # fraction of tl.cumsum's instructions.
        later = tl.where(i[:, None] <= i[None, :], 1.0, 0.0).to(tl.bfloat16)
        total = tl.zeros([C, KEYS], tl.float32)
        for _ in range(3):
            part = dG.to(tl.bfloat16)
            dG -= part.to(tl.float32)
            total = tl.dot(later, part, total)
        tl.store(dg + first + keys, (total + dlast[None, :]).to(dg.dtype.element_ty), mask=has)

    @triton.jit(do_not_specialize=["N"])
    def _gate_kernel(
        raw, A_log, dt_bias, bound, draw, sums, N,
        H: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        """In draw, gradients of log decays become those of raw; and sums for dt_bias and A_log. ROWS tokens at once."""
        head, first = tl.program_id(0), tl.program_id(1) * TOKENS
        t, c = tl.arange(0, ROWS)[:, None], tl.arange(0, D)[None, :]
        A = tl.exp(tl.load(A_log + head).to(tl.float32))  # one for all channels of the head
        bias = tl.load(dt_bias + head * D + c).to(tl.float32)
        of_bias, of_A = tl.zeros([ROWS, D], tl.float32), tl.zeros([ROWS, D], tl.float32)
        for step in range(0, TOKENS, ROWS):
            token = first + step + t
            at = (token.to(tl.int64) * H + head) * D + c
            x = tl.load(raw + at, mask=token < N, other=0.0).to(tl.float32) + bias
            gate = tl.sigmoid(A * x)  # the log decay is bound * gate
            d = tl.load(draw + at, mask=token < N, other=0.0).to(tl.float32) * (bound * A) * gate * (1 - gate)
            tl.store(draw + at, d.to(draw.dtype.element_ty), mask=token < N)
            of_bias += d
            of_A += d * x
        # A sum for each program: atomic additions would come in another order in every run.
        sums += (tl.program_id(1).to(tl.int64) * 2 * H + head) * D + c
        tl.store(sums, tl.sum(of_bias, 0)[None, :])
        tl.store(sums + H * D, tl.sum(of_A, 0)[None, :])

    @triton.jit
    def _between(i: tl.constexpr, span, rows, last, stride: tl.constexpr):
        """[1, channels]: g in the middle of token i's block of 2 * span, or at the last token if that comes before."""
        return tl.load(rows + tl.minimum(last, (i & -(2 * span)) + span) * stride)[None, :]
