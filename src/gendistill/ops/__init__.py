"""The one recurrence behind all mixers: a slow reference, a chunked PyTorch form, and kernels for CUDA tensors."""

from gendistill.ops.dispatch import Backend, linear_attention, set_backend
from gendistill.ops.documents import Documents

__all__ = ["Backend", "Documents", "linear_attention", "set_backend"]
