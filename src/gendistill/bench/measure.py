"""One cell of the sweep: a model at a context and a batch, in transformers' default form or in its best.

default: transformers' own forward pass and `generate`, as a user calls them. best: our prefill and decoding loop, which
teachers use as well as students.
"""

import gc
import time
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, StoppingCriteria

from gendistill.bench.machine import synchronize
from gendistill.inference.batch import DecodingBatch
from gendistill.inference.ids import generate
from gendistill.inference.prefill import prefill
from gendistill.inference.requests import Request
from gendistill.models.cache import cache_bytes
from gendistill.models.cost import expected_cache_bytes
from gendistill.models.view import as_student
from gendistill.names import look_up

WARM_UPS = 2  # prefills before those that count: kernels are compiled in the first, graphs captured in the second
STEPS = 32  # decoding steps that are timed together
DEFAULT_TOKENS = 9  # new tokens of transformers' generate(), the first of which is prefill's


@dataclass
class Cell:
    """What was measured of a model.

    Attributes:
        first: seconds to the first token, of each repetition.
        token: seconds for each further token, of each repetition.
        peak: bytes allocated at most during prefill, weights included; None on a CPU.
        cache, formula: bytes of the cache by the allocator and as worked out.
        error: why there is nothing more.
    """

    model: str
    form: str
    context: int
    batch: int
    first: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    peak: int | None = None
    cache: int | None = None
    formula: int | None = None
    error: str | None = None


def measure_cell(model: PreTrainedModel, cell: Cell, repeats: int) -> Cell:
    """Fills a cell in; running out of memory is written down, and the sweep continues."""
    ids = torch.randint(
        5, model.config.vocab_size - 5, (cell.batch, cell.context), generator=torch.Generator().manual_seed(0)
    )
    by_form = {"default": _measure_default, "best": _measure_best}
    try:
        look_up(by_form, cell.form, "form")(model, ids.to(model.device), cell, repeats)
    except torch.OutOfMemoryError:
        cell.error = "out of memory"
    gc.collect()  # graphs and caches refer to each other
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return cell


@torch.inference_mode()
def _measure_default(model: PreTrainedModel, ids: torch.Tensor, cell: Cell, repeats: int) -> None:
    device = model.device.type

    def first() -> None:
        model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()

    _time_first(first, cell, device, repeats)

    def between(tokens: int) -> float:
        """Seconds from the first of so many tokens to the last."""
        clock = _Clock(device)
        settings = dict(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
        model.generate(ids, attention_mask=torch.ones_like(ids), stopping_criteria=[clock], **settings)
        return clock.times[-1] - clock.times[0]

    between(2)  # kernels of a step, which prefill does not have
    for _ in range(min(repeats, 2)):
        cell.token.append(between(DEFAULT_TOKENS) / (DEFAULT_TOKENS - 1))


class _Clock(StoppingCriteria):
    """When each token of generate() was there; stops nothing."""

    def __init__(self, device: str):
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        synchronize(self.device)
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def _measure_best(model: PreTrainedModel, ids: torch.Tensor, cell: Cell, repeats: int) -> None:
    device, prompts = model.device.type, ids.tolist()
    steps = STEPS if device == "cuda" else 4
    room = cell.context + 2 * steps + 16  # what is timed, and the eager steps before
    made = []

    def first() -> None:
        made.clear()  # the cache before, or two would be held at once
        made.append(prefill(model, prompts, None, room))
        made[0].logits.argmax(-1).tolist()

    _time_first(first, cell, device, repeats)
    (prefilled,) = made
    cell.cache = cache_bytes(prefilled.cache)
    cell.formula = expected_cache_bytes(model.config, room, cell.batch, model.dtype.itemsize)
    # -1 is no token, so that no reply ends while it is timed.
    requests = [Request(prompt, 2 * steps + 8) for prompt in prompts]
    batch = DecodingBatch(as_student(model), prefilled, requests, ends=[-1], pad=0, room=room)
    # Eager steps first, until the graph is there.
    while batch.left > 2 * steps if device == "cpu" else batch.graph is None:
        batch.decode_steps()
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(steps if batch.graph is not None else 2):
            batch.step(batch.token, batch.position) if batch.graph is None else batch.graph.replay()
        synchronize(device)
        cell.token.append((time.perf_counter() - began) / (steps if batch.graph is not None else 2))


@torch.inference_mode()
def seconds_a_token_of_generate(model: PreTrainedModel, context: int, tokens: int) -> float:
    """Seconds for each token but the first of `gendistill.generate`, at batch 1, when it is called again and again."""
    ids = torch.randint(5, model.config.vocab_size - 5, (1, context), device=model.device)

    def took(count: int) -> float:
        for _ in range(2):
            generate(model, ids, max_new_tokens=count, eos_token_id=-1)
        synchronize(model.device.type)
        began = time.perf_counter()
        generate(model, ids, max_new_tokens=count, eos_token_id=-1)
        synchronize(model.device.type)
        return time.perf_counter() - began

    return (took(tokens) - took(1)) / (tokens - 1)


def _time_first(run, cell: Cell, device: str, repeats: int) -> None:
    for _ in range(WARM_UPS):
        run()
    # Of the repetitions alone: capturing a graph takes more once.
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        run()
        cell.first.append(time.perf_counter() - began)
    if device == "cuda":
        cell.peak = torch.cuda.max_memory_allocated()
