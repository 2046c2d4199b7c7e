"""The plain form of the step between recurrence and output projection, against its definition."""

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gendistill.ops import gated_norm

both_activations = pytest.mark.parametrize("activation", ["silu", "sigmoid"])
norm_or_none = pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])


def make_inputs(rows, length, heads, size, norm, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(rows, length, heads, size), (rows, length, heads * size), (heads * size,), (size,)]
    o, gate, bias, weight = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return o, gate, bias, weight if norm else None


@norm_or_none
@both_activations
def test_the_definition(activation, norm):
    o, gate, bias, weight = make_inputs(2, 3, 4, 5, norm)
    y = gated_norm(o, gate, bias, weight, eps=0.1, activation=activation)
    assert y.shape == gate.shape and y.dtype == torch.float64
    for b in range(2):
        for t in range(3):
            for h in range(4):
                rms = math.sqrt(sum(x.item() ** 2 for x in o[b, t, h]) / 5 + 0.1)
                for d in range(5):
                    z = gate[b, t, 5 * h + d].item() + bias[5 * h + d].item()
                    expected = 1 / (1 + math.exp(-z)) * (z if activation == "silu" else 1) * o[b, t, h, d].item()
                    expected *= weight[d].item() / rms if norm else 1
                    assert math.isclose(y[b, t, 5 * h + d].item(), expected, rel_tol=1e-12)


@norm_or_none
@both_activations
def test_gradients(activation, norm):
    inputs = make_inputs(2, 3, 2, 4, norm)
    assert torch.autograd.gradcheck(lambda *x: gated_norm(*x, eps=1e-6, activation=activation), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_transformers_bit_for_bit(dtype):
    o, _, _, weight = make_inputs(2, 9, 4, 16, True, dtype)
    gate, bias = torch.full((2, 9, 64), 100.0, dtype=dtype), torch.zeros(64, dtype=dtype)  # a sigmoid of 1
    norm = LlamaRMSNorm(16, eps=1e-5).to(dtype)
    norm.weight = torch.nn.Parameter(weight.detach())
    assert torch.equal(gated_norm(o, gate, bias, weight, eps=1e-5, activation="sigmoid"), norm(o).flatten(-2))


def test_bfloat16_is_normalised_in_float32():
    o = torch.tensor([1.0] * 512 + [0.0] * 512).bfloat16().view(1, 1, 1, 1024)  # bf16 sums of ones end at 256
    gate, zeros, ones = torch.full((1, 1, 1024), 100.0), torch.zeros(1024), torch.ones(1024)
    y = gated_norm(o, gate.bfloat16(), zeros.bfloat16(), ones.bfloat16(), eps=0.0, activation="sigmoid")
    assert y.dtype == torch.bfloat16 and torch.equal(y.flatten()[:512], torch.full((512,), 2**0.5).bfloat16())


def test_the_result_has_the_dtype_of_the_gate():
    o, gate, bias, weight = make_inputs(2, 3, 2, 4, True, torch.float32)
    y = gated_norm(o, gate.bfloat16(), bias, weight, eps=1e-6, activation="silu")
    assert y.dtype == torch.bfloat16


@norm_or_none
def test_no_tokens(norm):
    o, gate, bias, weight = make_inputs(2, 0, 2, 4, norm)
    y = gated_norm(o, gate, bias, weight, eps=1e-6, activation="silu")
    y.sum().backward()
    assert y.shape == (2, 0, 8) and o.grad.shape == o.shape and not bias.grad.any()


def test_an_activation_that_does_not_exist():
    with pytest.raises(ValueError, match="'relu': choose one of silu, sigmoid"):
        gated_norm(*make_inputs(1, 1, 1, 1, True), eps=1e-6, activation="relu")
