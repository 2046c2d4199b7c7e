"""How a run computes: device, precision, compilation, kernels, processes."""

import os
import re
from dataclasses import dataclass

import torch

from gendistill.recipe.loading import Recipe

# Dense bfloat16 operations a second by a word of the GPU's name, from NVIDIA's data sheets, without sparsity. The first
# that fits counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_flops(gpu: str | None) -> float | None:
    """The most bfloat16 operations a second that a GPU of this name can do; None if it is not known."""
    known = (flops for name, flops in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", gpu or ""))
    return next(known, None)


def device_memory(device: str) -> tuple[str, int | None]:
    """Name of the device, and the bytes of memory that it has in all; None if the system does not say."""
    if device == "cuda":
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    sizes = main_memory()
    return "this machine", sizes and round(sizes[1] * 2**30)


def main_memory() -> tuple[float, float] | None:
    """Free and total memory of the machine, GiB; None if the system does not say."""
    names = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return None
    return tuple(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 2**30 for name in names)


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes.

    Attributes:
        dtype: of the arithmetic.
        compiled: layers by torch.compile, and micro-batches as CUDA graphs where they can be captured.
        kernels: the recurrence by fla's kernels, not in plain torch.
    """

    device: str
    dtype: torch.dtype
    compiled: bool
    kernels: bool

    @property
    def fused(self) -> bool:
        """Whether losses run as few kernels: compiled on a GPU, not on a CPU."""
        return self.compiled and self.device == "cuda"


def arithmetic_of(recipe: Recipe, device: str) -> Arithmetic:
    """What the recipe's `auto` comes to on a device."""
    on_gpu = device == "cuda"
    bf16 = recipe.dtype == "bfloat16" or (recipe.dtype == "auto" and on_gpu)
    return Arithmetic(
        device=device,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        compiled=on_gpu if recipe.compile == "auto" else recipe.compile,
        kernels=on_gpu and recipe.backend in ("auto", "kernels"),
    )
