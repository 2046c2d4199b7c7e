"""Students in vLLM: `vllm serve FOLDER` loads what gendistill converted, or exported, once the package is installed.

vLLM finds `register` by the entry point `vllm.general_plugins`, schedules requests, and keeps keys, values and states.
What a layer computes is computed by the student's own modules, a share of the heads on each GPU.
"""

ARCHITECTURE = "GendistillForCausalLM"  # as students' config.json names it
OPERATION = "vllm::gendistill_mixer"  # a mixer, where vLLM splits its graphs


def register() -> None:
    """Makes students known to vLLM in this process; called again, it changes nothing."""
    from vllm import ModelRegistry
    from vllm.config import CompilationConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import gendistill.models  # noqa: F401  registers the configuration with transformers, which vLLM asks for it
    from gendistill.vllm.checks import StudentChecks

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name: vLLM imports the model in a process of its own, so that this one need not touch the GPU.
        ModelRegistry.register_model(ARCHITECTURE, "gendistill.vllm.model:GendistillForCausalLM")
    MODELS_CONFIG_MAP[ARCHITECTURE] = StudentChecks
    if OPERATION not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(OPERATION)
