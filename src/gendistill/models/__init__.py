"""The student as a Hugging Face model type; importing this registers it with AutoConfig and AutoModelForCausalLM."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from gendistill.models.configuration import GendistillConfig
from gendistill.models.modeling import GendistillForCausalLM, GendistillModel

AutoConfig.register(GendistillConfig.model_type, GendistillConfig)
AutoModel.register(GendistillConfig, GendistillModel)
AutoModelForCausalLM.register(GendistillConfig, GendistillForCausalLM)

__all__ = ["GendistillConfig", "GendistillForCausalLM", "GendistillModel"]
