"""Triton where it is installed: machines without a GPU have none, and must still import the modules with kernels."""

import functools

import torch

from gendistill.errors import UserError

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None  # `@triton.jit` would fail on import: modules define kernels under `if triton is not None`

__all__ = ["overlap", "require_triton", "tl", "triton"]


def require_triton() -> None:
    """Raises UserError if Triton is not installed."""
    if triton is None:
        raise UserError('CUDA tensors need Triton, which is not installed: pip install "gendistill[gpu]"')


@functools.cache
def overlap() -> dict[str, bool]:
    """Options of a launch whose kernel may begin while the one before it ends (programmatic dependent launch).

    Such a kernel says so by `gdc_launch_dependents`, reads what nobody writes (weights), and waits by `gdc_wait` before
    it reads anything else. GPUs before Hopper know no such launch.
    """
    able = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return {"OVERLAP": True, "launch_pdl": True} if able else {"OVERLAP": False}
