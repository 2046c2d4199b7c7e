"""Weights put together are those that the model has now, and modules that want to be called are not read."""

import torch

from gendistill.inference.packed import packed
from gendistill.inference.rows import padded_rows
from gendistill.models.view import as_student
from small_models import make_student, make_teacher


def test_nothing_is_put_together_twice():
    student = make_student("qwen3", mixer="kda", window=8)
    assert packed(student) is packed(student)
    teacher = as_student(make_teacher("qwen2"))
    assert packed(teacher) is packed(teacher)


def test_a_weight_that_changed_in_place_or_was_exchanged_is_seen():
    student = make_student("qwen3", mixer="kda")
    projection = student.model.layers[0].linear_attn.q_proj
    first = packed(student)
    with torch.no_grad():
        projection.weight.mul_(2)
    second = packed(student)
    assert second is not first
    torch.testing.assert_close(second.layers[0].weight[: projection.out_features], projection.weight)
    projection.weight = torch.nn.Parameter(torch.zeros_like(projection.weight))
    assert packed(student).layers[0].weight[: projection.out_features].abs().max() == 0
    third = packed(student)
    projection.weight.data = torch.ones_like(projection.weight)  # which is another memory, of the same version
    assert packed(student) is not third


def test_a_window_switched_off_is_seen():
    student = make_student("qwen3", mixer="kda", window=8)
    assert packed(student).layers[0].sees_window
    student.config.window_is_on = False
    assert not packed(student).layers[0].sees_window


def test_a_hook_is_seen_when_it_comes_and_when_it_goes():
    student = make_student("qwen3", mixer="kda")
    before = packed(student)
    hook = student.model.layers[2].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert packed(student) is None
    hook.remove()
    assert before is not None and packed(student) is not None


def test_a_module_put_in_the_place_of_a_projection_is_seen():
    class Other(torch.nn.Linear):
        pass

    student = make_student("qwen3", mixer="kda")
    assert packed(student) is not None
    mixer = student.model.layers[0].linear_attn
    own = mixer.v_proj
    mixer.v_proj = Other(own.in_features, own.out_features, bias=False)
    assert packed(student) is None
    mixer.v_proj = own
    assert packed(student) is not None


def test_padded_rows():
    rows = padded_rows([[5, 2**40], [], (7,)], 3)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[5, 2**40, 0], [0, 0, 0], [7, 0, 0]]
