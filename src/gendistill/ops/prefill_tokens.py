"""What the kernels of a prefill have in common: where tokens lie in memory, how many there are, a gate's activation."""

import torch

from gendistill.ops.optional_triton import tl, triton


def spacing(x: torch.Tensor) -> int:
    """Numbers from a token of [B, T, ...] to the next, the same over all rows."""
    assert x.stride(-1) == 1, x.stride()
    assert len(x) == 1 or x.stride(0) == x.shape[1] * x.stride(1), (x.shape, x.stride())
    return x.stride(1)


if triton is not None:

    @triton.jit
    def count_of(row, T, lengths):
        """How many tokens a row has: T, or what lengths [B] say."""
        return T if lengths is None else tl.load(lengths + row).to(tl.int32)

    @triton.jit
    def sigmoid(x):
        # By exp2, because tl.sigmoid's exp takes four instructions more.
        return 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * x))
