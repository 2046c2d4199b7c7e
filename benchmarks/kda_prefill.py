"""Prefill by Kimi Delta Attention with bounded gates: fla's kernels and the package's, over launch settings.

    python benchmarks/kda_prefill.py > results/gpu/kda_prefill.txt     # on a CUDA device

First the errors against the recurrence in double precision, where gates are everyday, at their floor, or let hardly
anything decay while all keys are the same; then the times of each kernel (`ops/kda_prefill_kernels.py`) at several
settings, those of the package first; and those of a layer between its projections, convolution and gates in it. Times
are the least of many, in microseconds: of one row with 16 heads of 128, 8 of keys.
"""

import itertools
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from fla.ops.kda import chunk_kda
from ledger import gpu_machine, takes_no_arguments

from gendistill.ops import kda_prefill_kernels as kernels
from gendistill.ops import prefill_convolution_kernels as convolution
from gendistill.ops import prefill_outputs_kernels as ends
from gendistill.ops.bounded_kda import bounded_kda_prefill
from gendistill.ops.decay import DecayGate
from gendistill.ops.decode_layer import Recurrence
from gendistill.ops.prefill_layer import recurrent_piece
from gendistill.ops.reference import recurrent_linear_attention

LENGTHS = (2048, 8192, 16384)  # tokens
HEADS, KEY_HEADS, WIDTH, BOUND = 16, 8, 128, -5.0
REPEATS = 200
SETTINGS = {
    "PRODUCTS": [{"KEYS": keys, "num_warps": 4, "num_stages": 1} for keys in (32, 128)],
    "SOLUTIONS": [{"num_warps": 8, "num_stages": 1}],
    "FINE": [{"COLUMNS": 16, "STAGES": 3, "num_warps": 4}],
}
OUTPUTS = [{"num_warps": warps, "num_stages": stages} for warps, stages in itertools.product((4, 8), (1, 2))]


def make_inputs(length: int, gates: str) -> list[torch.Tensor]:
    """q, k, v, what gates are projected from, write strengths, A_log, dt_bias. "same": one key, hardly any decay."""
    source = torch.Generator("cuda").manual_seed(0)
    q, k, v, raw = (torch.randn(1, length, HEADS, WIDTH, generator=source, device="cuda") for _ in range(4))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    beta = torch.rand(1, length, HEADS, generator=source, device="cuda")
    if gates == "floor":  # the lowest decay that there is
        raw += 20
    elif gates == "same":
        k, beta, raw = k[:, :1].expand_as(k).contiguous(), torch.ones_like(beta), raw - 20
    elif gates != "mixed":
        raise ValueError(f"gates are mixed, floor or same, not '{gates}'")
    A_log, dt_bias = torch.zeros(HEADS, device="cuda"), torch.zeros(HEADS * WIDTH, device="cuda")
    return [*(x.bfloat16() for x in (q, k, v, raw * 3)), beta, A_log, dt_bias]


def by_fla(q, k, v, raw, beta, A_log, dt_bias) -> tuple[torch.Tensor, torch.Tensor]:
    gate = {"A_log": A_log, "dt_bias": dt_bias, "lower_bound": BOUND, "use_gate_in_kernel": True, "safe_gate": True}
    return chunk_kda(q, k, v, raw, beta, output_final_state=True, **gate)


def by_package(q, k, v, raw, beta, A_log, dt_bias) -> tuple[torch.Tensor, torch.Tensor]:
    return bounded_kda_prefill(q, k, v, raw, beta, A_log=A_log, dt_bias=dt_bias, lower_bound=BOUND)


def make_layer() -> Recurrence:
    """Of random weights."""

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device="cuda") * shape[-1] ** -0.5).bfloat16()

    channels, wide = (HEADS + 2 * KEY_HEADS) * WIDTH, HEADS * WIDTH
    return Recurrence(
        conv_weight=draw(channels, 4),
        conv_bias=draw(channels),
        decay_weight=draw(wide, WIDTH),
        A_log=torch.zeros(HEADS, device="cuda"),
        dt_bias=torch.zeros(wide, device="cuda"),
        bound=BOUND,
        fixed=None,
        delta_rule=True,
        gate_weight=draw(wide, WIDTH),
        gate_bias=draw(wide),
        norm=torch.ones(WIDTH, device="cuda").bfloat16(),
        eps=1e-6,
        silu_conv=False,
        silu_gate=True,
        heads=HEADS,
        key_heads=KEY_HEADS,
        share_logit=None,
        share_by_token=False,
        seen_whole=None,
    )


def time_layer(length: int) -> None:
    layer = make_layer()
    qkv = torch.randn(1, length, len(layer.conv_bias), device="cuda").bfloat16()
    narrow = torch.randn(1, length, sum(layer.narrow.values()), device="cuda").bfloat16()
    conv_state = qkv.new_empty(1, qkv.shape[2], 4)
    state = torch.empty(1, HEADS, WIDTH, WIDTH, device="cuda")
    convolve = partial(convolution.convolved_piece, qkv, layer.conv_weight, layer.conv_bias, conv_state, False, None)
    for tokens, warps in ((64, 8), (64, 4), (32, 4), (16, 4), (16, 2)):
        with mock.patch.object(convolution, "SETTING", {"TOKENS": tokens, "num_warps": warps}):
            time = took(captured(convolve, HEADS, KEY_HEADS, False))
        print(f"  convolution, {tokens} tokens a program, {warps} warps {time}", flush=True)
    whole = captured(recurrent_piece, qkv, narrow, layer, conv_state, state, 0, None, None)
    print(f"  a layer between its projections, as a graph {took(whole)}", flush=True)
    for setting in OUTPUTS:
        with mock.patch.object(ends, "SETTING", setting):
            whole = captured(recurrent_piece, qkv, narrow, layer, conv_state, state, 0, None, None)
            print(f"  the same, outputs {setting} {took(whole)}", flush=True)


def captured(function: Callable, *given) -> Callable:
    """The function's launches as one graph."""
    for _ in range(2):
        function(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*given)
    return graph.replay


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def took(function: Callable, *given) -> str:
    for _ in range(3):
        function(*given)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for before, after in events:
        before.record()
        function(*given)
        after.record()
    torch.cuda.synchronize()
    return f"{1e3 * min(before.elapsed_time(after) for before, after in events):.1f}"


@torch.no_grad()
def main() -> None:
    print(gpu_machine())
    for gates in ("mixed", "floor", "same"):
        given = make_inputs(300, gates)
        q, k, v, raw, beta, A_log, dt_bias = (x.double() for x in given)
        expected, state = recurrent_linear_attention(q, k, v, DecayGate(raw, A_log, dt_bias, BOUND).log_decay(), beta)
        for name, form in (("fla's", by_fla), ("the package's", by_package)):
            o, last = form(*given)
            print(f"{gates}, 300 tokens, {name}: errors {error(o, expected):.1e}, {error(last, state):.1e}", flush=True)
    for length in LENGTHS:
        given = make_inputs(length, "mixed")
        q, k, v, raw, beta, A_log, dt_bias = given
        print(f"{length} tokens: fla's {took(by_fla, *given)}, the package's {took(by_package, *given)}", flush=True)
        gate = DecayGate(raw.flatten(2), A_log, dt_bias, BOUND)
        _, writing, w, L, _, decay = kernels.products(q, k, gate, None, beta, None)
        u = kernels.solve(v, beta, False, L, w.clone(), None)
        final = torch.empty(1, HEADS, WIDTH, WIDTH, device="cuda")
        calls = {
            "PRODUCTS": partial(kernels.products, q, k, gate, None, beta, None),
            "SOLUTIONS": partial(kernels.solve, v, beta, False, L, w, None),
            "FINE": partial(kernels.chunks, writing, w, u, decay, None, final),
        }
        for name, call in calls.items():
            for setting in [getattr(kernels, name), *SETTINGS[name]]:
                with mock.patch.object(kernels, name, setting):
                    print(f"  {name} {setting} {took(captured(call))}", flush=True)
        time_layer(length)


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
