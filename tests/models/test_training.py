"""Compiling a training step or recomputing its activations changes no loss and no gradient."""

import copy

import pytest
import torch

from small_models import make_student, tokens


def step(student, run, **inputs):
    """Loss and gradients of a step of `student` run as `run`."""
    student.zero_grad()
    loss = run(use_cache=False, **inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in student.named_parameters()}


def packed(length, first):
    ids = tokens(2, length)
    positions = torch.cat([torch.arange(first), torch.arange(length - first)]).repeat(2, 1)
    return dict(input_ids=ids, position_ids=positions, labels=ids)


def shallow_student(layers, **options):
    """The first layers of a student: compiling takes seconds a layer."""
    student = make_student("qwen2", **options)
    student.model.layers = student.model.layers[:layers]
    student.config.layer_types = student.config.layer_types[:layers]
    return student.train()


def assert_same_step(got, expected):
    torch.testing.assert_close(got[0], expected[0])
    for name, gradient in expected[1].items():
        assert (got[1][name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # what replaces it is not in 5.17
def test_gradient_checkpointing_gives_the_same_gradients(student):
    student = copy.deepcopy(student).train()
    batch = packed(30, 11)
    expected = step(student, student, **batch)
    student.gradient_checkpointing_enable()
    assert_same_step(step(student, student, **batch), expected)
    assert all(gradient.abs().sum() > 0 for gradient in expected[1].values())


@pytest.mark.parametrize(
    ("mixer", "keep", "several_documents"),
    [
        ("kda", (1,), True),
        ("kda", (), False),
        ("gated_deltanet", (), True),
        ("gla", (1,), False),
        ("mamba2", (), True),
        ("lightning", (1,), True),
    ],
)
def test_compiled_step_equals_eager(mixer, keep, several_documents):
    """By aot_eager with inductor's decompositions: without them it mistakes the strides of softplus' gradient, and
    inductor itself takes a minute."""
    torch._dynamo.reset()
    student = shallow_student(2 if keep else 1, keep=keep, mixer=mixer)
    compiled = torch.compile(student, backend="aot_eager_decomp_partition")
    batch = packed(6, 2) if several_documents else dict(input_ids=tokens(2, 6), labels=tokens(2, 6))
    assert_same_step(step(student, compiled, **batch), step(student, student, **batch))
