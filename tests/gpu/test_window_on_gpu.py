"""Windows on a GPU: the flash kernel sees what blocks see; stages and single steps in graphs are the plain ones."""

import pytest
import torch
from test_fast_training import train
from transformers.cache_utils import LinearAttentionLayer

from gendistill.distill.acceleration import GraphedMicroBatch, takes_graphs
from gendistill.distill.engine import Trainer
from gendistill.models.cache import RING_COUNT, RING_KEYS, RING_VALUES, Ring
from gendistill.models.mixers.window import attend_to_window
from gendistill.models.padding import Padding
from gendistill.ops import window as ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
B, H, G, D, SCALE = 2, 8, 2, 64, 64**-0.5
# Numbers have 8 bits; the kernel rounds its weights to as many, and the sinks' part is added to a rounded one.
CLOSE = 1e-2
# length, window, sinks: many blocks, no sinks, a text shorter than the window, many sinks, the least there is.
CASES = [(1000, 64, 4), (300, 64, 0), (50, 64, 4), (700, 128, 100), (129, 1, 1)]
STUDENTS = {
    "window": dict(mixer="window", window=48, sinks=4),
    "beside": dict(mixer="kda", window=48, sinks=4),
    "window, no sinks": dict(mixer="window", window=48, sinks=0),
    "beside, bounded": dict(mixer="kda", bound=-5.0, window=48, sinks=0),
    "beside, share by token": dict(mixer="kda", window=48, sinks=4, window_share="token"),
}


def random_qkv(length: int) -> list[torch.Tensor]:
    source = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(B, n, length, D, generator=source, device="cuda", dtype=torch.bfloat16) for n in (H, G, G)]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


@torch.no_grad()
@pytest.mark.parametrize(("length", "window", "sinks"), CASES)
def test_the_flash_path_sees_what_blocks_see(length, window, sinks):
    q, k, v = random_qkv(length)
    settings = dict(window=window, sinks=sinks, scale=SCALE)
    expected = ops.window_attention(q.float(), k.float(), v.float(), **settings)  # float32 goes in blocks
    assert ops._flash_can(q, k, v, None, None)
    assert error(ops.window_attention(q, k, v, **settings), expected) < CLOSE
    assert error(ops._in_blocks(q, k, v, window, sinks, SCALE, None, None), expected) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize(("window", "sinks"), [(64, 4), (64, 0), (16, 16)])
@pytest.mark.parametrize("pieces", [[100, 37, 300], [2, 3, 200, 1, 64], [10, 500]])
def test_pieces_by_flash_are_one_pass(window, sinks, pieces):
    """Behind earlier calls whose number of tokens is known; among the pieces are fewer tokens than sinks."""
    q, k, v = random_qkv(sum(pieces))
    expected = ops.window_attention(q.float(), k.float(), v.float(), window=window, sinks=sinks, scale=SCALE)
    layer, outputs = LinearAttentionLayer(), []
    for part in zip(*(x.split(pieces, dim=2) for x in (q, k, v)), strict=True):
        ring = Ring(layer, part[1], window, sinks)
        assert ring.past() is None or ops._flash_can(*part, None, ring.past())
        outputs.append(attend_to_window(*part, window, sinks, SCALE, None, ring, None))
    assert error(torch.cat(outputs, dim=1), expected) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("prompt", [3, 10, 100])
def test_a_captured_step_on_a_ring_buffer_is_an_eager_one(prompt):
    """Three times round the buffer, from a prompt shorter than the sinks, than the window, or longer."""
    window, sinks, steps = 16, 4, 60
    q, k, v = random_qkv(prompt + steps)
    static = [x[:, :, :1].clone() for x in (q, k, v)]

    def step(layer, inputs):
        return attend_to_window(*inputs, window, sinks, SCALE, None, Ring(layer, inputs[1], window, sinks), None)

    eager, graphed = LinearAttentionLayer(), LinearAttentionLayer()
    for layer in (eager, graphed):
        step(layer, [x[:, :, :prompt] for x in (q, k, v)])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(graphed, static)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(graphed, static)
    for index, state in eager.recurrent_states.items():  # without what the warm-up wrote
        if state is not None:
            graphed.recurrent_states[index].copy_(state)
    for t in range(prompt, prompt + steps):
        one = [x[:, :, t : t + 1] for x in (q, k, v)]
        for buffer, x in zip(static, one, strict=True):
            buffer.copy_(x)
        graph.replay()
        torch.testing.assert_close(captured, step(eager, one), rtol=0, atol=0)
    assert graphed.recurrent_states[3].tolist() == [prompt + steps] * B


@pytest.mark.parametrize("stage", ["blocks", "words"])
@pytest.mark.parametrize("packed", [False, True], ids=["whole rows", "packed"])
@pytest.mark.parametrize("student", STUDENTS)
def test_compiled_and_graphed_equals_plain(tmp_path, monkeypatch, student, stage, packed):
    options = STUDENTS[student] | (dict(window_dropout=0.5) if "beside" in student else {})
    plain, _ = train(stage, tmp_path / "plain", fast=False, packed=packed, **options)
    captured = []
    monkeypatch.setattr(
        "gendistill.distill.stage.takes_graphs", lambda *given: captured.append(takes_graphs(*given)) or captured[-1]
    )
    fast, _ = train(stage, tmp_path / "fast", fast=True, packed=packed, **options)
    assert captured and all(captured)
    # As for students without windows: rounding alone moves these losses by up to 0.5 %.
    assert [m.loss for m in fast] == pytest.approx([m.loss for m in plain], rel=1e-2)
    assert [m.gradient_norm for m in fast] == pytest.approx([m.gradient_norm for m in plain], rel=5e-2)
    assert fast[-1].loss != fast[0].loss


@pytest.mark.parametrize("student", ["window", "beside"])
def test_the_loop_never_waits_for_the_device(tmp_path, monkeypatch, student):
    """After the first step, but to capture where batches have a new shape; documents are packed."""
    start, capture = Trainer._start, GraphedMicroBatch._capture

    def watched(trainer, step):
        torch.cuda.set_sync_debug_mode("error" if step.index > 1 else "default")
        try:
            return start(trainer, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def capturing(graphed, *arguments):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return capture(graphed, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    monkeypatch.setattr(Trainer, "_start", watched)
    monkeypatch.setattr(GraphedMicroBatch, "_capture", capturing)
    history, _ = train("words", tmp_path, fast=True, **STUDENTS[student])
    assert len(history) == 6


@pytest.mark.parametrize(("window", "sinks"), [(8, 4), (70, 4), (512, 4), (5, 0)])
@pytest.mark.parametrize("length", [1, 40, 700])
def test_a_ring_is_written_as_in_plain_pytorch(monkeypatch, window, sinks, length):
    torch.manual_seed(0)
    layers = {"kernel": LinearAttentionLayer(), "plain": LinearAttentionLayer()}
    lengths = torch.tensor([length, length // 2, 1], device="cuda")
    for padding in (None, Padding(torch.arange(length, device="cuda") < lengths[:, None]), None):
        k, v = (torch.randn(3, length, 2, 64, device="cuda").transpose(1, 2) for _ in range(2))
        for name, layer in layers.items():
            monkeypatch.setattr("gendistill.models.cache.takes_kernels", lambda _, name=name: name == "kernel")
            Ring(layer, k, window, sinks).write(k, v, padding)
        found, expected = (layer.recurrent_states for layer in layers.values())
        assert torch.equal(found[RING_COUNT], expected[RING_COUNT])
        for state in (RING_KEYS, RING_VALUES):  # but for the place of padding
            assert torch.equal(found[state][:, :, :-1], expected[state][:, :, :-1])
