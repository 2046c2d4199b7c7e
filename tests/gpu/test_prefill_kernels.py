"""What prefill runs on a GPU: the recurrence without gradients, and causal attention of a piece."""

import pytest
import torch
import torch.nn.functional as F
from test_kernels import call, make_inputs, tokens

from gendistill.ops import KERNEL_BOUND, linear_attention
from gendistill.ops.bounded_kda import bounded_kda_prefill
from gendistill.ops.causal import causal_attention, load_flash_attention_3
from gendistill.ops.prefill_layer import recurrent_piece
from gendistill.ops.reference import recurrent_linear_attention
from recurrence_maker import make_recurrence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CLOSE = 2e-2  # bfloat16, relative


def error(got, expected):
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 20])
@pytest.mark.parametrize("length", [2, 15, 64, 65, 300])
@pytest.mark.parametrize("head_size", [64, 128])
def test_recurrence_in_two_pieces_is_the_reference(rows, length, head_size):
    inputs = make_inputs("kda_bounded", length, head_size, torch.bfloat16, batch=rows)
    double = {name: x.double() for name, x in inputs.items()}
    expected, expected_state = call(recurrent_linear_attention, **double)
    whole, state = call(linear_attention, **inputs)
    cut = length // 2
    first, between = call(linear_attention, **tokens(inputs, slice(cut)))
    second, last = call(linear_attention, initial_state=between, **tokens(inputs, slice(cut, None)))
    assert error(whole, expected) < CLOSE
    assert error(state, expected_state) < CLOSE
    assert error(torch.cat([first, second], 1), expected) < CLOSE
    assert error(last, expected_state) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("gates", ["floor", "one key, hardly any decay"])
def test_prefill_at_the_ends_of_gates_is_the_reference(gates, length, dtype):
    inputs = make_inputs("kda_bounded", length, 128, dtype)
    if gates == "floor":
        inputs["g"] = inputs["g"] + 30
    elif gates == "one key, hardly any decay":
        inputs["g"] = inputs["g"] - 60
        inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"])
        inputs["beta"] = torch.ones_like(inputs["beta"])
    inputs["g"] = inputs["g"].clamp(-60, 60)
    expected = call(recurrent_linear_attention, **{name: x.double() for name, x in inputs.items()})
    found = prefill(**inputs)
    assert [x.dtype for x in found] == [dtype, torch.float32]
    for got, wanted in zip(found, expected, strict=True):
        assert error(got, wanted) < CLOSE


@torch.no_grad()
def test_prefill_of_a_long_text_is_that_of_fla():
    from fla.ops.kda import chunk_kda

    inputs = make_inputs("kda_bounded", 10_000, 128, torch.bfloat16, batch=1)
    state = torch.randn(1, 16, 128, 128, device="cuda")
    gate = {"lower_bound": KERNEL_BOUND, "use_gate_in_kernel": True, "safe_gate": True}
    expected = chunk_kda(**inputs, **gate, initial_state=state, output_final_state=True)
    for got, wanted in zip(prefill(**inputs, initial_state=state), expected, strict=True):
        assert error(got, wanted) < CLOSE


def prefill(**inputs):
    return bounded_kda_prefill(**inputs, lower_bound=KERNEL_BOUND)


@torch.no_grad()
@pytest.mark.parametrize("flash", [False, True], ids=["cuDNN", "FlashAttention-3"])
@pytest.mark.parametrize(("length", "total"), [(300, 300), (1, 300), (100, 300), (129, 1025)])
def test_attention_of_the_last_tokens_is_masked_attention(monkeypatch, flash, length, total):
    if not flash:
        monkeypatch.setattr("gendistill.ops.causal._flash_attention_3", lambda q: None)
    elif load_flash_attention_3() is None:
        pytest.skip("FlashAttention-3 is not installed")
    source = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, count, 128, generator=source, device="cuda", dtype=torch.bfloat16)
        for heads, count in ((16, length), (8, total + 7), (8, total + 7))
    )
    k, v = k[:, :, :total], v[:, :, :total]  # as of a cache that has more places
    mask = torch.ones(length, total, dtype=torch.bool, device="cuda").tril(total - length)
    wide = [x.double().repeat_interleave(16 // x.shape[1], 1) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*wide, attn_mask=mask, scale=0.1)
    assert error(causal_attention(q, k, v, 0.1), expected) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("lengths", [None, (300, 65, 1)], ids=["whole", "padded"])
@pytest.mark.parametrize("start", [0, 100], ids=["first", "further"])
@pytest.mark.parametrize("share", [None, "head", "token"])
@pytest.mark.parametrize(("norm", "silu"), [(True, True), (False, False)])
@pytest.mark.parametrize("width", [64, 128])
def test_a_piece_of_a_layer_is_its_operations_one_by_one(lengths, start, share, norm, silu, width):
    torch.manual_seed(0)
    layer = make_recurrence(torch.bfloat16, "channel", -5.0, True, silu, norm, share, width=width)
    channels, taps = layer.conv_weight.shape
    states = [torch.randn(3, channels, taps), torch.randn(3, 4, width, width)]
    states = [states[0].cuda().bfloat16(), states[1].cuda()]
    qkv = torch.randn(3, 300, channels, device="cuda").bfloat16()
    narrow = torch.randn(3, 300, sum(layer.narrow.values()), device="cuda").bfloat16()
    lengths = None if lengths is None else torch.tensor(lengths, device="cuda")
    seen = None if share is None else torch.randn(3, 300, 4, width, device="cuda").bfloat16()
    found = [x.clone() for x in states]
    y = recurrent_piece(qkv, narrow, layer, *found, start, lengths, seen)
    lengths = None if lengths is None else lengths.cpu()
    y, *found = (x.cpu() for x in (y, *found))
    wide = layer._replace(**{name: x.cpu().double() for name, x in layer._asdict().items() if torch.is_tensor(x)})
    expected = [x.cpu().double() for x in states]
    qkv, narrow, seen = (None if x is None else x.cpu().double() for x in (qkv, narrow, seen))
    expected_y = recurrent_piece(qkv, narrow, wide, *expected, start, lengths, seen)
    if lengths is not None:
        valid = (torch.arange(300) < lengths[:, None])[..., None]
        assert y.isfinite().all()
        y, expected_y = y * valid, expected_y * valid
    assert error(y, expected_y) < CLOSE
    for state, wanted in zip(found, expected, strict=True):
        assert error(state, wanted) < CLOSE
