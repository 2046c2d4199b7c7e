"""The kernels of a decoding step against plain PyTorch, also inside a CUDA graph; prefill by graph against eager."""

import pytest
import torch

from gendistill.inference.prefill import prefill
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.ops import set_backend
from gendistill.ops.causal import causal_attention
from gendistill.ops.decode_attention import decode_attention
from gendistill.ops.decode_layer import recurrent_step
from gendistill.ops.decode_linear import decode_linear
from recurrence_maker import make_recurrence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@pytest.fixture
def plainly():
    """Computes something by plain PyTorch on the GPU."""

    def compute(function, *arguments, **options):
        set_backend("reference")
        try:
            return function(*arguments, **options)
        finally:
            set_backend("auto")

    return compute


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("batch", "places", "width"), [(1, 9000, 128), (5, 700, 64), (300, 40, 128)])
def test_attention_reads_lengths_inside_a_graph(dtype, batch, places, width, plainly):
    torch.manual_seed(0)
    q = torch.randn(batch, 8, width, device="cuda", dtype=dtype)
    keys, values = (torch.randn(batch, 2, places, width, device="cuda", dtype=dtype) for _ in range(2))
    lengths = torch.randint(1, places + 1, (batch,), device="cuda")
    decode_attention(q, keys, values, lengths, 0.1)  # compiled outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = decode_attention(q, keys, values, lengths, 0.1)
    for length in (1, places // 2, places):
        lengths.fill_(length)
        lengths[0] = 0 if batch > 1 else length
        graph.replay()
        expected = plainly(decode_attention, q, keys, values, lengths, 0.1)
        torch.testing.assert_close(o, expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 20])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 3072), (896, 130), (9000, 512)])
def test_products_of_few_rows(dtype, rows, inputs, outputs, plainly):
    torch.manual_seed(0)
    x = torch.randn(rows, inputs, device="cuda", dtype=dtype)
    weight, up = (torch.randn(outputs, inputs, device="cuda", dtype=dtype) / inputs**0.5 for _ in range(2))
    bias = torch.randn(outputs, device="cuda", dtype=dtype)
    residual = torch.randn(rows, outputs, device="cuda", dtype=dtype)
    norm = (torch.randn(inputs, device="cuda", dtype=dtype), 1e-6)
    for options in ({}, {"norm": norm}, {"norm": norm, "up": (up, None)}, {"residual": residual}):
        got = decode_linear(x, weight, bias, **options)
        expected = plainly(decode_linear, x, weight, bias, **options)
        # float32 products of several rows run through TF32.
        bound = max(BOUNDS[dtype], 5e-3)
        torch.testing.assert_close(got, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    "kind",
    [
        ("channel", -5.0, True, True, True, "token"),
        ("channel", None, True, False, False, None),
        ("head", None, True, True, True, "head"),
        ("head", -5.0, False, True, True, "token"),
        ("fixed", None, False, False, True, None),
    ],
)
@pytest.mark.parametrize("among", [False, True], ids=["as they come", "among others"])
@torch.inference_mode()
def test_a_linear_layers_step(dtype, kind, among, plainly):
    torch.manual_seed(0)
    layer = make_recurrence(dtype, *kind)
    rows, channels = 9, 8 * 64
    x = torch.randn(rows, channels + sum(layer.narrow.values()), device="cuda", dtype=dtype)
    held = 20 if among else rows
    where = torch.randperm(held, device="cuda")[:rows] if among else None
    conv_state = torch.randn(held, channels, 4, device="cuda", dtype=dtype)
    state = torch.randn(held, 2, 4, 64, 64, device="cuda")  # with something between them
    seen = torch.randn(rows, 4, 64, device="cuda", dtype=dtype) if layer.share_logit is not None else None
    position = torch.arange(rows, device="cuda")  # on both sides of what a window sees whole
    by_kernels, plain = ((conv_state.clone(), state.clone()[:, 0]) for _ in range(2))

    def step(conv_state, state):
        return recurrent_step(x, conv_state, state, layer, seen, position, where)

    found, expected = step(*by_kernels), plainly(step, *plain)
    for got, wanted in zip((found, *by_kernels), (expected, *plain), strict=True):
        torch.testing.assert_close(got.float(), wanted.float(), rtol=BOUNDS[dtype], atol=BOUNDS[dtype])
    if seen is not None:  # to the last bit
        assert torch.equal(found[: layer.seen_whole], seen[: layer.seen_whole].flatten(1))


@pytest.mark.parametrize(("tokens", "past"), [(300, 0), (300, 777), (1, 50), (2048, 4096)])
def test_causal_attention_in_two_parts(tokens, past):
    torch.manual_seed(0)
    q = torch.randn(2, 8, tokens, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, 2, past + tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device="cuda").tril(past)
    wide = (x.float() for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=mask, scale=0.1, enable_gqa=True)
    torch.testing.assert_close(causal_attention(q, k, v, 0.1).float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("options", [{"log_decay_bound": -5.0}, {"mixer": "window", "window": 64}, {"window": 64}])
@torch.inference_mode()
def test_prefill_by_graph_is_prefill_and_is_the_forward_pass(options):
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    shape = dict(vocab_size=500, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, head_dim=64, initializer_range=0.3, max_position_embeddings=2048)
    config = Qwen3Config(**shape)
    teacher = AutoModelForCausalLM.from_config(config).eval()
    student = convert(teacher, student_config(config, [1], **options), seed=0)[0].cuda()
    draw = torch.Generator().manual_seed(0)
    for lengths in ([700], [512], [300, 17, 256]):
        prompts = [torch.randint(2, 500, (length,), generator=draw).tolist() for length in lengths]
        found = [prefill(student, prompts, None, 800).logits for _ in range(3)]  # eager, captured, replayed
        for logits in found[1:]:
            torch.testing.assert_close(logits, found[0], rtol=5e-3, atol=5e-3)
        for row, prompt in enumerate(prompts):
            whole = student(torch.tensor([prompt], device="cuda"), use_cache=False).logits[0, -1]
            torch.testing.assert_close(found[0][row], whole, rtol=5e-2, atol=5e-2)  # TF32, enlarged by norms
