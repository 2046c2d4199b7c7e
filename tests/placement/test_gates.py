"""Gates between attention and mixers, and layers restored one by one, on a model in which two known layers recall."""

import io
import time

import pytest
import torch
from recall_model import LAYERS, MATCH, PREVIOUS, recall_model, recall_prompts
from rich.console import Console

from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.placement.gates import adam_step, gated_divergence
from gendistill.placement.layerwise import Layerwise, Others, check_student
from gendistill.placement.measurement import Measurement
from gendistill.placement.methods import METHODS
from gendistill.placement.prompts import Answered
from gendistill.placement.scoring import Scorer
from gendistill.placement.store import Store
from gendistill.recipe.placement import Gates, Restored
from gendistill.run.restore import restore_attention
from small_models import make_student, make_teacher, tokens

SETTINGS = dict(layers=2, student="folder", prompts=4)
GATES = Gates(method="gates", steps=40, prompts_per_step=2, learning_rate=0.3, penalty=0.05, **SETTINGS)


class Maker:
    """Prompts of the recall model, as a placement asks for them."""

    def make(self, count):
        return recall_prompts(count)

    def batch(self, prompts):
        return Answered.batch(prompts, {24}, "cpu")


def measurement(path):
    teacher = recall_model()
    student, _ = convert(teacher, student_config(teacher.config, [], mixer="lightning"), seed=0)
    with torch.no_grad():
        for layer in student.model.layers:
            layer.linear_attn.o_proj.weight.zero_()  # mixers that have learnt nothing: attention alone can recall
    check_student(teacher, student.requires_grad_(False))
    scorer = Scorer(Layerwise(teacher, Others("mixer", student=student)), Maker().batch(recall_prompts(4)))
    return Measurement(scorer, Maker(), Store(path, "same", time.perf_counter()), Console(file=io.StringIO()))


def test_gates_stay_open_where_attention_is_needed(tmp_path):
    found = METHODS["gates"](measurement(tmp_path / "store"), GATES)
    assert sorted(found["layers"]) == [PREVIOUS, MATCH]
    values = found["by_layer"]["values"]
    # The circuit's margins are wide: a part of its attention is enough.
    others = [value for layer, value in enumerate(values) if layer not in (PREVIOUS, MATCH)]
    assert min(values[PREVIOUS], values[MATCH]) > 5 * max(others)


class Killed(BaseException):
    pass


def test_a_killed_training_resumes_and_ends_the_same(tmp_path):
    few = GATES.model_copy(update={"steps": 6})
    expected = METHODS["gates"](measurement(tmp_path / "unbroken"), few)
    first = measurement(tmp_path / "killed")
    add, calls = first.store.add, []

    def add_some(*arguments):
        if len(calls) == 3:
            raise Killed
        calls.append(arguments)
        add(*arguments)

    first.store.add = add_some
    with pytest.raises(Killed):
        METHODS["gates"](first, few)
    assert METHODS["gates"](measurement(tmp_path / "killed"), few) == expected


def test_open_gates_are_the_teacher_and_shut_ones_the_mixers():
    teacher, student = make_teacher("qwen3").double(), make_student("qwen3", keep=(), mixer="gated_deltanet").double()
    model = Layerwise(teacher.requires_grad_(False), Others("mixer", student=student.requires_grad_(False)))
    ids = tokens(2, 17)
    states = model.last_states(ids, [(), (0, 1, 2, 3), (1, 3)])
    for kept, expected in states.items():
        gates = torch.tensor([float(layer in kept) for layer in range(4)])
        assert torch.allclose(model.gated_states(ids, gates), expected, atol=1e-6), kept
    assert not torch.allclose(states[()], states[(1, 3)], atol=1e-2)


def test_the_gradient_by_the_gates_is_that_of_differences():
    teacher, student = make_teacher("qwen2").double(), make_student("qwen2", keep=(), mixer="gla").double()
    model = Layerwise(teacher.requires_grad_(False), Others("mixer", student=student.requires_grad_(False)))
    answered = Maker().batch(recall_prompts(2))
    gates = torch.tensor([0.9, 0.5, 0.2, 0.7], requires_grad=True)
    gated_divergence(model, answered, gates).backward()
    for layer in range(4):
        shift = 0.001 * torch.eye(4)[layer]
        with torch.no_grad():
            above, below = (gated_divergence(model, answered, gates + sign * shift) for sign in (1, -1))
        assert gates.grad[layer].item() == pytest.approx(((above - below) / 0.002).item(), rel=0.05, abs=1e-3)


def test_adam_is_that_of_torch():
    start = torch.randn(5, dtype=torch.float64)
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=0.1)
    state = torch.stack([start, torch.zeros_like(start), torch.zeros_like(start)])
    for step in range(1, 6):
        parameters.grad = 2 * parameters.detach() + step
        state = adam_step(state, 2 * state[0] + step, step, 0.1)
        optimizer.step()
        assert torch.allclose(state[0], parameters.detach(), atol=1e-6)


def test_a_student_with_a_layer_restored_computes_what_is_scored():
    teacher, student = make_teacher("llama").double(), make_student("llama", keep=(), mixer="kda").double()
    restored = restore_attention(teacher, student, 2).double()
    ids = tokens(2, 17)
    with torch.no_grad():
        states = Layerwise(teacher, Others("mixer", student=student)).last_states(ids, [(2,)])[(2,)]
        assert torch.allclose(restored(input_ids=ids).logits, teacher.lm_head(teacher.model.norm(states)), atol=1e-4)
    assert student.config.is_pure and restored.config.layers_of_type("full_attention") == [2]


def test_layers_restored_one_by_one_are_ranked_by_kl(tmp_path):
    measured = measurement(tmp_path / "store")
    found = METHODS["kl"](measured, Restored(method="kl", **SETTINGS))
    values = found["by_layer"]["values"]
    assert values == [measured.scores[(layer,)].kl for layer in range(LAYERS)]
    assert found["layers"] == sorted(range(LAYERS), key=lambda layer: values[layer])[:2]
