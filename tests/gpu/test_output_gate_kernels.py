"""The kernels between recurrence and output projection against plain PyTorch."""

import pytest
import torch

from gendistill.ops import gated_norm
from gendistill.ops.output_gate import plain_gated_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [
    (2, 300, 16, 128),
    (1, 300, 14, 64),
    (2, 129, 3, 40),
    (1, 1, 16, 128),
    (3, 1, 2, 1),
    (1, 300, 2, 1),
    (2, 9, 2, 257),
]
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]
both_activations = pytest.mark.parametrize("activation", ["silu", "sigmoid"])
norm_or_none = pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])


def kernels(o, gate, bias, weight=None, activation="silu"):
    return gated_norm(o, gate, bias, weight, eps=0.1, activation=activation)


def in_float64(o, gate, bias, weight=None, activation="silu"):
    weight = None if weight is None else weight.double()
    return plain_gated_norm(o.double(), gate.double(), bias.double(), weight, 0.1, activation).to(gate.dtype)


def make_inputs(rows, length, heads, size, dtype, parameter_dtype, norm=True):
    """o, gate, bias and, if there is a norm, weight; a gradient of what comes of them."""
    torch.manual_seed(0)
    shapes = [(rows, length, heads, size), (rows, length, heads * size), (heads * size,), (size,)]
    dtypes = [dtype, dtype, parameter_dtype, parameter_dtype]
    inputs = [torch.randn(s, device="cuda").to(d).requires_grad_() for s, d in zip(shapes, dtypes, strict=True)]
    return inputs if norm else inputs[:3], torch.randn(shapes[1], device="cuda").to(dtype)


def output_and_gradients(function, inputs, gradient, **options):
    y = function(*inputs, **options)
    return y.detach(), *torch.autograd.grad(y, inputs, gradient)


def assert_all_close(actual, expected):
    """Relative to the largest entry: sums over tokens leave small entries with the rounding of large ones."""
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        largest = e.float().abs().max().clamp(min=1.0)
        tolerance = 1e-5 if e.dtype == torch.float32 else 8e-3
        assert ((a.float() - e.float()).abs().max() / largest).item() < tolerance


@both_activations
@norm_or_none
@pytest.mark.parametrize("dtypes", DTYPES, ids=["fp32", "bf16", "mixed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_agree_with_plain_pytorch(shape, dtypes, norm, activation):
    inputs, gradient = make_inputs(*shape, *dtypes, norm)
    actual = output_and_gradients(kernels, inputs, gradient, activation=activation)
    assert_all_close(actual, output_and_gradients(in_float64, inputs, gradient, activation=activation))


def test_strided_inputs_and_gradients():
    (o, gate, bias, weight), _ = make_inputs(2, 20, 4, 8, torch.float32, torch.float32)
    o, gate = (x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in (o, gate))
    gradient = torch.randn(32, device="cuda").expand(2, 20, 32)
    actual = output_and_gradients(kernels, [o, gate, bias, weight], gradient)
    assert_all_close(actual, output_and_gradients(in_float64, [o, gate, bias, weight], gradient))


def test_nothing_in_nothing_out():
    inputs, gradient = make_inputs(2, 0, 4, 8, torch.float32, torch.float32)
    y, do, *others = output_and_gradients(kernels, inputs, gradient)
    assert y.shape == (2, 0, 32) and do.shape == (2, 0, 4, 8) and not any(x.any() for x in others)


@norm_or_none
def test_op_registration(norm):
    inputs, dy = make_inputs(2, 70, 4, 24, torch.float32, torch.bfloat16, norm)
    inputs = inputs if norm else [*inputs, None]
    torch.library.opcheck(torch.ops.gendistill.gated_norm.default, (*inputs, 1e-5, True))
    tensors = [None if x is None else x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.gendistill.gated_norm_backward.default, (dy, *tensors, 1e-5, True))


def test_compiles_to_one_graph():
    inputs, gradient = make_inputs(2, 70, 4, 24, torch.float32, torch.float32)
    compiled = torch.compile(lambda *inputs: kernels(*inputs).sin(), fullgraph=True)
    actual = output_and_gradients(compiled, inputs, gradient)
    assert_all_close(actual, output_and_gradients(lambda *inputs: in_float64(*inputs).sin(), inputs, gradient))


def test_the_same_bits_in_every_run():
    inputs, gradient = make_inputs(4, 2048, 16, 128, torch.bfloat16, torch.float32)
    first, again = (output_and_gradients(kernels, inputs, gradient) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
