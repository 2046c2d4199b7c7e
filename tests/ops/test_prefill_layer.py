"""A piece of prompts through a linear layer: in parts, padded and token by token it is the same."""

import pytest
import torch

from gendistill.ops.decode_layer import recurrent_step
from gendistill.ops.prefill_layer import recurrent_piece
from recurrence_maker import GROUPS, HEADS, TAPS, make_recurrence

WIDTH, TOKENS = 8, 70
CHANNELS = (HEADS + 2 * GROUPS) * WIDTH
# What decays, its bound, delta rule, SiLU, norm.
KINDS = {
    "bounded": ("channel", -5.0, True, True, True),
    "unbounded": ("channel", None, True, False, False),
    "by head": ("head", None, True, True, True),
    "no delta rule": ("channel", None, False, False, True),
    "fixed": ("fixed", None, False, True, False),
}


def make_layer(kind: str, share: str | None = None):
    return make_recurrence(torch.float64, *KINDS[kind], share, width=WIDTH, device="cpu")


@pytest.fixture(params=KINDS)
def given(request):
    """A layer, the projections of two rows, and states that nothing was put in yet."""
    torch.manual_seed(0)
    layer = make_layer(request.param)
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


@pytest.mark.parametrize("share", ["head", "token"])
def test_beside_a_window_a_piece_is_its_tokens_one_by_one(share):
    torch.manual_seed(0)
    layer = make_layer("bounded", share)._replace(seen_whole=50)
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
