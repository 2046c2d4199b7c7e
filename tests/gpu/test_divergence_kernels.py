"""The vocabulary losses' kernel against their plain form in float64."""

import pytest
import torch

from gendistill.distill.divergence_kernels import SETTINGS, kernel_vocabulary_losses
from gendistill.distill.divergences import fused_losses, vocabulary_losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OBJECTIVES = [{"forward_kl": 0.7}, {"cross_entropy": 0.7}, {"cross_entropy": 0.3, "forward_kl": 0.7}]
TILE = 8 * SETTINGS["LANES"]  # of 2-byte logits
SIZES = [  # tokens, vocabulary, columns of student and of teacher
    (1, 7, 7, 7),
    (3, 7, 9, TILE + 900),
    (3, 7, 2 * TILE + 900, 9),
    (5, TILE, TILE, TILE),
    (5, 2 * TILE + 301, 2 * TILE + 320, 2 * TILE + 303),
    (4, 3 * TILE - 16, 3 * TILE, 3 * TILE - 16),
]


def problem(tokens, vocabulary, width, teacher_width, dtype, spread=3.0):
    """Logits with NaN for padding, targets that include the last word, and weights that include zero."""
    generator = torch.Generator().manual_seed(tokens * width)
    student = (torch.randn(tokens, width, generator=generator) * spread).clamp(-80, 80)
    teacher = (torch.randn(tokens, teacher_width, generator=generator) * spread).clamp(-80, 80)
    student[:, vocabulary:], teacher[:, vocabulary:] = torch.nan, torch.nan
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    targets[0], weights[1:2] = vocabulary - 1, 0
    return student.to("cuda", dtype), teacher.to("cuda", dtype), targets.cuda(), weights.cuda()


def assert_right(student, teacher, targets, weights, tolerance=1e-5, **settings):
    expected_gradient = student.double()
    expected = vocabulary_losses(expected_gradient, teacher.double(), targets, weights, **settings)
    values = kernel_vocabulary_losses(student, teacher, targets, weights, **settings)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=tolerance, atol=0)
    # Where p and q nearly agree, what is left has the rounding of both.
    close = {"rtol": 1e-5 if student.dtype == torch.float32 else 2**-8, "atol": 3e-6 * weights.max().item()}
    torch.testing.assert_close(student.double(), expected_gradient, **close)
    assert not student[:, settings["vocabulary"] :].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("terms", OBJECTIVES, ids=lambda terms: "+".join(terms))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradient_are_those_of_the_plain_form(size, terms, temperature, dtype):
    assert_right(*problem(*size, dtype), terms=terms, vocabulary=size[1], temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("terms", OBJECTIVES, ids=lambda terms: "+".join(terms))
def test_extreme_logits(terms, dtype):
    assert_right(*problem(5, 9000, 9008, 9000, dtype, 60.0), terms=terms, vocabulary=9000, temperature=1.0)


def test_two_models_that_nearly_agree():
    _, teacher, *rest = problem(33, 151_936, 8, 151_936, torch.bfloat16)
    student = (teacher + 0.02 * torch.randn(teacher.shape, device=teacher.device)).bfloat16()
    settings = {"terms": {"forward_kl": 1.0}, "vocabulary": 151_936, "temperature": 1.0}
    assert_right(student, teacher, *rest, tolerance=5e-3, **settings)


def test_rows_of_a_larger_tensor_and_nothing_beside_them():
    student, teacher, *rest = problem(5, 9000, 9008, 9000, torch.bfloat16)
    around = torch.ones(5, 9011, dtype=torch.bfloat16, device=student.device)
    around[:, 2:9010] = student
    settings = {"terms": OBJECTIVES[-1], "vocabulary": 9000, "temperature": 1.0}
    assert_right(around[:, 2:9010], torch.cat([teacher, teacher], 1)[:, 9000:], *rest, **settings)
    assert (around[:, :2] == 1).all() and (around[:, 9010:] == 1).all()


@pytest.mark.parametrize("vocabulary", [151_936, 151_669])
def test_at_real_size_with_the_same_bits_in_every_run(vocabulary):
    student, *rest = problem(33, vocabulary, 151_936, 151_936, torch.bfloat16)
    settings = {"terms": OBJECTIVES[-1], "vocabulary": vocabulary, "temperature": 1.0}
    first, again = student.clone(), student.clone()
    values = [kernel_vocabulary_losses(logits, *rest, **settings) for logits in (first, again)]
    assert torch.equal(first, again) and torch.equal(*values)
    assert_right(student, *rest, **settings)


def test_which_terms_it_is_used_for():
    assert all(fused_losses(terms) is kernel_vocabulary_losses for terms in OBJECTIVES)
    assert fused_losses({"forward_kl": 1.0, "reverse_kl": 0.5}) is not kernel_vocabulary_losses
