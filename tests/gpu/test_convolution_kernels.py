"""The short convolution's kernels against plain PyTorch."""

import pytest
import torch

from gendistill.ops.convolution import shifted_sum, short_convolution

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [
    (2, 70, 64, 4),
    (1, 5, 1, 4),
    (1, 1, 3, 4),
    (3, 2, 130, 4),
    (2, 129, 40, 3),
    (1, 65, 257, 1),
    (2, 9, 16, 8),
    (2, 3, 5, 8),
]
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]


def in_float32(x, weight, bias, positions=None):
    return shifted_sum(x.float(), weight.float(), bias.float(), positions).to(x.dtype)


def make_inputs(rows, length, channels, width, dtype, parameter_dtype, packed=None):
    torch.manual_seed(0)
    x = torch.randn(rows, length, channels, device="cuda").to(dtype)
    weight = torch.randn(channels, width, device="cuda").to(parameter_dtype)
    bias = torch.randn(channels, device="cuda").to(parameter_dtype)
    positions = None
    if packed is not None:
        index = torch.arange(length, device="cuda")
        starts = torch.rand(rows, length, device="cuda") < 0.2
        starts[:, 0] = True
        positions = (index - torch.where(starts, index, 0).cummax(dim=1).values).to(packed)
    return [tensor.requires_grad_() for tensor in (x, weight, bias)], positions


def outputs_and_gradients(function, inputs, positions, dy):
    y = function(*inputs, positions)
    return y.detach(), *torch.autograd.grad(y, inputs, dy)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry: sums over tokens leave small entries with the rounding of large ones."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    largest = expected.float().abs().max().clamp(min=1.0)
    assert ((actual.float() - expected.float()).abs().max() / largest).item() < tolerance


@pytest.mark.parametrize("packed", [None, torch.int64, torch.int32], ids=["rows", "int64", "int32"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=["fp32", "bf16", "mixed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_agree_with_plain_pytorch(shape, dtypes, packed):
    inputs, positions = make_inputs(*shape, *dtypes, packed)
    dy = torch.randn(shape[:3], device="cuda").to(dtypes[0])
    actual = outputs_and_gradients(short_convolution, inputs, positions, dy)
    expected = outputs_and_gradients(in_float32, inputs, positions, dy)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-5 if e.dtype == torch.float32 else 8e-3)


def test_strided_inputs_and_gradients():
    inputs, positions = make_inputs(2, 20, 24, 4, torch.float32, torch.float32, torch.int64)
    x, weight, bias = inputs
    inputs = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(), weight, bias]
    positions = positions.t().contiguous().t()
    dy = torch.randn(24, device="cuda").expand(2, 20, 24)
    actual = outputs_and_gradients(short_convolution, inputs, positions, dy)
    expected = outputs_and_gradients(in_float32, inputs, positions, dy)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-5)


def test_positions_that_reach_before_the_row_read_no_other_row():
    inputs, _ = make_inputs(2, 6, 8, 4, torch.float32, torch.float32)
    far, dy = torch.full((2, 6), 100, device="cuda"), torch.ones(2, 6, 8, device="cuda")
    actual = outputs_and_gradients(short_convolution, inputs, far, dy)
    expected = outputs_and_gradients(in_float32, inputs, None, dy)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-5)


def test_nothing_in_nothing_out():
    inputs, _ = make_inputs(2, 0, 8, 4, torch.float32, torch.float32)
    y, *gradients = outputs_and_gradients(short_convolution, inputs, None, torch.ones(2, 0, 8, device="cuda"))
    assert y.shape == (2, 0, 8) and not any(gradient.any() for gradient in gradients)


def test_op_registration():
    inputs, positions = make_inputs(2, 70, 24, 4, torch.float32, torch.bfloat16, torch.int64)
    taps = inputs[1].detach().t().contiguous().requires_grad_()
    op = torch.ops.gendistill.short_convolution.default
    torch.library.opcheck(op, (inputs[0], taps, inputs[2], positions))
    torch.library.opcheck(op, (inputs[0], taps, inputs[2], None))
    backward = torch.ops.gendistill.short_convolution_backward.default
    torch.library.opcheck(backward, (inputs[0].detach(), inputs[0].detach(), taps.detach(), positions))


def test_compiles_to_one_graph():
    inputs, positions = make_inputs(2, 33, 24, 4, torch.float32, torch.float32, torch.int64)
    dy = torch.randn(2, 33, 24, device="cuda")
    compiled = torch.compile(lambda *inputs: short_convolution(*inputs).sigmoid(), fullgraph=True)
    actual = outputs_and_gradients(compiled, inputs, positions, dy)
    expected = outputs_and_gradients(lambda *inputs: in_float32(*inputs).sigmoid(), inputs, positions, dy)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-5)


def test_the_same_bits_in_every_run():
    inputs, positions = make_inputs(4, 2048, 512, 4, torch.bfloat16, torch.float32, torch.int64)
    dy = torch.randn_like(inputs[0])
    first = outputs_and_gradients(short_convolution, inputs, positions, dy)
    for a, b in zip(first, outputs_and_gradients(short_convolution, inputs, positions, dy), strict=True):
        assert torch.equal(a, b)
