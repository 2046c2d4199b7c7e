"""What replaces softmax attention."""

from gendistill.models.mixers.kda import KimiDeltaAttention

__all__ = ["KimiDeltaAttention"]
