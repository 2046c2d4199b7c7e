"""`vocabulary_losses` for forward_kl and cross_entropy as one Triton kernel, in which each program has one token.

It reads the token's logits twice: from start to end for their maximum and the sum of their exponentials, then from end
to start for values and gradient, so that much of what comes first is still in the L2 cache. No thread waits for another
while it reads: each lane has a maximum (the peak) and a sum (the total) of its own, and they are merged at the end.

With x = (z - max z) log2(e) / T, p = 2^x / sum 2^x. forward_kl, in bits and with y as x but of the student, is

    sum 2^x (x - y) / sum 2^x - log2(sum 2^x / sum 2^y)

where nothing large is subtracted from something large, so float32 is enough even if the two models nearly agree.
"""

from collections.abc import Mapping

import torch

from gendistill.ops.optional_triton import tl, triton

TERMS = {"forward_kl", "cross_entropy"}
SETTINGS = {"LANES": 2048, "num_warps": 32}
VECTOR_BYTES = 16  # what a lane reads at once


def kernel_vocabulary_losses(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    targets: torch.Tensor,
    token_weights: torch.Tensor,
    *,
    terms: Mapping[str, float],
    vocabulary: int,
    temperature: float,
) -> torch.Tensor:
    """`vocabulary_losses` of TERMS in float32, for logits of at most that precision with contiguous rows."""
    if "forward_kl" not in terms:
        teacher = None
    assert set(terms) <= TERMS and all(z is None or z.stride(1) == 1 for z in (student, teacher))
    values = torch.empty(len(terms), len(student), device=student.device)
    values_of = dict(zip(terms, values, strict=True))
    with torch.cuda.device_of(student):  # Triton launches on the current GPU, whichever has the tensors
        _losses_kernel[(len(student),)](
            student, student.shape[1], student.stride(0),
            teacher, *((0, 0) if teacher is None else (teacher.shape[1], teacher.stride(0))),
            targets, token_weights, vocabulary,
            values_of.get("forward_kl"), terms.get("forward_kl", 0.0),
            values_of.get("cross_entropy"), terms.get("cross_entropy", 0.0),
            TEMPERATURE=float(temperature), VECTOR=VECTOR_BYTES // student.element_size(), **SETTINGS,
        )  # fmt: skip
    return (values * token_weights).sum(-1)


if triton is not None:
    LOG2_E = tl.constexpr(1.4426950408889634)
    # A logit without weight: infinity less infinity would be NaN. A power of two, so that its product with any scale is
    # exact, and less itself 0: half a unit in its last place would overflow in exp2.
    NOTHING = tl.constexpr(-(2.0**100))

    @triton.jit
    def _load(row, width, columns, vocabulary, WORDS: tl.constexpr, AGAIN: tl.constexpr):
        """Logits in float32. WORDS: all columns are words; otherwise those that are not come out as NOTHING."""
        eviction: tl.constexpr = "" if AGAIN else "evict_first"
        if WORDS:
            return tl.load(row + columns, eviction_policy=eviction).to(tl.float32)
        # Padding is read as well: rows end where vectors do, the vocabulary need not.
        z = tl.load(row + columns, mask=columns < width, other=0.0, eviction_policy=eviction).to(tl.float32)
        return tl.where(columns < vocabulary, z, NOTHING)

    @triton.jit
    def _include(z, scale: tl.constexpr, peak, total):
        """Peak and total of each lane with more logits."""
        higher = tl.maximum(peak, tl.max(z, 1) * scale)
        return higher, total * tl.exp2(peak - higher) + tl.sum(tl.exp2(tl.fma(z, scale, -higher[:, None])), 1)

    @triton.jit
    def _merge(peak, total):
        highest = tl.max(peak, 0)
        return highest, tl.sum(total * tl.exp2(peak - highest), 0)

    @triton.jit
    def _read(
        student, student_width, teacher, teacher_width, columns, vocabulary, p, q, r,
        TEMPERATURE: tl.constexpr, R_IS_Q: tl.constexpr, WORDS: tl.constexpr,
    ):  # fmt: skip
        """A tile of the first pass: peaks and totals."""
        z = _load(student, student_width, columns, vocabulary, WORDS, True)
        if teacher is not None:
            z_teacher = _load(teacher, teacher_width, columns, vocabulary, WORDS, True)
            p = _include(z_teacher, LOG2_E / TEMPERATURE, *p)
            q = _include(z, LOG2_E / TEMPERATURE, *q)
        if not R_IS_Q:
            r = _include(z, LOG2_E, *r)
        return p, q, r

    @triton.jit
    def _write(
        student, student_width, teacher, teacher_width, columns, vocabulary, p, q, r, target, on_target, kl,
        TEMPERATURE: tl.constexpr, WORDS: tl.constexpr,
    ):  # fmt: skip
        """A tile of the second pass: the gradient, and sums of 2^x (x - y).

        Of p, q and r the peak and what 2^x is multiplied by; on_target is what the gradient at the target is less.
        """
        z = _load(student, student_width, columns, vocabulary, WORDS, False)
        if teacher is not None:
            x = tl.fma(_load(teacher, teacher_width, columns, vocabulary, WORDS, False), LOG2_E / TEMPERATURE, -p[0])
            y = tl.fma(z, LOG2_E / TEMPERATURE, -q[0])
            power = tl.exp2(x)
            kl += tl.sum(power * (x - y), 1)
            gradient = tl.exp2(y) * q[1] - power * p[1]
        if target is not None:
            of_target = tl.exp2(tl.fma(z, LOG2_E, -r[0])) * r[1] - tl.where(columns == target, on_target, 0.0)
            gradient = of_target if teacher is None else gradient + of_target
        if WORDS:
            tl.store(student + columns, gradient, eviction_policy="evict_first")
        else:
            tl.store(student + columns, gradient, mask=columns < student_width, eviction_policy="evict_first")
        return kl

    @triton.jit(do_not_specialize=["vocabulary"])
    def _losses_kernel(
        student, student_width, student_stride, teacher, teacher_width, teacher_stride, targets, token_weights,
        vocabulary, kl_values, kl_weight, ce_values, ce_weight,
        TEMPERATURE: tl.constexpr, VECTOR: tl.constexpr, LANES: tl.constexpr,
    ):  # fmt: skip
        """Values and gradient of one token, from p of the teacher, q of the student, and r: q without temperature."""
        TILE: tl.constexpr = LANES * VECTOR
        R_IS_Q: tl.constexpr = ce_values is None or (teacher is not None and TEMPERATURE == 1)
        token = tl.program_id(0).to(tl.int64)
        student += token * student_stride
        if teacher is not None:
            teacher += token * teacher_stride
        weight = tl.load(token_weights + token).to(tl.float32)
        kl_factor, ce_factor = weight * kl_weight * TEMPERATURE, weight * ce_weight
        target = None
        if ce_values is not None:
            target = tl.load(targets + token).to(tl.int32)
            z_target = tl.load(student + target).to(tl.float32)  # soon overwritten
        tile = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        whole = vocabulary // TILE * TILE

        nothing = (tl.full([LANES], NOTHING, tl.float32), tl.zeros([LANES], tl.float32))
        p, q, r = nothing, nothing, nothing
        for start in range(0, whole, TILE):
            p, q, r = _read(
                student, student_width, teacher, teacher_width, start + tile, vocabulary, p, q, r,
                TEMPERATURE, R_IS_Q, True,
            )  # fmt: skip
        p, q, r = _read(
            student, student_width, teacher, teacher_width, whole + tile, vocabulary, p, q, r,
            TEMPERATURE, R_IS_Q, False,
        )  # fmt: skip
        p_peak, p_total = _merge(*p)
        q_peak, q_total = _merge(*q)
        r_peak, r_total = _merge(*(q if R_IS_Q else r))

        p, q, r = (p_peak, kl_factor / p_total), (q_peak, kl_factor / q_total), (r_peak, ce_factor / r_total)
        kl = _write(
            student, student_width, teacher, teacher_width, whole + tile, vocabulary, p, q, r, target, ce_factor,
            tl.zeros([LANES], tl.float32), TEMPERATURE, False,
        )  # fmt: skip
        for end in range(0, whole, TILE):
            kl = _write(
                student, student_width, teacher, teacher_width, whole - TILE - end + tile, vocabulary, p, q, r,
                target, ce_factor, kl, TEMPERATURE, True,
            )  # fmt: skip
        for start in range(whole + TILE, student_width, TILE):
            zeros = tl.zeros([LANES, VECTOR], tl.float32)
            tl.store(student + start + tile, zeros, mask=start + tile < student_width)

        if kl_values is not None:
            bits = tl.sum(kl, 0) / p_total - tl.log2(p_total / q_total)
            tl.store(kl_values + token, bits * (TEMPERATURE * TEMPERATURE / LOG2_E))
        if ce_values is not None:
            tl.store(ce_values + token, (tl.log2(r_total) - tl.fma(z_target, LOG2_E, -r_peak)) / LOG2_E)
