"""The one recurrence behind all mixers; its backends are a slow reference, chunked PyTorch, and kernels for CUDA."""

from gendistill.ops.convolution import convolved_heads
from gendistill.ops.decay import KERNEL_BOUND, DecayGate
from gendistill.ops.dispatch import linear_attention, set_backend
from gendistill.ops.documents import Documents
from gendistill.ops.output_gate import gated_norm

__all__ = ["KERNEL_BOUND", "DecayGate", "Documents", "convolved_heads", "gated_norm", "linear_attention", "set_backend"]
