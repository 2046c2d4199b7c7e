"""What vLLM could be asked for and a student cannot do there, told before anything is loaded."""

from typing import NamedTuple

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.vllm.shares import check_heads

ACTIVATIONS = ("silu",)  # of the MLP; vLLM's own for these families


class Asked(NamedTuple):
    """How vLLM was started, as far as it matters here."""

    ranks: int = 1  # --tensor-parallel-size
    pipeline: int = 1  # --pipeline-parallel-size
    quantization: str | None = None
    speculative: bool = False


def refuse_what_cannot_be(config: GendistillConfig, asked: Asked) -> None:
    """Raises UserError for a student, or a way of serving it, that is not supported."""
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"this student's MLPs have the activation '{config.hidden_act}', vLLM's have {', '.join(ACTIVATIONS)}; "
            "serve it with `gendistill serve`"
        )
    check_heads(config, asked.ranks)
    if asked.pipeline != 1:
        raise UserError(
            f"--pipeline-parallel-size is {asked.pipeline}; students run with 1. Use --tensor-parallel-size instead"
        )
    if asked.quantization is not None:
        raise UserError(
            f"quantization '{asked.quantization}': students are served in bfloat16, float16 or float32; leave it out"
        )
    if asked.speculative:
        raise UserError("speculative decoding would have to roll a student's states back; leave it out")
