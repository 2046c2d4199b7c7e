"""Times the chunked form on this CPU and records its figures in results/figures.json.

    python benchmarks/kda_cpu.py

Kimi Delta Attention against the plain recurrence and transformers' PyTorch fallback, and the other kinds of state
update against the recurrence: a forward pass alone, and a training step (forward, and backward to every input). All
sides agree before anything is timed, and take turns. Run it on an otherwise idle machine; it takes about two minutes.
"""

import inspect
import json
import math
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.models.kimi_linear import modeling_kimi_linear

from gendistill.ops.chunked import chunked_linear_attention
from gendistill.ops.reference import l2_normalize, recurrent_linear_attention

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from figures import kda_cpu_figures, kda_cpu_times  # noqa: E402
from ledger import record, takes_no_arguments  # noqa: E402

SHAPE = {"batch": 1, "length": 2048, "heads": 9, "head_size": 64}
KINDS = {  # the delta rule or not, a decay per channel or per head
    "kda": (True, True),
    "gated_deltanet": (True, False),
    "gla": (False, True),
    "mamba2_lightning": (False, False),
}
ROUNDS = {"kda": 7, "gated_deltanet": 3, "gla": 3, "mamba2_lightning": 3}

Inputs = list[torch.Tensor]  # q, k, v, g and, for the delta rule, beta


def main() -> None:
    kinds = {kind: times(kind) for kind in KINDS}
    raw = {
        "shape": SHAPE,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "seconds": kinds,
    }
    results = ROOT / "results/cpu"
    results.mkdir(parents=True, exist_ok=True)
    (results / "kda.json").write_text(json.dumps(raw, indent=2) + "\n")
    record(kda_cpu_figures(results), "python benchmarks/kda_cpu.py")
    print(kda_cpu_times(raw))


def times(kind: str) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by side and by what was timed; one round more goes first and is not counted."""
    inputs, sides = make_inputs(kind), make_sides(kind)
    check_agreement(sides, inputs)
    seconds = {side: {"forward": [], "train": []} for side in sides}
    for round_ in range(ROUNDS[kind] + 1):
        for side, form in sides.items():
            for what, call in (("forward", forward), ("train", train)):
                began = time.perf_counter()
                call(form, inputs)
                if round_ > 0:
                    seconds[side][what].append(round(time.perf_counter() - began, 5))
    return seconds


def make_inputs(kind: str) -> Inputs:
    """Random inputs; a layer's first decays, A * dt with A uniform in [1, 16] and dt log-uniform in [1e-3, 0.1]."""
    delta_rule, per_channel = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    size = (SHAPE["batch"], SHAPE["length"], SHAPE["heads"], SHAPE["head_size"])
    q, k, v = (torch.randn(size, generator=generator) for _ in range(3))
    A = torch.empty(size[2], 1).uniform_(1, 16, generator=generator)
    g = -A * torch.empty(size).uniform_(math.log(1e-3), math.log(0.1), generator=generator).exp()
    beta = torch.rand(size[:3], generator=generator)
    return [q, k, v, g if per_channel else g[..., 0].contiguous(), *([beta] if delta_rule else [])]


def make_sides(kind: str) -> dict[str, Callable]:
    """The forms that can compute this kind; each takes the inputs and returns outputs [B, T, H, V]."""
    sides = {
        "chunked": lambda q, k, *others: chunked_linear_attention(l2_normalize(q), l2_normalize(k), *others)[0],
        "recurrence": lambda q, k, *others: recurrent_linear_attention(l2_normalize(q), l2_normalize(k), *others)[0],
    }
    if kind == "kda":
        fallback = inspect.unwrap(modeling_kimi_linear.chunk_kimi_delta_attention)  # not fla's kernel, installed or not
        sides["transformers"] = lambda *inputs: fallback(*inputs, use_qk_l2norm_in_kernel=True)[0]
    return sides


def check_agreement(sides: dict[str, Callable], inputs: Inputs) -> None:
    """Outputs and all gradients equal those of the recurrence up to float32's rounding."""
    expected = train(sides["recurrence"], inputs)
    for side, form in sides.items():
        for got, exact in zip(train(form, inputs), expected, strict=True):
            error = ((got - exact).norm() / exact.norm()).item()
            assert error < 1e-5, f"{side} differs from the recurrence by {error:.1e}"


@torch.no_grad()
def forward(form: Callable, inputs: Inputs) -> torch.Tensor:
    return form(*inputs)


def train(form: Callable, inputs: Inputs) -> list[torch.Tensor]:
    """Outputs, and the gradients of a fixed random readout of them."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    o = form(*inputs)
    o.backward(torch.randn(o.shape, generator=torch.Generator().manual_seed(1)))
    return [o.detach(), *(x.grad for x in inputs)]


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
