"""One token's attention at the speed of memory: the context is split over programs, whose results are merged.

Which places hold tokens is read on the device, by each program for its row, so that a captured graph serves rows of any
and of growing length (flash-decoding: Dao et al. 2023).

Shapes: B rows, H query heads, G key heads, S places, D channels of a head.
"""

import torch

from gendistill.ops.optional_triton import overlap, require_triton, tl, triton

LOG2_E = 1.4426950408889634  # scores are to the base of 2, which the hardware has
BLOCK = 64  # places that a program reads at a time
QUERIES = 16  # rows of a tile, of which a group has fewer: tensor cores take no smaller one
PROGRAMS = 528  # four for each of an H100's 132 multiprocessors; more splits cost more merging
SHORTEST_SPLIT = 256  # places
SETTINGS = {"num_warps": 4, "num_stages": 2}


def kernel_decode_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """As `decode_attention.decode_attention`, on a GPU.

    Raises:
        UserError: Triton is not installed.
    """
    require_triton()
    batch, heads, width = q.shape
    groups, places = keys.shape[1], keys.shape[2]
    o = torch.empty_like(q)
    splits = _splits(batch * groups, places)
    # Of each split and query head: what it saw, and the largest score and the sum of exponentials behind it.
    partial = q.new_empty(batch, heads, splits, width, dtype=torch.float32)
    stats = q.new_empty(batch, heads, splits, 2, dtype=torch.float32)
    group = heads // groups
    _attend[(batch * groups, splits)](
        q.contiguous(), keys, values, lengths, o, partial, stats, scale * LOG2_E,
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1), groups, splits,
        GROUP=group, WIDTH=width, BLOCK=BLOCK, QUERIES=max(QUERIES, triton.next_power_of_2(group)),
        ALONE=splits == 1, EXACT=q.dtype == torch.float32, **SETTINGS, **overlap(),
    )  # fmt: skip
    if splits > 1:
        _merge[(batch * heads,)](
            partial, stats, o, splits, SPLITS=triton.next_power_of_2(splits), WIDTH=width, **overlap()
        )
    return o


def _splits(rows: int, places: int) -> int:
    """Parts of the context: enough programs to fill a GPU, none with next to nothing to do."""
    return max(1, min(PROGRAMS // rows, -(-places // SHORTEST_SPLIT), 128))


if triton is not None:

    @triton.jit
    def _attend(
        Q, KEYS, VALUES, LENGTHS, OUT, PARTIAL, STATS, scale,
        key_row, key_head, value_row, value_head,
        groups, splits,
        GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
        ALONE: tl.constexpr, EXACT: tl.constexpr, OVERLAP: tl.constexpr,
    ):  # fmt: skip
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        row = tl.program_id(0) // groups
        group = tl.program_id(0) % groups
        split = tl.program_id(1)
        precision: tl.constexpr = "ieee" if EXACT else "tf32"
        length = tl.load(LENGTHS + row).to(tl.int32)
        blocks = tl.cdiv(tl.cdiv(length, BLOCK), splits)  # of each split, whatever the row's length
        first = split * blocks * BLOCK
        last = tl.minimum(first + blocks * BLOCK, length)
        head = tl.arange(0, QUERIES)
        channel = tl.arange(0, WIDTH)
        queries = (row * groups + group) * GROUP + head  # of all rows' heads
        real = head < GROUP
        q = tl.load(Q + queries[:, None] * WIDTH + channel, mask=real[:, None], other=0.0)  # [QUERIES, D]
        keys = KEYS + row.to(tl.int64) * key_row + group.to(tl.int64) * key_head
        values = VALUES + row.to(tl.int64) * value_row + group.to(tl.int64) * value_head
        largest = tl.full([QUERIES], -float("inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        seen = tl.zeros([QUERIES, WIDTH], tl.float32)
        for start in range(first, last, BLOCK):
            place = start + tl.arange(0, BLOCK)
            there = place < last
            offset = place[:, None] * WIDTH + channel
            k = tl.load(keys + offset, mask=there[:, None], other=0.0)  # [BLOCK, D]
            v = tl.load(values + offset, mask=there[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale  # [QUERIES, BLOCK], base 2
            scores = tl.where(there[None, :], scores, -float("inf"))
            larger = tl.maximum(largest, tl.max(scores, 1))
            shrink = tl.exp2(largest - larger)
            weights = tl.exp2(scores - larger[:, None])
            total = total * shrink + tl.sum(weights, 1)
            seen = seen * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
            largest = larger
        if ALONE:
            out = seen / tl.maximum(total, 1e-30)[:, None]
            tl.store(OUT + queries[:, None] * WIDTH + channel, out.to(OUT.dtype.element_ty), mask=real[:, None])
        else:
            part = queries * splits + split
            tl.store(PARTIAL + part[:, None] * WIDTH + channel, seen, mask=real[:, None])
            tl.store(STATS + part * 2, largest, mask=real)
            tl.store(STATS + part * 2 + 1, total, mask=real)

    @triton.jit
    def _merge(PARTIAL, STATS, OUT, splits, SPLITS: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr):
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        head = tl.program_id(0)
        split = tl.arange(0, SPLITS)
        channel = tl.arange(0, WIDTH)
        there = split < splits
        part = head * splits + split
        largest = tl.load(STATS + part * 2, mask=there, other=-float("inf"))
        total = tl.load(STATS + part * 2 + 1, mask=there, other=0.0)
        whole = tl.max(largest, 0)
        # A split without tokens has -inf, and so has a row without any: then nothing counts.
        share = tl.where(total > 0, tl.exp2(largest - whole), 0.0)
        seen = tl.load(PARTIAL + part[:, None] * WIDTH + channel, mask=there[:, None], other=0.0)
        out = tl.sum(seen * share[:, None], 0) / tl.maximum(tl.sum(total * share, 0), 1e-30)
        tl.store(OUT + head * WIDTH + channel, out.to(OUT.dtype.element_ty))
