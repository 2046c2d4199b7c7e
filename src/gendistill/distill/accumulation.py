"""Sums of gradients in float32: the gradients come in 16 bits, micro-batch by micro-batch."""

from collections import defaultdict
from collections.abc import Iterable

import torch

from gendistill.ops.optional_triton import tl, triton

BLOCK = 4096  # numbers of a program
GROUP = 16  # tensors of a launch: a model has hundreds, most of them too small to keep a GPU busy


def accumulate(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """total += x in place, for pairs of one shape.

    On a GPU by a kernel of our own: torch adds each pair by itself, and converts number by number at half of the
    memory's speed.
    """
    alike = defaultdict(list)  # one launch takes tensors of one device, size and precision
    for total, x in pairs:
        if triton is not None and total.is_cuda and total.is_contiguous() and x.is_contiguous():
            # Numbers are added one by one, so shapes do not matter, only how many there are.
            alike[total.device, total.numel(), total.dtype, x.dtype].append((total, x))
        else:
            total.add_(x)
    for (device, size, *_), members in alike.items():
        with torch.cuda.device(device):
            for start in range(0, len(members), GROUP):
                _launch(members[start : start + GROUP], size)


def _launch(group: list[tuple[torch.Tensor, torch.Tensor]], size: int) -> None:
    # Always as many, so that it is compiled once: the last is named again, and the grid leaves these out.
    totals, xs = zip(*group, *group[-1:] * (GROUP - len(group)), strict=True)
    _accumulate_kernel[triton.cdiv(size, BLOCK), len(group)](totals, xs, size, BLOCK=BLOCK, num_warps=8)


if triton is not None:

    @triton.jit
    def _accumulate_kernel(totals, xs, size, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: a large embedding passes 2^31
        exists = at < size
        for i in tl.static_range(len(totals)):
            # A tuple of pointers can only be indexed by a constant, so every program looks for its own.
            if tl.program_id(1) == i:
                total = tl.load(totals[i] + at, mask=exists)
                total += tl.load(xs[i] + at, mask=exists).to(total.dtype)
                tl.store(totals[i] + at, total, mask=exists)
