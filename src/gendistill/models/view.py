"""A teacher seen as a student that keeps attention in every layer: other modules, the same tensors.

So whatever is made for students, the decoding loop above all, runs teachers as well.
"""

from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.models.conversion import as_tied_as, counterparts
from gendistill.models.families import student_config
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.models.positions import depends_on_length

_views: WeakKeyDictionary[PreTrainedModel, GendistillForCausalLM] = WeakKeyDictionary()


def as_student(model: PreTrainedModel) -> GendistillForCausalLM | None:
    """The model itself if it is a student, a view of a supported teacher, None of any other model, and of one whose
    positions depend on the text's length.

    The view holds the teacher's own parameters: what happens to them, happens to both.
    """
    if depends_on_length(model.config.get_text_config()):  # every step would need other frequencies
        return None
    if isinstance(model, GendistillForCausalLM):
        return model
    view = _views.get(model)
    # Kept, for building it takes some tenths of a second.
    if view is None or view.model.rotary_emb.inv_freq.device != model.device:  # buffers are the view's own
        try:
            layers = range(model.config.num_hidden_layers)
            view = all_attention(model, student_config(model.config, layers))
        except UserError:  # another family, or modules that hold something else than weights
            return None
        _views[model] = view
    return view


def all_attention(teacher: PreTrainedModel, config: GendistillConfig) -> GendistillForCausalLM:
    """The student of that configuration with attention in every layer, made of the teacher's own tensors.

    Raises:
        UserError: a tensor has no counterpart, or one of another shape.
    """
    count = config.num_hidden_layers
    kept = {"layer_types": ["full_attention"] * count, "mixers": [None] * count}
    without_window = {"window": None, "sinks": 0, "window_share": "head"}
    config = as_tied_as(teacher, GendistillConfig.from_dict(config.to_dict() | kept | without_window))
    with torch.device("meta"), no_init_weights():  # shapes without data: no second copy of the weights
        student = GendistillForCausalLM._from_config(config, dtype=teacher.dtype)
    student.tie_weights()
    originals, _ = counterparts(teacher, student)
    for name, original in originals.items():
        path, _, tensor = name.rpartition(".")
        setattr(student.get_submodule(path), tensor, original)
    student.tie_weights()  # a tied head is still the embedding that was replaced
    # The rotary frequencies are no parameter, so nothing was assigned to them.
    student.model.rotary_emb = LlamaRotaryEmbedding(config=config).to(teacher.device)
    student.generation_config = teacher.generation_config
    return student.eval()
