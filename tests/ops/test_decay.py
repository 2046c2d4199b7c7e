"""A decay gate gives the log decay of its formula, in any dtype, and none at padding."""

import pytest
import torch

from gendistill.ops import DecayGate, linear_attention
from gendistill.ops.reference import l2_normalize


def make_gate(shape, bound, mask=None, dtype=torch.float64):
    torch.manual_seed(0)
    heads, decays = shape[2], torch.Size(shape[2:]).numel()
    raw = torch.randn(shape, dtype=dtype)
    return DecayGate(raw, torch.randn(heads, dtype=dtype), torch.randn(decays, dtype=dtype), bound, mask)


@pytest.mark.parametrize("bound", [None, -5.0, -0.5])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4)], ids=["per channel", "per head"])
def test_the_formula(shape, bound):
    gate = make_gate(shape, bound)
    got = gate.log_decay()
    assert got.shape == shape and got.dtype == torch.float64
    for b, t, h, *c in torch.cartesian_prod(*[torch.arange(n) for n in shape]).tolist():
        place = h * shape[3] + c[0] if c else h
        x, A = gate.raw[b, t, h, *c] + gate.dt_bias[place], gate.A_log[h].exp()
        expected = -A * torch.log1p(x.exp()) if bound is None else bound / (1 + torch.exp(-A * x))
        torch.testing.assert_close(got[b, t, h, *c], expected)


@pytest.mark.parametrize("bound, bounded", [(None, False), (-5.0, True), (-0.1, True), (-5.1, False)])
def test_what_kernels_may_rely_on(bound, bounded):
    assert make_gate((1, 2, 3, 4), bound).is_bounded == bounded


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4)], ids=["per channel", "per head"])
def test_padding_forgets_nothing(shape):
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    masked, whole = (make_gate(shape, -5.0, m).log_decay() for m in (mask, None))
    assert (masked[mask == 0] == 0).all()
    assert torch.equal(masked[mask == 1], whole[mask == 1])


def test_bfloat16_keeps_slow_decays():
    gate = make_gate((1, 1, 1, 2), -5.0, dtype=torch.bfloat16)._replace(A_log=torch.zeros(1), dt_bias=torch.zeros(2))
    slow = gate._replace(raw=torch.full((1, 1, 1, 2), -8.0, dtype=torch.bfloat16)).log_decay()
    assert slow.dtype == torch.float32
    torch.testing.assert_close(slow, torch.full_like(slow, -5 / (1 + torch.tensor(8.0).exp().item())))


def test_the_recurrence_takes_gates_and_their_decays_alike():
    gate = make_gate((2, 70, 3, 8), -5.0)
    q, k, v = (l2_normalize(torch.randn(2, 70, 3, 8, dtype=torch.float64)) for _ in range(3))
    beta = torch.rand(2, 70, 3, dtype=torch.float64)
    forms = (linear_attention(q, k, v, g, beta) for g in (gate, gate.log_decay()))
    for got, expected in zip(*forms, strict=True):
        assert torch.equal(got, expected)
