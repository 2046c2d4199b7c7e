"""What this machine can do at most, measured: bytes copied and operations of a matrix product a second."""

import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from gendistill import __version__

PACKAGES = ("torch", "transformers", "triton", "fla-core", "flash-attn-3", "tokenspeed-fa3")


@dataclass(frozen=True)
class Rates:
    """Bytes read and written together a second by a copy, and operations a second of a square product."""

    copy: float
    product: float
    device: str
    versions: dict[str, str]

    def to_dict(self) -> dict:
        return asdict(self)


def measure_rates(device: str, dtype: torch.dtype) -> Rates:
    """The best of a few copies and products that do not fit a cache."""
    on_gpu = device == "cuda"
    size = 2**30 if on_gpu else 2**27  # bytes
    # Far larger than any cache, so that memory is what is measured.
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = seconds_of(lambda: target.copy_(source), device, 5)
    width = 8192 if on_gpu else 2048
    a = torch.randn(width, width, device=device, dtype=dtype)
    multiplied = seconds_of(lambda: a @ a, device, 5)
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    # A copy reads and writes every byte; a product multiplies and adds.
    return Rates(2 * size / min(copied), 2 * width**3 / min(multiplied), name, _versions())


def seconds_of(run, device: str, times: int) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    run()  # kernels are loaded and chosen
    found = []
    for _ in range(times):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - began)
    return found


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _versions() -> dict[str, str]:
    found = {"gendistill": __version__}  # it may run from its source, not installed
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # Triton and fla-core are for GPUs only
            continue
    return found
