"""vLLM's hook for an architecture: called with its whole configuration, before a process is started for the model."""

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from gendistill.vllm.refusals import Asked, refuse_what_cannot_be


class StudentChecks(VerifyAndUpdateConfig):
    """Refuses what cannot be served; changes nothing."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Raises UserError for a student, or a way of serving it, that is not supported."""
        asked = Asked(
            ranks=vllm_config.parallel_config.tensor_parallel_size,
            pipeline=vllm_config.parallel_config.pipeline_parallel_size,
            quantization=vllm_config.model_config.quantization,
            speculative=vllm_config.speculative_config is not None,
        )
        refuse_what_cannot_be(vllm_config.model_config.hf_config, asked)
