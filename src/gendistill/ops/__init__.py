"""The gated delta rule: a slow reference, a chunked PyTorch form, and kernels for CUDA tensors."""

from gendistill.ops.dispatch import gated_delta_rule
from gendistill.ops.documents import Documents

__all__ = ["Documents", "gated_delta_rule"]
