"""A piece of prompts through a linear layer: in parts, padded and token by token it is the same."""

import pytest
import torch

from gendistill.ops.decode_layer import Recurrence, recurrent_step
from gendistill.ops.prefill_layer import recurrent_piece

HEADS, GROUPS, WIDTH, TAPS, TOKENS = 4, 2, 8, 4, 70
CHANNELS = (HEADS + 2 * GROUPS) * WIDTH
KINDS = {
    "bounded": {"bound": -5.0},
    "unbounded": {"bound": None},
    "by head": {"decay_weight": None, "dt_bias": torch.zeros(HEADS), "bound": None},
    "no delta rule": {"delta_rule": False, "bound": None},
    "fixed": {"fixed": -torch.rand(HEADS), "decay_weight": None, "delta_rule": False, "bound": None},
}


def make_layer(**options) -> Recurrence:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64) * 0.3

    conv_weight = draw(CHANNELS, TAPS)
    parts = {
        "conv_weight": conv_weight,
        "taps": conv_weight.t().contiguous(),
        "conv_bias": draw(CHANNELS),
        "decay_weight": draw(HEADS * WIDTH, WIDTH),
        "A_log": draw(HEADS),
        "dt_bias": draw(HEADS * WIDTH),
        "fixed": None,
        "delta_rule": True,
        "gate_weight": draw(HEADS * WIDTH, WIDTH),
        "gate_bias": draw(HEADS * WIDTH),
        "norm": draw(WIDTH),
        "eps": 1e-6,
        "silu_conv": True,
        "silu_gate": False,
        "heads": HEADS,
        "key_heads": GROUPS,
        "share_logit": None,
        "share_by_token": False,
        "seen_whole": None,
    }
    return Recurrence(**parts | options)


@pytest.fixture(params=KINDS)
def given(request):
    """A layer, the projections of two rows, and states that nothing was put in yet."""
    torch.manual_seed(0)
    layer = make_layer(**KINDS[request.param])
    qkv = torch.randn(2, TOKENS, CHANNELS, dtype=torch.float64)
    narrow = torch.randn(2, TOKENS, sum(layer.narrow.values()), dtype=torch.float64)
    return layer, qkv, narrow


def empty_states() -> tuple[torch.Tensor, torch.Tensor]:
    """Full of what is not to be looked at."""
    shapes = ((2, CHANNELS, TAPS), (2, HEADS, WIDTH, WIDTH))
    return tuple(torch.full(shape, float("nan"), dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_a_piece_in_two_is_one(given, cut):
    layer, qkv, narrow = given
    whole, parts = empty_states(), empty_states()
    y = recurrent_piece(qkv, narrow, layer, *whole, 0, None, None)
    first = recurrent_piece(qkv[:, :cut], narrow[:, :cut], layer, *parts, 0, None, None)
    second = recurrent_piece(qkv[:, cut:], narrow[:, cut:], layer, *parts, cut, None, None)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("length", [1, 3, 41])
def test_padding_behind_a_row_changes_nothing(given, length):
    layer, qkv, narrow = given
    padded, alone = empty_states(), empty_states()
    y = recurrent_piece(qkv, narrow, layer, *padded, 0, torch.tensor([TOKENS, length]), None)
    expected = recurrent_piece(qkv[:, :length], narrow[:, :length], layer, *alone, 0, None, None)
    torch.testing.assert_close(y[1, :length], expected[1])
    for found, wanted in zip(padded, alone, strict=True):
        torch.testing.assert_close(found[1], wanted[1])


def test_a_piece_is_its_tokens_one_by_one(given):
    layer, qkv, narrow = given
    piece = empty_states()
    y = recurrent_piece(qkv, narrow, layer, *piece, 0, None, None)
    steps = tuple(torch.zeros_like(state) for state in piece)
    tokens = torch.cat([qkv, narrow], -1).unbind(1)
    found = [recurrent_step(x, *steps, layer, None, torch.full((2,), t)) for t, x in enumerate(tokens)]
    torch.testing.assert_close(torch.stack(found, 1), y)
    torch.testing.assert_close(steps, piece)


@pytest.mark.parametrize("by_token", [False, True])
def test_beside_a_window_a_piece_is_its_tokens_one_by_one(by_token):
    torch.manual_seed(0)
    layer = make_layer(bound=-5.0, share_logit=torch.randn(HEADS), share_by_token=by_token, seen_whole=50)
    qkv = torch.randn(2, TOKENS, CHANNELS, dtype=torch.float64)
    narrow = torch.randn(2, TOKENS, sum(layer.narrow.values()), dtype=torch.float64)
    seen = torch.randn(2, TOKENS, HEADS, WIDTH, dtype=torch.float64)
    states, cut = empty_states(), 30
    first = recurrent_piece(qkv[:, :cut], narrow[:, :cut], layer, *states, 0, None, seen[:, :cut])
    second = recurrent_piece(qkv[:, cut:], narrow[:, cut:], layer, *states, cut, None, seen[:, cut:])
    steps = tuple(torch.zeros_like(state) for state in states)
    tokens = torch.cat([qkv, narrow], -1).unbind(1)
    found = [recurrent_step(x, *steps, layer, seen[:, t], torch.full((2,), t)) for t, x in enumerate(tokens)]
    torch.testing.assert_close(torch.stack(found, 1), torch.cat([first, second], 1))


def test_a_step_finds_its_states_among_others(given):
    layer, qkv, narrow = given
    x, position, rows = torch.cat([qkv, narrow], -1)[:, 0], torch.zeros(2), torch.tensor([3, 1])
    held = tuple(torch.randn(5, *state.shape[1:], dtype=torch.float64) for state in empty_states())
    own, before = tuple(state[rows] for state in held), tuple(state.clone() for state in held)
    expected = recurrent_step(x, *own, layer, None, position)
    torch.testing.assert_close(recurrent_step(x, *held, layer, None, position, rows), expected)
    for state, changed, old in zip(held, own, before, strict=True):
        torch.testing.assert_close(state[rows], changed)
        torch.testing.assert_close(state[[0, 2, 4]], old[[0, 2, 4]])
