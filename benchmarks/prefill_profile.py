"""Where the time of a short prefill goes: the host before and behind the GPU, kernels, and what lies between them.

    python benchmarks/prefill_profile.py > results/gpu/prefill_profile.txt     # a CUDA device that nothing else uses

Qwen3-0.6B's shape, random weights, teacher and student (7 of 28 layers kept, Kimi Delta Attention with bounded gates in
the others), one row, our best form: one CUDA graph. Milliseconds, medians over calls: of what a user waits for (wall),
of that until the graph is launched (host), of the graph on the GPU (by events), and of what follows it (behind: the
cache's copy, the first token). Then, of one call under the profiler, the sum of all kernels, and each by its name; and
of some under Python's profiler, which slows it down, what the host calls.
"""

import cProfile
import io
import pstats
import time
from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple
from unittest import mock

import torch
from ledger import gpu_machine, takes_no_arguments
from torch.profiler import ProfilerActivity, profile

from gendistill.bench.models import student_of_shape, teacher_of_shape
from gendistill.inference.prefill import prefill

LENGTHS = (2048, 8192)  # tokens
WARM_UPS, CALLS = 3, 9
LONGEST = 80  # characters of a kernel's name
PARTS = ("wall", "host", "graph", "behind")
MOST = 25  # kernels by name, the longest
MOST_CALLED = 15  # functions of the host


class Marks(NamedTuple):
    """Of one call: seconds of the host's clock, and of the graph on the GPU."""

    wall: float
    host: float
    graph: float

    @property
    def behind(self) -> float:
        return self.wall - self.host - self.graph


class Kernel(NamedTuple):
    name: str
    start: float  # microseconds
    end: float


def main() -> None:
    takes_no_arguments(__doc__)
    print(gpu_machine())
    teacher = teacher_of_shape("qwen3-0.6b", max(LENGTHS), "cuda", torch.bfloat16)
    student = student_of_shape(teacher, 7, mixer="kda", log_decay_bound=-5.0)
    for length in LENGTHS:
        for name, model in (("teacher", teacher), ("student", student)):
            report(f"{name}, {length:,} tokens", model, length)


@torch.inference_mode()
def report(title: str, model, length: int) -> None:
    prompts = torch.randint(5, model.config.vocab_size - 5, (1, length)).tolist()

    def first() -> None:
        prefill(model, prompts, None, length + 64).logits.argmax(-1).tolist()

    for _ in range(WARM_UPS):
        first()
    marks = [marked(first) for _ in range(CALLS)]
    told = ", ".join(f"{part} {1e3 * median(getattr(mark, part) for mark in marks):.2f}" for part in PARTS)
    print(f"\n{title}: {told}")
    print(*table(kernels_of(first)), sep="\n")
    print(called_by(lambda: [first() for _ in range(CALLS)], MOST_CALLED))


def marked(call) -> Marks:
    """Times a call in which one graph is replayed."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    launched = []
    replay = torch.cuda.CUDAGraph.replay

    def timed(graph) -> None:
        launched.append(time.perf_counter())
        events[0].record()
        replay(graph)
        events[1].record()

    torch.cuda.synchronize()
    with mock.patch.object(torch.cuda.CUDAGraph, "replay", timed):
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        ended = time.perf_counter()
    (at,) = launched
    return Marks(ended - began, at - began, events[0].elapsed_time(events[1]) / 1e3)


def kernels_of(call) -> list[Kernel]:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    found = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [Kernel(event.name, event.time_range.start, event.time_range.end) for event in found]


def called_by(call, most: int) -> str:
    """What the host spends its time on, by Python's profiler."""
    profiler, told = cProfile.Profile(), io.StringIO()
    profiler.runcall(call)
    pstats.Stats(profiler, stream=told).sort_stats("tottime").print_stats(most)
    return told.getvalue()


def table(kernels: Iterable[Kernel]) -> list[str]:
    """Lines: kernels and what lies between them, in milliseconds; by name the longest, with what lies before them."""
    kernels = sorted(kernels, key=lambda kernel: kernel.start)
    took, before, count = Counter(), Counter(), Counter()
    end = kernels[0].start
    for kernel in kernels:
        took[kernel.name] += kernel.end - kernel.start
        before[kernel.name] += max(0.0, kernel.start - end)
        count[kernel.name] += 1
        end = max(end, kernel.end)
    told = [sum(took.values()), sum(before.values()), end - kernels[0].start]
    lines = ["{} kernels {:.2f}, between them {:.2f}, of {:.2f}".format(len(kernels), *(part / 1e3 for part in told))]
    for name in sorted(took, key=took.__getitem__, reverse=True)[:MOST]:
        lines.append(f"{took[name]:9.1f} us  {before[name]:7.1f} before  x{count[name]:<4} {name[:LONGEST]}")
    return lines


if __name__ == "__main__":
    main()
