"""The pair to be measured: from folders, or of a published shape with random weights, which cost no download."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

from gendistill.models.families import student_config
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.names import look_up
from gendistill.placement.search import fixed

# Published configurations.
SHAPES = {
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "tiny": Qwen3Config(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
    ),
}
YARN = {"rope_type": "yarn", "factor": 4.0}  # to four times the positions, as the publishers of both families say


def teacher_of_shape(name: str, longest: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A teacher of a published shape with random weights; with YaRN where `longest` exceeds its positions."""
    config = type(look_up(SHAPES, name, "shape")).from_dict(SHAPES[name].to_dict())
    if longest > config.max_position_embeddings:
        # The base of the frequencies stays; its place differs between versions of transformers.
        theta = (config.rope_parameters or {}).get("rope_theta", 1_000_000.0)
        original = config.max_position_embeddings
        config.rope_parameters = YARN | {"rope_theta": theta, "original_max_position_embeddings": original}
        config.max_position_embeddings = 4 * original
    with torch.device(device):  # billions of random numbers are drawn where they are wanted
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()


def student_of_shape(teacher: PreTrainedModel, keep: Sequence[int] | int, **options) -> GendistillForCausalLM:
    """A student of the teacher's shape with random weights.

    Args:
        keep: layers that keep attention, or how many, evenly spread.
        options: of `student_config`.
    """
    layers = fixed("uniform", keep, teacher.config.num_hidden_layers) if isinstance(keep, int) else keep
    config = student_config(teacher.config, layers, **options)
    with torch.device(teacher.device):
        return GendistillForCausalLM._from_config(config, dtype=teacher.dtype).eval()
