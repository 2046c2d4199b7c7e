"""Where the time of a served student goes: steps of vLLM's engine with a piece of a prompt among them, and without.

    python benchmarks/vllm_profile.py > results/gpu/vllm_profile.txt     # a CUDA device that nothing else uses

Qwen3-0.6B's shape, random weights, 7 of 28 layers kept, Kimi Delta Attention in the others; contexts of 32,768 tokens,
as in vllm_serve.py's largest load. Of each kind of step the median time; under the profiler the sum of all kernels,
what lies between them, and each by its name; and by Python's profiler, which slows it down, what the host calls.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's steps are called from here

from ledger import gpu_machine, takes_no_arguments
from prefill_profile import called_by, kernels_of, table
from vllm import LLM, SamplingParams
from vllm_serve import MOST, SLACK, write_pair

CONTEXT, REPLY = 32_768, 512  # tokens
REQUESTS = 64
STEP_TOKENS = 8192  # so that a request takes several steps to begin
FILLED = 200  # steps, after which most requests decode and some prompts are left
TIMED, PROFILED = 12, 4  # steps
MOST_CALLS = 45  # rows of Python's profile


def main() -> None:
    takes_no_arguments(__doc__)
    print(gpu_machine("vllm"))
    with tempfile.TemporaryDirectory() as scratch:
        asked = SimpleNamespace(shape="qwen3-0.6b", keep=7, bound=-5.0, contexts=[CONTEXT])
        folder = write_pair(Path(scratch), asked)["student"]
        options = dict(max_model_len=CONTEXT, max_num_seqs=MOST, max_num_batched_tokens=STEP_TOKENS)
        options |= dict(enable_prefix_caching=False)
        engine = LLM(str(folder), skip_tokenizer_init=True, **options).llm_engine
    prompt = {"prompt_token_ids": [7] * (CONTEXT - REPLY - SLACK)}
    for number in range(REQUESTS):
        engine.add_request(str(number), prompt, SamplingParams(max_tokens=REPLY, ignore_eos=True, detokenize=False))
    for _ in range(FILLED):
        engine.step()
    assert prompts_left(engine)
    report("with a piece of a prompt", engine)
    while prompts_left(engine):
        engine.step()
    report("decoding alone", engine)


def prompts_left(engine) -> int:
    """Requests whose prompt is not computed yet."""
    scheduler = engine.engine_core.engine_core.scheduler
    return sum(request.num_computed_tokens < request.num_prompt_tokens for request in scheduler.requests.values())


def report(title: str, engine) -> None:
    took = [seconds(engine) for _ in range(TIMED)]
    print(f"\n{title}, {prompts_left(engine)} prompts left: a step {1e3 * median(took):.1f} ms")
    print(f"{PROFILED} steps under the profiler:")
    print(*table(kernels_of(lambda: steps(engine))), sep="\n")
    print(called_by(lambda: steps(engine), MOST_CALLS))


def seconds(engine) -> float:
    began = time.perf_counter()
    engine.step()
    return time.perf_counter() - began


def steps(engine) -> None:
    for _ in range(PROFILED):
        engine.step()


if __name__ == "__main__":
    main()
