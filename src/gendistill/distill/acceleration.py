"""What makes training fast on one CUDA device: compiled layers, and micro-batches replayed as CUDA graphs.

A micro-batch is thousands of launches; where they are small the host cannot give them out as fast as a GPU works.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from gendistill.compute import Compute
from gendistill.distill.batches import Batch
from gendistill.errors import UserError
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.ops.capture import captured
from gendistill.recipe.stage import Stage

VARIANTS = 64  # of one function that torch.compile keeps before it gives up
# Parameters times tokens of a micro-batch, from which the host gives out launches faster than the GPU works. A graph
# then gives no speed, and takes memory: a 1.5B pair with rows of 16,384 tokens had 42,000 to 46,000 tokens a second
# with and without, by 85 and 54 GiB (results/proof/log.md).
LARGEST_CAPTURED = 2e13
WARM_UPS = 2  # runs before a capture, in which kernels are compiled and chosen


@contextmanager
def compiled_layers(*models: PreTrainedModel, in_pieces: bool) -> Iterator[None]:
    """Inside the block the models' layers run through torch.compile.

    Args:
        in_pieces: norms, attention or mixer, and MLP each by itself: alignment of mixers has hooks between them, and
            gradient checkpointing would compile every layer anew.
    """
    pieces = []
    for model in models:
        for layer in model.model.layers:
            pieces += layer.children() if in_pieces else [layer]
    try:
        for piece in pieces:
            # Hides the class's method, so that hooks of the module still run, outside of what is compiled.
            # dynamic=False: sizes known while compiling make faster kernels, and a stage has few.
            piece.forward = torch.compile(piece.forward, dynamic=False)
        # Teacher and student, stages with other roles, other shapes: all are variants of a few functions.
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    finally:
        for piece in pieces:
            del piece.forward  # the class's method is seen again


class SideStream:
    """A stream beside the current one: what one leaves idle of the GPU, at a product's end say, the other takes."""

    def __init__(self):
        self.stream = torch.cuda.Stream()

    @contextmanager
    def running(self) -> Iterator[None]:
        """What the block gives to the GPU starts after all that it was given before, and runs beside what follows."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield

    def join(self) -> None:
        """What follows starts when the side stream is done."""
        torch.cuda.current_stream().wait_stream(self.stream)


def takes_graphs(student: GendistillForCausalLM, stage: Stage, compute: Compute) -> bool:
    """Whether a stage's micro-batches are worth a CUDA graph, and run without reading the device while one is captured.

    fla's kernels other than KDA's read it for packed documents. A window does not, alone or beside a recurrence: its
    masks and indices are made on the device, of known sizes.
    """
    # FSDP frees and gathers layers at other addresses than a graph would have seen.
    if not compute.fused or compute.is_sharded:
        return False
    work = student.num_parameters() * stage.micro_batch * stage.sequence_length
    # None: a layer that keeps attention.
    return work < LARGEST_CAPTURED and set(student.config.mixers) <= {"kda", "window", None}


class GraphedMicroBatch:
    """Runs micro-batches by replaying a CUDA graph, captured the first time a batch of its shapes comes.

    `run(batch, scale)` must keep all its state in tensors that stay where they are: gradients are added to, not made.
    """

    def __init__(self, run: Callable[[Batch, torch.Tensor], torch.Tensor], device: str):
        self.run, self.device = run, device
        self.captured: dict[tuple, Callable[[Batch, torch.Tensor], torch.Tensor]] = {}
        self.warm: set[tuple] = set()  # shapes whose kernels are compiled and chosen
        self.forget()

    def forget(self) -> None:
        """Lets all graphs go, and the memory that they keep."""
        self.captured.clear()
        self.pool = torch.cuda.graph_pool_handle()  # one for all graphs, of which one runs at a time

    def __call__(self, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
        # With the names: a batch without positions takes another path than one with them.
        shapes = tuple((name, tensor.shape) for name, tensor in batch.tensors().items())
        if shapes not in self.captured:
            self.captured[shapes] = self._capture(batch, scale, shapes)
        return self.captured[shapes](batch, scale)

    def _capture(
        self, batch: Batch, scale: torch.Tensor, shapes: tuple
    ) -> Callable[[Batch, torch.Tensor], torch.Tensor]:
        """Gradients collected on the way are taken back: scaled by zero, the warm-ups and the capture add nothing."""
        # The graph reads these addresses at every replay; `replay` writes each batch there.
        inputs = batch.map(lambda tensor: tensor.to(self.device))
        factor = torch.zeros_like(scale)
        if shapes not in self.warm:
            # A warm-up cannot use what graphs keep. Where both do not fit, the graphs are captured anew when their
            # shapes come again, then without warm-ups and all in one memory.
            if not self._warmed_up(inputs, factor):
                self.forget()
                torch.cuda.empty_cache()
                self._warm_up(inputs, factor)
            self.warm.add(shapes)
        graph = torch.cuda.CUDAGraph()
        with captured(graph, self.pool):
            sums = self.run(inputs, factor)

        def replay(batch: Batch, scale: torch.Tensor) -> torch.Tensor:
            for name, tensor in batch.tensors().items():
                getattr(inputs, name).copy_(tensor, non_blocking=True)
            factor.copy_(scale)
            graph.replay()
            return sums.clone()  # the next replay writes over them

        return replay

    def _warmed_up(self, inputs: Batch, factor: torch.Tensor) -> bool:
        """False if memory ran out and there are graphs that could be let go. By then what the attempt held is free."""
        try:
            self._warm_up(inputs, factor)
        except (UserError, torch.OutOfMemoryError) as error:
            ran_out = isinstance(error.__cause__ or error, torch.OutOfMemoryError)
            if not (ran_out and self.captured):
                raise
            return False
        return True

    def _warm_up(self, inputs: Batch, factor: torch.Tensor) -> None:
        side = torch.cuda.Stream()  # another stream than the capture's, as torch asks
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.run(inputs, factor)
        torch.cuda.current_stream().wait_stream(side)
