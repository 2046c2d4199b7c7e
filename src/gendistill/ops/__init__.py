"""The one recurrence behind all mixers: a slow reference, a chunked PyTorch form, and kernels for CUDA tensors."""

from gendistill.ops.convolution import convolved_heads
from gendistill.ops.dispatch import linear_attention, set_backend
from gendistill.ops.documents import Documents
from gendistill.ops.kernels import KERNEL_BOUND

__all__ = ["KERNEL_BOUND", "Documents", "convolved_heads", "linear_attention", "set_backend"]
