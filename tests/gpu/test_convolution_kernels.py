"""The kernels between projections and recurrence against plain PyTorch."""

import pytest
import torch

from gendistill.ops.convolution import convolved_heads, plain_convolved_heads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [  # rows, length, heads, key heads, head size, taps
    (2, 300, 16, 8, 128, 4),
    (2, 300, 14, 2, 64, 4),
    (1, 5, 2, 1, 1, 4),
    (1, 1, 2, 2, 3, 4),
    (3, 2, 3, 3, 20, 4),
    (2, 129, 4, 1, 40, 3),
    (1, 513, 2, 1, 257, 1),
    (2, 9, 2, 2, 16, 8),
    (2, 3, 2, 1, 5, 8),
]
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]
both_activations = pytest.mark.parametrize("activation", ["none", "silu"])


def in_float64(x, weight, bias, positions=None, *, heads, key_heads, activation):
    parameters = (x.double(), weight.double(), bias.double())
    parts = plain_convolved_heads(*parameters, positions, heads, key_heads, activation == "silu")
    return tuple(part.to(x.dtype) for part in parts)


def make_inputs(rows, length, heads, key_heads, size, width, dtype, parameter_dtype, packed=None, activation="silu"):
    torch.manual_seed(0)
    channels = (heads + 2 * key_heads) * size
    x = torch.randn(rows, length, channels, device="cuda").to(dtype)
    weight = torch.randn(channels, width, device="cuda").to(parameter_dtype)
    bias = torch.randn(channels, device="cuda").to(parameter_dtype)
    positions = None
    if packed is not None:
        index = torch.arange(length, device="cuda")
        starts = torch.rand(rows, length, device="cuda") < 0.2
        starts[:, 0] = True
        positions = (index - torch.where(starts, index, 0).cummax(dim=1).values).to(packed)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    return inputs, positions, {"heads": heads, "key_heads": key_heads, "activation": activation}


def make_gradients(x, heads, key_heads, activation):
    shape = (*x.shape[:2], heads, x.shape[2] // (heads + 2 * key_heads))
    return [torch.randn(shape, device="cuda").to(x.dtype) for _ in "qkv"]


def outputs_and_gradients(function, inputs, positions, shape, gradients):
    outputs = function(*inputs, positions, **shape)
    return *(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, gradients)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry: sums over tokens leave small entries with the rounding of large ones."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    largest = expected.float().abs().max().clamp(min=1.0)
    assert ((actual.float() - expected.float()).abs().max() / largest).item() < tolerance


def assert_all_close(inputs, positions, shape, gradients, function=convolved_heads, reference_positions="same"):
    reference_positions = positions if isinstance(reference_positions, str) else reference_positions
    actual = outputs_and_gradients(function, inputs, positions, shape, gradients)
    expected = outputs_and_gradients(in_float64, inputs, reference_positions, shape, gradients)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-5 if e.dtype == torch.float32 else 8e-3)
    assert all(y.is_contiguous() for y in actual[:3])


@both_activations
@pytest.mark.parametrize("packed", [None, torch.int64, torch.int32], ids=["rows", "int64", "int32"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=["fp32", "bf16", "mixed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_agree_with_plain_pytorch(shape, dtypes, packed, activation):
    inputs, positions, shape = make_inputs(*shape, *dtypes, packed, activation)
    assert_all_close(inputs, positions, shape, make_gradients(inputs[0], **shape))


def test_strided_inputs_and_gradients():
    inputs, positions, shape = make_inputs(2, 20, 4, 2, 6, 4, torch.float32, torch.float32, torch.int64)
    x, weight, bias = inputs
    inputs = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(), weight, bias]
    gradients = [torch.randn(6, device="cuda").expand(2, 20, 4, 6) for _ in "qkv"]
    assert_all_close(inputs, positions.t().contiguous().t(), shape, gradients)


def test_positions_that_reach_before_the_row_read_no_other_row():
    inputs, _, shape = make_inputs(2, 6, 2, 1, 4, 4, torch.float32, torch.float32)
    far = torch.full((2, 6), 100, device="cuda")
    assert_all_close(inputs, far, shape, make_gradients(inputs[0], **shape), reference_positions=None)


def test_what_lies_behind_a_row_does_not_matter():
    """Walks that begin past the row's end read nothing there: NaN in the next row stays there."""
    inputs, positions, shape = make_inputs(2, 70, 2, 1, 128, 4, torch.float32, torch.float32)
    x, weight, bias = inputs
    spoilt = torch.cat([x[:1], torch.full_like(x[:1], torch.nan)]).detach().requires_grad_()
    gradients = make_gradients(x, **shape)
    gradients = [torch.cat([dy[:1], torch.zeros_like(dy[:1])]) for dy in gradients]
    clean = outputs_and_gradients(convolved_heads, [x, weight, bias], positions, shape, gradients)
    actual = outputs_and_gradients(convolved_heads, [spoilt, weight, bias], positions, shape, gradients)
    assert all(torch.equal(a[0], c[0]) for a, c in zip(actual[:4], clean[:4], strict=True))


def test_only_some_outputs_are_used():
    inputs, positions, shape = make_inputs(2, 33, 4, 2, 16, 4, torch.float32, torch.float32, torch.int64)
    actual = torch.autograd.grad(convolved_heads(*inputs, positions, **shape)[1].sum(), inputs)
    expected = torch.autograd.grad(in_float64(*inputs, positions, **shape)[1].sum(), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-5)


def test_zeros_stay_zeros():
    inputs, positions, shape = make_inputs(1, 5, 2, 1, 64, 4, torch.float32, torch.float32)
    zeros = [torch.zeros_like(tensor).requires_grad_() for tensor in inputs]
    assert not any(y.any() for y in convolved_heads(*zeros, positions, **shape))


@pytest.mark.parametrize("rows, length", [(2, 0), (0, 3)])
def test_nothing_in_nothing_out(rows, length):
    inputs, _, shape = make_inputs(rows, length, 4, 2, 8, 4, torch.float32, torch.float32)
    gradients = [torch.ones(rows, length, 4, 8, device="cuda") for _ in "qkv"]
    q, k, v, *gradients = outputs_and_gradients(convolved_heads, inputs, None, shape, gradients)
    assert q.shape == k.shape == v.shape == (rows, length, 4, 8) and not any(dx.any() for dx in gradients)


def test_op_registration():
    inputs, positions, _ = make_inputs(2, 70, 4, 2, 24, 4, torch.float32, torch.bfloat16, torch.int64)
    x, weight, bias = inputs
    taps = weight.detach().t().contiguous().requires_grad_()
    op = torch.ops.gendistill.convolved_heads.default
    torch.library.opcheck(op, (x, taps, bias, positions, 4, 2, True))
    torch.library.opcheck(op, (x, taps, bias, None, 4, 2, False))
    dy = torch.randn(2, 70, 4, 24, device="cuda")
    tensors = [tensor.detach() for tensor in (x, taps, bias)]
    backward = torch.ops.gendistill.convolved_heads_backward.default
    torch.library.opcheck(backward, (dy, dy, dy, *tensors, positions, 4, 2, True))


def test_compiles_to_one_graph():
    inputs, positions, shape = make_inputs(2, 33, 4, 2, 24, 4, torch.float32, torch.float32, torch.int64)

    def model(form, *inputs):
        return tuple(y.sigmoid() for y in form(*inputs, **shape))

    compiled = torch.compile(lambda *inputs: model(convolved_heads, *inputs), fullgraph=True)
    gradients = make_gradients(inputs[0], **shape)
    actual = outputs_and_gradients(compiled, inputs, positions, {}, gradients)
    expected = outputs_and_gradients(lambda *inputs: model(in_float64, *inputs), inputs, positions, {}, gradients)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-5)


def test_a_cuda_graph_reads_its_inputs_anew():
    inputs, positions, shape = make_inputs(2, 300, 4, 2, 64, 4, torch.bfloat16, torch.float32, torch.int64)
    gradients = make_gradients(inputs[0], **shape)
    static = [torch.zeros_like(tensor).requires_grad_() for tensor in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        outputs_and_gradients(convolved_heads, static, positions, shape, gradients)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs_and_gradients(convolved_heads, static, positions, shape, gradients)
    with torch.no_grad():
        for still, tensor in zip(static, inputs, strict=True):
            still.copy_(tensor)
    graph.replay()
    for a, e in zip(captured, outputs_and_gradients(convolved_heads, inputs, positions, shape, gradients), strict=True):
        assert torch.equal(a, e)


def test_the_same_bits_in_every_run():
    inputs, positions, shape = make_inputs(4, 2048, 8, 4, 64, 4, torch.bfloat16, torch.float32, torch.int64)
    gradients = make_gradients(inputs[0], **shape)
    first = outputs_and_gradients(convolved_heads, inputs, positions, shape, gradients)
    again = outputs_and_gradients(convolved_heads, inputs, positions, shape, gradients)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
