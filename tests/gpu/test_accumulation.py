"""Sums of gradients on a CUDA device are those that plain PyTorch makes, bit for bit."""

import pytest
import torch

from gendistill.distill.accumulation import accumulate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (4095,), (64, 64), (3, 1024, 1025)])
def test_equals_plain_addition(shape, dtype):
    torch.manual_seed(0)
    pairs = [(torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda").to(dtype)) for _ in range(19)]
    expected = [total + x for total, x in pairs]
    accumulate(pairs)
    for (total, _), sum_ in zip(pairs, expected, strict=True):
        assert torch.equal(total, sum_)


def test_a_transposed_gradient():
    total, x = torch.zeros(3, 5, device="cuda"), torch.randn(5, 3, device="cuda").bfloat16().t()
    accumulate([(total, x)])
    assert torch.equal(total, x.float())
