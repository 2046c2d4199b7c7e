"""Short prompts prefilled by CUDA graphs: up to some 16,000 tokens the host cannot give out launches as fast as a GPU
works.

A graph serves prompts of a shape: as many rows, filled up with padding to one of a few lengths. It is captured when a
shape comes for the second time, and kept. It writes to a cache of its own, of which each call gets a copy.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections import OrderedDict

import torch

from gendistill.inference.kept import kept
from gendistill.inference.packed import Packed
from gendistill.inference.prefill_pass import PrefillPass
from gendistill.inference.rows import padded_rows
from gendistill.models.cache import SlotCache
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.models.padding import Padding
from gendistill.ops.capture import captured

MOST_TOKENS = 2**14  # of all rows; beyond, the GPU takes longer than the host
SHORTEST = 256  # tokens; lengths go up in eighths of the next power of two, so that little is computed for nothing
GRAPHS = 8  # of a model, each with its cache


def graphed_prefill(
    student: GendistillForCausalLM, weights: Packed, prompts: list[list[int]], room: int
) -> tuple[torch.Tensor, SlotCache] | None:
    """Logits [B, V] behind the prompts and their cache; None where no graph serves them, or none does yet."""
    batch, length = len(prompts), _padded_length(max(map(len, prompts)))
    padded = min(map(len, prompts)) < length
    if student.device.type != "cuda" or batch * length > MOST_TOKENS or not _can_capture(student):
        return None
    graphs: OrderedDict = kept(student).setdefault("prefill graphs", OrderedDict())
    key = (batch, length, padded, id(weights))  # another object once a weight has changed
    if key not in graphs:
        graphs[key] = None
        while len(graphs) > GRAPHS:
            graphs.popitem(last=False)
        return None
    graphs.move_to_end(key)
    graphs[key] = graphs[key] or _Graph(student, weights, batch, length, padded)
    return graphs[key](prompts, room)


def _padded_length(length: int) -> int:
    step = max(SHORTEST, 2 ** max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def _can_capture(student: GendistillForCausalLM) -> bool:
    """Kernels of the other linear mixers were not tried."""
    return all(student.config.mixers[i] == "kda" for i in student.config.linear_layers)


class _Graph:
    """The graph of a shape, and what it reads and writes."""

    def __init__(self, student: GendistillForCausalLM, weights: Packed, batch: int, length: int, padded: bool):
        self.student, device = student, student.device
        self.ids = torch.zeros(batch, length, dtype=torch.long, device=device)
        self.padded = padded
        self.lengths = torch.ones(batch, dtype=torch.long, device=device)
        self.cache = SlotCache(student.config, length)
        self.run = PrefillPass(student, self.cache, weights)
        side = torch.cuda.Stream()  # a warm-up, on another stream than the capture, as torch asks
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._pass()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with captured(self.graph):
            self.logits = self._pass()

    def _pass(self) -> torch.Tensor:
        self.cache.reset()
        index = torch.arange(self.ids.shape[1], device=self.ids.device)
        padding = Padding(index < self.lengths[:, None]) if self.padded else None
        hidden = self.run(self.ids, 0, padding)
        last = (self.lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return self.student.lm_head(self.student.model.norm(hidden.gather(1, last)[:, 0]))

    def __call__(self, prompts: list[list[int]], room: int) -> tuple[torch.Tensor, SlotCache]:
        self.ids.copy_(padded_rows(prompts, self.ids.shape[1]))
        self.lengths.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self.graph.replay()
        return self.logits.clone(), self.cache.copy(room)
