"""Every tensor of a student's folder has its place in vLLM's model, and no other folder is taken for a student's."""

import pytest
import torch
from safetensors.torch import load_file

from gendistill.errors import UserError
from gendistill.models.loading import weight_files
from gendistill.vllm.weights import HEAD, JOINT, accounted, shapes_of, target_of
from small_models import VARIANTS, make_student

# The families, heads tied and untied; biases or none; a window alone and beside a recurrence.
FOLDERS = ["qwen3-kda-hybrid", "qwen2-kda-hybrid", "llama-kda-pure-mixed", "qwen2-window-mixed"]
FOLDERS += ["qwen3-kda-beside-window", "qwen3-kda-pure-share-by-token"]


@pytest.fixture(scope="module", params=FOLDERS)
def saved(request, tmp_path_factory):
    """A student's configuration, and the tensors of its folder."""
    folder = tmp_path_factory.mktemp("student")
    student = make_student(**VARIANTS[request.param])
    student.save_pretrained(folder)
    return student.config, {name: x for path in weight_files(folder) for name, x in load_file(path).items()}


def test_every_tensor_has_one_place(saved):
    config, tensors = saved
    assert {name: x.shape for name, x in tensors.items()} == shapes_of(config)
    assert dict(accounted(tensors.items(), config)).keys() == tensors.keys()
    targets = [target_of(name) for name in tensors]
    assert len(set(targets)) == len(targets)
    parts = {}
    for target in targets:
        parts.setdefault(target.name, set()).add(target.part)
    wanted = {"qkv_proj": {"q", "k", "v"}, "gate_up_proj": {0, 1}}
    for name, found in parts.items():
        assert found == wanted.get(name.split(".")[-2], {None}), name
    assert (HEAD in tensors) != config.tie_word_embeddings


def test_a_tensor_less_is_missed(saved):
    config, tensors = saved
    for name in (list(tensors)[0], list(tensors)[-1]):
        with pytest.raises(UserError, match=f"^the folder lacks {name}; export the student anew$"):
            list(accounted([item for item in tensors.items() if item[0] != name], config))


def test_a_tensor_more_is_refused(saved):
    config, tensors = saved
    with pytest.raises(UserError, match=r"^the folder holds model.layers.9.mlp.up_proj.weight, which"):
        list(accounted({**tensors, "model.layers.9.mlp.up_proj.weight": torch.zeros(1)}.items(), config))


def test_another_shape_is_refused(saved):
    config, tensors = saved
    name = "model.norm.weight"
    with pytest.raises(UserError, match=rf"^{name} is \(47,\) in the folder, and \(48,\) by its config.json"):
        list(accounted({**tensors, name: torch.zeros(47)}.items(), config))


def test_a_tied_head_that_is_written_once_more_is_left_out():
    student = make_student("qwen3")
    tensors = student.state_dict()
    assert HEAD in tensors
    assert HEAD not in dict(accounted(tensors.items(), student.config))


def test_no_name_is_guessed():
    with pytest.raises(ValueError, match="no layer declares the parameter model.layers.0.self_attn.z_proj.weight"):
        target_of("model.layers.0.self_attn.z_proj.weight")
    assert all(name.startswith(".") and name.endswith(".") for name in JOINT)
