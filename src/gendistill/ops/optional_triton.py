"""Triton where it is installed: machines without a GPU have none, and must still import the modules with kernels."""

from gendistill.errors import UserError

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None  # `@triton.jit` would fail on import: modules define kernels under `if triton is not None`

__all__ = ["require_triton", "tl", "triton"]


def require_triton() -> None:
    """Raises UserError if Triton is not installed."""
    if triton is None:
        raise UserError('CUDA tensors need Triton, which is not installed: pip install "gendistill[gpu]"')
