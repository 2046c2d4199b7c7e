"""Whole models on every process: what the processes exchange once a step, and which part of the optimizer each has.

A process keeps float32 masters and optimizer state of its own rows of each parameter, steps those, and gives the others
what it has rounded (ZeRO stage 1; Rajbhandari et al., arXiv 1910.02054). The rows are those that FSDP would give it, so
that a checkpoint of one strategy is one of the other.

Shapes: N processes, R rows of a parameter on each, W numbers in a row.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

from gendistill.distributed import processes, rank

# torch 2.13 has other names for both, and warns of these.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
# What one collective carries: enough for the links' full rate, little beside a model.
BUCKET_BYTES = 256 * 2**20


class Replicas:
    """The exchange between processes that have the same models.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str):
        self.mesh = dist.init_device_mesh(device, (processes(),))

    def own_rows(self, whole: torch.Tensor) -> torch.Tensor:
        """The rows of a whole tensor that this process steps, a view; the last processes may have fewer, or none."""
        rows = _rows(whole)
        return whole[rank() * rows : (rank() + 1) * rows]

    def as_sharded(self, own: torch.Tensor, whole: torch.Tensor) -> DTensor:
        """This process's rows as part of a tensor of the whole's shape, in the same memory; for checkpoints."""
        return DTensor.from_local(own, self.mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())

    def mean_of_rows(self, wholes: Sequence[torch.Tensor], owns: Sequence[torch.Tensor]) -> None:
        """Writes the mean over processes of the rows that are this process's own.

        Args:
            wholes: of one precision, contiguous; on every process its own sums.
            owns: written to; shaped as `own_rows`.
        """
        before = None  # the bucket under way
        for bucket in _buckets(wholes):
            whole, own = [wholes[i] for i in bucket], [owns[i] for i in bucket]
            # Places of rows that the last processes do not have stay as they are: nobody reads their sums.
            sent = whole[0].new_empty(processes(), sum(map(_most, whole)))  # [N, all R * W]
            received = torch.empty_like(sent[0])
            _copy(_pieces(whole, sent), to_whole=False)
            # While it is under way the next bucket is filled; the one before is done by then.
            work = _reduce_scatter(received, sent.flatten(), async_op=True)
            if before is not None:
                self._receive(*before)
            before = work, received, own, [_most(x) for x in whole]
        if before is not None:
            self._receive(*before)
        # gloo has no means, and a sum in float32 cannot overflow.
        torch._foreach_div_(list(owns), processes())

    def _receive(self, work: dist.Work, received: torch.Tensor, owns: list[torch.Tensor], sizes: list[int]) -> None:
        work.wait()
        parts = [part[: own.numel()] for part, own in zip(received.split(sizes), owns, strict=True)]
        torch._foreach_copy_([own.view(-1) for own in owns], parts)

    def gather_rows(self, owns: Sequence[torch.Tensor], wholes: Sequence[torch.Tensor]) -> None:
        """Writes whole tensors from all processes' rows, which are rounded to the wholes' precision before they go."""
        before = None
        for bucket in _buckets(wholes):
            whole, own = [wholes[i] for i in bucket], [owns[i] for i in bucket]
            sent = whole[0].new_empty(sum(map(_most, whole)))  # [all R * W]
            received = sent.new_empty(processes(), len(sent))  # [N, all R * W]
            parts = [part[: x.numel()] for part, x in zip(sent.split([_most(w) for w in whole]), own, strict=True)]
            torch._foreach_copy_(parts, [x.reshape(-1) for x in own])  # rounds: half of the bytes need not be sent
            work = _all_gather(received.view(-1), sent, async_op=True)
            if before is not None:
                self._spread(*before)
            before = work, received, whole
        if before is not None:
            self._spread(*before)

    def _spread(self, work: dist.Work, received: torch.Tensor, wholes: list[torch.Tensor]) -> None:
        work.wait()
        _copy(_pieces(wholes, received), to_whole=True)


def _rows(whole: torch.Tensor) -> int:
    """Rows of a process, R: as torch.chunk, and so FSDP, cuts them."""
    return -(-len(whole) // processes())


def _most(whole: torch.Tensor) -> int:
    """Numbers of a process's rows, R * W; the last processes' may be fewer."""
    return _rows(whole) * (whole.numel() // len(whole))


def _buckets(wholes: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    """Indices of tensors that go together: of one precision, and at most so many bytes, or one tensor alone."""
    # Weights in 16 bits, and the decay gates in float32.
    for _, alike in groupby(sorted(range(len(wholes)), key=lambda i: str(wholes[i].dtype)), lambda i: wholes[i].dtype):
        bucket, held = [], 0
        for i in alike:
            size = wholes[i].numel() * wholes[i].element_size()
            if bucket and held + size > BUCKET_BYTES:
                yield bucket
                bucket, held = [], 0
            bucket.append(i)
            held += size
        yield bucket  # never empty: a precision is there because some tensor has it


def _pieces(wholes: Sequence[torch.Tensor], laid_out: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each process's rows of each whole tensor, and where they lie in [N, all R * W]; views of both."""
    columns = laid_out.split([_most(whole) for whole in wholes], dim=1)
    for whole, column in zip(wholes, columns, strict=True):
        # One process's rows are neighbours in memory, so rows of any shape are one piece.
        for piece, place in zip(whole.view(-1).split(_most(whole)), column, strict=False):
            yield piece, place[: len(piece)]


def _copy(pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], *, to_whole: bool) -> None:
    """Between the pieces of whole tensors and their places, in few launches."""
    pieces, places = zip(*pairs, strict=True)
    if to_whole:
        torch._foreach_copy_(pieces, places)
    else:
        torch._foreach_copy_(places, pieces)
