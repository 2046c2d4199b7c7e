"""The plain form of the step between projections and recurrence, against the definition written token by token."""

import pytest
import torch

from gendistill.ops.convolution import convolved_heads


def by_hand(x, weight, bias, positions, heads, key_heads, activation):
    rows, length, channels = x.shape
    size, groups = channels // (heads + 2 * key_heads), heads // key_heads
    y = torch.empty_like(x)
    for b in range(rows):
        for t in range(length):
            reach = t if positions is None else int(positions[b, t])
            taken = min(reach, weight.shape[1] - 1) + 1
            y[b, t] = bias + (weight[:, -taken:].t() * x[b, t - taken + 1 : t + 1]).sum(0)
    if activation == "silu":
        y = y * y.sigmoid()
    y = y.view(rows, length, heads + 2 * key_heads, size)
    q = [y[:, :, h] for h in range(heads)]
    k = [y[:, :, heads + h // groups] for h in range(heads)]
    v = [y[:, :, heads + key_heads + h // groups] for h in range(heads)]
    q, k = ([part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in parts] for parts in (q, k))
    return [torch.stack(parts, dim=2) for parts in (q, k, v)]


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("heads, key_heads", [(4, 2), (3, 1), (2, 2)])
def test_the_definition(heads, key_heads, packed, activation):
    torch.manual_seed(0)
    channels = (heads + 2 * key_heads) * 5
    x, bias = torch.randn(2, 9, channels, dtype=torch.float64), torch.randn(channels, dtype=torch.float64)
    weight = torch.randn(channels, 4, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6, 0]]) if packed else None
    shape = {"heads": heads, "key_heads": key_heads, "activation": activation}
    actual = convolved_heads(x, weight, bias, positions, **shape)
    for a, e in zip(actual, by_hand(x, weight, bias, positions, **shape), strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)  # and float64 as well


def test_bfloat16_is_normalised_in_float32():
    x = torch.full((1, 3, 4 * 256), 3.0).bfloat16()
    weight, bias = torch.tensor([[0.0, 1.0]]).bfloat16().expand(4 * 256, 2), torch.zeros(4 * 256).bfloat16()
    q, k, v = convolved_heads(x, weight, bias, heads=2, key_heads=1, activation="none")
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert (q == 1 / 16).all() and (k == 1 / 16).all() and (v == 3).all()


@pytest.mark.parametrize("length", [0, 1])
def test_few_tokens(length):
    x = torch.ones(2, length, 12, requires_grad=True)
    weight, bias = torch.ones(12, 4), torch.zeros(12)
    parts = convolved_heads(x, weight, bias, heads=2, key_heads=1, activation="silu")
    assert all(part.shape == (2, length, 2, 3) for part in parts)
    sum(part.sum() for part in parts).backward()
    assert x.grad.shape == x.shape


def test_channels_that_do_not_split_into_heads():
    with pytest.raises(ValueError, match="12 channels are no 3 heads"):
        convolved_heads(
            torch.ones(1, 2, 12), torch.ones(12, 4), torch.zeros(12), heads=3, key_heads=2, activation="none"
        )
