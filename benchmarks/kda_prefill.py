"""Prefill by Kimi Delta Attention with bounded gates: fla's kernels and the package's, over launch settings.

    python benchmarks/kda_prefill.py > results/gpu/kda_prefill.txt     # on a CUDA device

First the errors against the recurrence in double precision, where gates are everyday, at their floor, or let hardly
anything decay while all keys are the same; then the times of each kernel (`ops/kda_prefill_kernels.py`) at several
settings, those of the package first, and of the convolution before it. Times are the least of many, in microseconds:
of one row with 16 heads of 128.

A trial besides: the row in pieces, as one CUDA graph, in which the sweep over one piece's chunks, which fills a fifth
of the GPU, runs beside the products of the next.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from fla.ops.kda import chunk_kda
from ledger import gpu_machine, takes_no_arguments

from gendistill.ops import convolution_kernels
from gendistill.ops import kda_prefill_kernels as kernels
from gendistill.ops.bounded_kda import bounded_kda_prefill
from gendistill.ops.convolution import convolved_heads
from gendistill.ops.decay import DecayGate
from gendistill.ops.reference import recurrent_linear_attention

LENGTHS = (2048, 8192, 16384)  # tokens
HEADS, WIDTH, BOUND = 16, 128, -5.0
REPEATS = 200
SETTINGS = {
    "PRODUCTS": [
        {"KEYS": keys, "num_warps": warps, "num_stages": 1, "maxnreg": most}
        for keys, (warps, most) in itertools.product((32, 64, 128), ((4, None), (8, None), (8, 128)))
    ],
    "SOLUTIONS": [{"num_warps": warps, "num_stages": 1} for warps in (4, 8)],
    "FINE": [
        {"COLUMNS": columns, "STAGES": stages, "num_warps": 4}
        for columns, stages in itertools.product((16, 32), (2, 3, 4))
    ],
    "OUTPUTS": [
        {"COLUMNS": columns, "num_warps": warps, "num_stages": 2}
        for columns, warps in itertools.product((64, 128), (4, 8))
    ],
}
PIECES = (1, 2, 4, 8)  # of a row
WALKS = (32, 64, 128, 256)  # tokens of a program of the convolution


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


def in_pieces(q, k, v, raw, beta, A_log, dt_bias, pieces: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `by_package`, with the sweep on a stream of its own; one row of a multiple of `pieces` chunks."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream(priority=-1)
    parts = list(zip(*(x.chunk(pieces, 1) for x in (q, k, v, raw, beta)), strict=True))
    swept: list[tuple] = []
    state, read = None, []
    for q_, k_, v_, raw_, beta_ in parts:
        reading, writing, w, L, P, decay = kernels.products(q_, k_, raw_, beta_, A_log, dt_bias, BOUND)
        u = kernels.solve(v_, beta_, L, w)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            h, v_new, state = kernels.chunks(writing, w, u, decay, state)
        swept.append((side.record_event(), reading, h, v_new, P, q_.shape[1], writing, w, u, decay))
    for done, reading, h, v_new, P, length, *_ in swept:
        main.wait_event(done)
        read.append(kernels.outputs(reading, h, v_new, P, length))
    return torch.cat(read, 1), state


def captured(function: Callable, *given) -> Callable:
    """The function's launches as one graph."""
    for _ in range(2):
        function(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*given)
    return graph.replay


def convolutions(length: int) -> Iterator[str]:
    x = torch.randn(1, length, HEADS * 2 * WIDTH, device="cuda", dtype=torch.bfloat16)  # half as many key heads
    weight = torch.randn(x.shape[2], 4, device="cuda", dtype=torch.bfloat16)
    bias = torch.zeros(x.shape[2], device="cuda", dtype=torch.bfloat16)
    how = dict(heads=HEADS, key_heads=HEADS // 2, activation="silu")
    for tokens in WALKS:
        with mock.patch.dict(convolution_kernels.FORWARD, TOKENS=tokens):
            yield f"  convolution, {tokens} tokens a program {took(partial(convolved_heads, **how), x, weight, bias)}"


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
        projected = (q, k, raw, beta, A_log, dt_bias, BOUND)
        reading, writing, w, L, P, decay = kernels.products(*projected)
        u = kernels.solve(v, beta, L, w.clone())
        h, v_new, _ = kernels.chunks(writing, w, u, decay, None)
        calls = {
            "PRODUCTS": partial(kernels.products, *projected),
            "SOLUTIONS": partial(kernels.solve, v, beta, L, w),
            "FINE": partial(kernels.chunks, writing, w, u, decay, None),
            "OUTPUTS": partial(kernels.outputs, reading, h, v_new, P, length),
        }
        for name, call in calls.items():
            for setting in [getattr(kernels, name), *SETTINGS[name]]:
                with mock.patch.object(kernels, name, setting):
                    print(f"  {name} {setting} {took(call)}", flush=True)
        for line in convolutions(length):
            print(line, flush=True)
        for pieces in PIECES:
            o, last = in_pieces(*given, pieces)
            differs = max(error(o, by_package(*given)[0].double()), error(last, by_package(*given)[1].double()))
            replay = captured(in_pieces, *given, pieces)
            print(f"  as a graph, {pieces} pieces {took(replay)}, differs {differs:.1e}", flush=True)


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
