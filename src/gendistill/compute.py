"""How a run computes: device, precision, compilation, kernels, processes."""

import os
import re
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from gendistill import distributed
from gendistill.errors import UserError
from gendistill.names import STRATEGIES, look_up
from gendistill.ops import set_backend

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


def main_memory() -> tuple[float, float] | None:
    """Free and total memory of the machine, GiB; None if the system does not say."""
    names = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")  # pages that are free, and all; macOS does not say the first
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return None
    return tuple(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 2**30 for name in names)


class ComputeSettings(Protocol):
    """The settings of a recipe that say how it computes, each of which can be `auto`."""

    device: str  # auto, cpu, cuda
    dtype: str  # auto, float32, bfloat16
    backend: str
    compile: str | bool  # auto, true, false
    strategy: str  # auto, replicas, hybrid, zero2, fsdp


@dataclass(frozen=True)
class Compute:
    """How a run computes."""

    device: str  # "cpu" or "cuda"; with many processes each has a GPU of its own
    dtype: torch.dtype  # of the arithmetic; master weights are float32 whatever it is
    compiled: bool  # layers by torch.compile, and micro-batches as CUDA graphs where they can be captured
    kernels: bool  # the recurrence by fla's kernels, not in plain torch
    processes: int = 1  # that share the work
    # How they hold the models: "whole" by one, by many one of names.STRATEGIES; "auto" until a stage's price is known.
    strategy: str = "whole"
    hosts: int = 1  # with as many processes each

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of each of the student's layers, and gathers what it needs."""
        return self.strategy in ("hybrid", "zero2", "fsdp")

    @property
    def shards_teacher(self) -> bool:
        """Whether that holds of the teacher's layers, too."""
        return self.strategy in ("hybrid", "fsdp")

    @property
    def gathers_once(self) -> bool:
        """Whether what is gathered of a sharded layer stays until the optimizer steps."""
        return self.strategy == "zero2"

    @property
    def fused(self) -> bool:
        """Whether losses run as few kernels: compiled on a GPU, not on a CPU."""
        return self.compiled and self.device == "cuda"

    @property
    def dtype_name(self) -> str:
        """'bfloat16' or 'float32'."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_present(self) -> bool:
        """Whether this machine has the device; what is only to be priced may be for another one."""
        return self.device == "cpu" or torch.cuda.is_available()

    @property
    def peak_flops(self) -> float | None:
        """Operations a second that the GPUs of all processes can do together; None if not known, or on a CPU."""
        one = peak_flops(torch.cuda.get_device_name()) if self.device == "cuda" else None
        return one and one * self.processes

    def memory(self) -> tuple[str | None, int | None]:
        """Name of the device, and the bytes of memory that it has in all; None where this machine does not say."""
        if not self.is_present:
            return None, None
        if self.device == "cuda":
            # In all, not what is free: what other programs hold now says little of the hours to come.
            return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
        sizes = main_memory()
        # Processes on one machine share its memory; a GPU each has for itself.
        here = distributed.processes_here()
        name = "this machine" if here == 1 else f"a process's share of this machine, which {here} have,"
        return name, sizes and round(sizes[1] * 2**30 / here)


def start_compute(settings: ComputeSettings) -> Compute:
    """Takes the device and the backend for this process, and joins the processes that torchrun started, if it did.

    Raises:
        UserError: CUDA or a backend is asked for and not there.
    """
    device = present_device(settings.device)
    distributed.start(device)  # before anything is put on a GPU, since it chooses which one is this process's own
    set_backend(settings.backend)
    hosts = distributed.processes() // distributed.processes_here()
    return replace(_compute_on(device, settings, distributed.processes()), hosts=hosts)


def compute_to_price(settings: ComputeSettings, processes: int = 1) -> Compute:
    """What so many processes would compute with; takes nothing.

    Without a GPU, a recipe that does not ask for the CPU is priced for a GPU all the same: it is written for one, and
    the price is to be known before one is rented.
    """
    device = look_up({"auto": "cuda", "cuda": "cuda", "cpu": "cpu"}, settings.device, "device")
    return _compute_on(device, settings, processes)


def present_device(setting: str) -> str:
    """ "cpu" or "cuda": what `auto`, `cpu` or `cuda` comes to on this machine.

    Raises:
        UserError: CUDA is asked for, and torch sees no CUDA device; or there is no such setting.
    """
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = look_up({"auto": best, "cuda": "cuda", "cpu": "cpu"}, setting, "device")
    if device == "cuda" and best != "cuda":
        raise UserError("device cuda is asked for, but torch sees no CUDA device. Use cpu or auto.")
    return device


def _compute_on(device: str, settings: ComputeSettings, processes: int) -> Compute:
    """What each `auto` comes to on a device."""
    on_gpu = device == "cuda"
    # bfloat16 is what a GPU's matrix units are fast at; most CPUs emulate it.
    dtypes = {"auto": torch.bfloat16 if on_gpu else torch.float32, "bfloat16": torch.bfloat16, "float32": torch.float32}
    strategies = {name: name for name in STRATEGIES}  # `auto` stays, until a stage's price is known
    compiled = on_gpu if settings.compile == "auto" else bool(settings.compile)
    return Compute(
        device=device,
        dtype=look_up(dtypes, settings.dtype, "dtype"),
        compiled=compiled,
        kernels=on_gpu
        and settings.backend in ("auto", "kernels"),  # as `ops.linear_attention` chooses for CUDA tensors
        processes=processes,
        strategy="whole" if processes == 1 else look_up(strategies, settings.strategy, "strategy"),
    )
