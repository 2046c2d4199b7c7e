"""Measures launch settings of fla-core's Triton kernels on one GPU: src/gendistill/ops/launch_settings/*.json.

    python scripts/tune_kernels.py all --out tuning

Triton's autotuner compiles its candidates one after the other. Here as many processes as there are cores compile them
first (compile), then one process times them all from the warm cache (measure), and the timings become files (write).
float32 is only tried with the candidates that served bfloat16 best, and with the smallest one in case those do not fit.

Every timing is kept in OUT/timings.jsonl as soon as it is known: a phase that was cut off resumes where it stopped, and
`write` takes whatever is there. Which settings are numerically right is not asked here: run the gpu tests afterwards.

One setting is put in by hand, and lost if its file is written anew: bfloat16 takes 8 warps in
chunk_kda_bwd_kernel_wy_dqkg_fused. fla's candidates for Hopper stop at 4, which takes 1.5 times as long
(results/gpu/training_trials.txt); the gpu tests compare it with the float64 reference, and its bits from run to run.
Those of whole rows ("plain") for KDA's two sweeps, its outputs and its gate were measured by themselves
(results/gpu/launch_settings_rows.txt).
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from choose_settings import Timing, read_timings, shortlist, to_line, write_settings

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "src/gendistill/ops/launch_settings"

FAMILIES = {  # what the mixers ask of the recurrence: the delta rule or not, a decay per channel or head, g >= -5
    "kda": dict(delta_rule=True, per_channel=True, bounded=False),
    "kda_bounded": dict(delta_rule=True, per_channel=True, bounded=True),
    "gated_delta_rule": dict(delta_rule=True, per_channel=False, bounded=False),
    "gla": dict(delta_rule=False, per_channel=True, bounded=False),
    "simple_gla": dict(delta_rule=False, per_channel=False, bounded=False),
}
HEADS = {64: 14, 128: 16}  # number of heads by head size
DOCUMENTS = [2500, 37, 1, 1024, 3011, 640, 979]  # 8192 tokens
SHAPES = {"packed": (1, sum(DOCUMENTS)), "step": (8, 1), "prefill": (1, 2048), "plain": (4, 2048)}  # batch and length
WITHOUT_GRADIENTS = ("step", "prefill")
DEVICE = "cuda"
BROKEN_DEVICE = 75  # exit status of a measuring process whose CUDA context a candidate broke

NO_SHORTCUTS = {  # neither settings nor results of an earlier autotuning may hide candidates
    "FLA_CACHE_MODE": "disabled",
    "FLA_CACHE_RESULTS": "0",
    "TRITON_CACHE_AUTOTUNING": "0",
}


# On the GPU, in processes of their own.


def make_call(family: str, head_size: int, shape: str, dtype: str) -> Callable[[], None]:
    """A forward and backward pass of the recurrence on CUDA, forward only for the shapes without gradients."""
    import torch
    import torch.nn.functional as F

    from gendistill.ops.decay import KERNEL_BOUND, DecayGate
    from gendistill.ops.documents import Documents
    from gendistill.ops.kernels import kernel_linear_attention

    kind, size = FAMILIES[family], (*SHAPES[shape], HEADS[head_size])  # [B, T, H]
    q, k, v = (torch.randn(*size, head_size, device=DEVICE, dtype=getattr(torch, dtype)) for _ in range(3))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    # Values do not matter for how long a kernel takes, but they must stay finite.
    decay = torch.rand(*size, head_size, device=DEVICE) if kind["per_channel"] else torch.rand(size, device=DEVICE)
    inputs = {"q": q, "k": k, "v": v, "g": -0.5 * decay}
    if kind["bounded"]:  # fla computes the decay from raw gates itself, in the precision of q
        zeros = torch.zeros(HEADS[head_size] * head_size, device=DEVICE)
        inputs["g"] = DecayGate(decay.to(q.dtype), zeros[: HEADS[head_size]], zeros, KERNEL_BOUND)
    if kind["delta_rule"]:
        inputs["beta"] = torch.rand(size, device=DEVICE)
    if shape == "step":  # decoding: the state [B, H, D, D] comes from the cache
        inputs["initial_state"] = torch.randn(size[0], size[2], head_size, head_size, device=DEVICE)
    documents = None
    if shape == "packed":
        documents = Documents.from_position_ids(torch.cat([torch.arange(n) for n in DOCUMENTS])[None].to(DEVICE))

    trains = shape not in WITHOUT_GRADIENTS

    def call() -> None:
        with torch.set_grad_enabled(trains):
            for x in inputs.values():
                (x.raw if isinstance(x, DecayGate) else x).requires_grad_(trains)
            o, _ = kernel_linear_attention(**inputs, documents=documents)
            if trains:
                o.backward(torch.ones_like(o))

    return call


def run_scenarios(families: list[str], shapes: list[str], dtype: str, quiet: bool) -> None:
    """Makes every call once. What fla refuses on this machine is reported, and the others are made."""
    import torch

    for family, head_size, shape in product(families, HEADS, shapes):
        start = time.monotonic()
        try:
            make_call(family, head_size, shape, dtype)()
            torch.cuda.synchronize()
            outcome = "done"
        except Exception as error:
            outcome = f"FAILED: {type(error).__name__}: {str(error)[:300]}"
        if not quiet:
            print(f"  {family} {head_size} {shape} {dtype}: {outcome} ({time.monotonic() - start:.0f} s)", flush=True)


def to_json(config) -> str:
    """A triton.Config as fla reads it."""
    fields = {name: getattr(config, name) for name in ("kwargs", "num_warps", "num_stages", "num_ctas")}
    return json.dumps(fields, sort_keys=True)


def describe_case(tuner, args: tuple, kwargs: dict) -> str:
    """All that a kernel is compiled for, and how much work the call is: arguments, with tensors by their type."""
    # strict=False: arguments may come by position or by name.
    named = {**dict(zip(tuner.arg_names, args, strict=False)), **kwargs}
    shown = {name: str(getattr(x, "dtype", x)) for name, x in named.items() if name in tuner.arg_names}
    return json.dumps(shown, sort_keys=True)


def restrict_candidates(allowed: dict[str, set[str]]) -> None:
    """From now on the autotuner tries only these, where any of them survives fla's own pruning."""
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs

    def prune_configs(tuner, kwargs: dict) -> list:
        configs = prune(tuner, kwargs)
        known = allowed.get(tuner.base_fn.__name__, set())
        # A kernel that never ran in bfloat16 has no shortlist, and tries all.
        return [config for config in configs if to_json(config) in known] or configs

    Autotuner.prune_configs = prune_configs


def compile_only(claims: Path, timed: set[tuple[str, str, str]], until: float) -> None:
    """From now on kernels are compiled into Triton's cache and never launched; their outputs are left as they are.

    Each candidate is compiled by the process that first makes its file in `claims`.
    """
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    launch, seen = JITFunction.run, set()  # (kernel, case) that this process has been through

    def run_function(function, *args, warmup: bool, **kwargs):
        return launch(function, *args, warmup=True, **kwargs) if warmup else None  # warm-up compiles and stops there

    def run_tuner(tuner, *args, **kwargs) -> None:
        kernel, case = tuner.base_fn.__name__, describe_case(tuner, args, kwargs)
        if (kernel, case) in seen:
            return
        seen.add((kernel, case))
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        for config in tuner.prune_configs(kwargs):
            candidate = (kernel, case, to_json(config))
            if candidate not in timed and time.time() < until and claim(claims, candidate):
                try:
                    tuner.fn.run(*args, **{**kwargs, **config.all_kwargs(), "warmup": True})
                except Exception as error:  # it will count as one that does not run
                    print(f"  {kernel} {candidate[2]}: {type(error).__name__}", flush=True)

    JITFunction.run, Autotuner.run = run_function, run_tuner


def claim(folder: Path, candidate: tuple[str, str, str]) -> bool:
    """Whether this process is the first to ask for the candidate: making a file is atomic, also between processes."""
    try:
        (folder / hashlib.md5("\n".join(candidate).encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def time_candidates(path: Path, until: float) -> None:
    """From now on the autotuner writes every timing to a file, asks that file first, and times briefly."""
    import torch
    import triton
    from fla.ops.utils.cache import AutotuneKey
    from triton.runtime.autotuner import Autotuner

    run, bench = Autotuner.run, Autotuner._bench
    known = {(timing.kernel, timing.case, timing.config): timing.ms for timing in read_timings(path)}

    def benchmark(call, quantiles):
        return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)

    def measure(tuner, args: tuple, config, meta: dict) -> float:
        tuner.do_bench = benchmark
        try:
            return bench(tuner, *args, config=config, **meta)[0]
        except Exception:  # whatever it is: this candidate is of no use here
            return math.inf

    def bench_or_remember(tuner, *args, config, **meta) -> list[float]:
        kernel, case, text = tuner.base_fn.__name__, describe_case(tuner, args, meta), to_json(config)
        if (kernel, case, text) not in known and time.time() < until:
            ms = known[kernel, case, text] = measure(tuner, args, config, meta)
            key = list(AutotuneKey.build(tuner.arg_names, tuner.keys, args, meta).autotune_key)
            timing = Timing(kernel, key, case, tuner.candidates, text, ms, triton.__version__)
            with path.open("a") as file:
                file.write(to_line(timing) + "\n")
            if ms == math.inf:
                leave_if_broken()
        return [known.get((kernel, case, text), math.inf)] * 3  # the autotuner wants a median and two quantiles

    def leave_if_broken() -> None:
        try:
            torch.cuda.synchronize()
        except Exception:
            os._exit(BROKEN_DEVICE)  # a CUDA context never recovers; a new process resumes after this candidate

    def run_tuner(tuner, *args, **kwargs):
        tuner.cache.clear()  # another case may have had the same key
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        tuner.candidates = len(tuner.prune_configs(kwargs))
        return run(tuner, *args, **kwargs)

    Autotuner.run, Autotuner._bench = run_tuner, bench_or_remember


def work(arguments: argparse.Namespace) -> None:
    """The part of a phase that runs in a process of its own."""
    # Before triton and fla are imported, which read all of this once.
    os.environ.update(NO_SHORTCUTS)
    os.environ.setdefault("TRITON_CACHE_DIR", str(arguments.out.resolve() / "triton_cache"))
    sys.path.insert(0, str(ROOT / "src"))
    path = arguments.out / "timings.jsonl"
    timings = read_timings(path)
    if arguments.dtype == "float32":
        restrict_candidates(shortlist(timings))
    if arguments.claims:
        timed = {(timing.kernel, timing.case, timing.config) for timing in timings}
        compile_only(arguments.claims, timed, arguments.until)
    else:
        time_candidates(path, arguments.until)
    run_scenarios(arguments.families, arguments.shapes, arguments.dtype, arguments.quiet)


# The phases.


def start(arguments: argparse.Namespace, dtype: str, until: float, *options: object) -> subprocess.Popen:
    command = [sys.executable, __file__, "work", "--out", arguments.out, "--dtype", dtype, "--until", until]
    command += ["--families", *arguments.families, "--shapes", *arguments.shapes, *options]
    return subprocess.Popen([str(word) for word in command])


def wait(processes: list[subprocess.Popen], until: float) -> Iterator[int]:
    """Their exit statuses. One candidate may take long to compile: what is a minute over its time is ended."""
    try:
        for process in processes:
            yield process.wait(timeout=max(1, until + 60 - time.time()))
    except subprocess.TimeoutExpired:
        print("  out of time")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compile_phase(arguments: argparse.Namespace, dtype: str, until: float) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.out) as claims:
        # All go through the same calls and share the candidates by their claims; one tells how far it is.
        options = [("--claims", claims, "--quiet")] * (arguments.workers - 1) + [("--claims", claims)]
        processes = [start(arguments, dtype, until, *words) for words in options]
        failed = sum(status != 0 for status in wait(processes, until))
        print(f"  {len(list(Path(claims).iterdir()))} candidates, {failed} of {arguments.workers} processes failed")


def measure_phase(arguments: argparse.Namespace, dtype: str, until: float) -> None:
    while list(wait([start(arguments, dtype, until)], until)) == [BROKEN_DEVICE] and time.time() < until:
        print("  a candidate broke the device's context; resuming after it")


def run_phase(phase: Callable, arguments: argparse.Namespace, dtype: str) -> None:
    name, begin = phase.__name__.removesuffix("_phase"), time.time()
    print(f"{name} {dtype}: at most {arguments.minutes:g} minutes", flush=True)
    phase(arguments, dtype, begin + 60 * arguments.minutes)
    known = len(read_timings(arguments.out / "timings.jsonl"))
    print(f"{name} {dtype}: took {(time.time() - begin) / 60:.1f} minutes; {known} timings so far", flush=True)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "phase", choices=["all", "compile", "measure", "write", "work"], help="work is for the others' use"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for timings and Triton's cache")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="folder for the files; default: the package's")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="for one phase alone")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--minutes", type=float, default=9, help="limit of each phase")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--claims", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.phase == "work":
        return work(arguments)
    for dtype in ["bfloat16", "float32"] if arguments.phase == "all" else [arguments.dtype]:
        for phase in [compile_phase, measure_phase]:
            if arguments.phase in ("all", phase.__name__.removesuffix("_phase")):
                run_phase(phase, arguments, dtype)
    if arguments.phase in ("all", "write"):
        write_settings(read_timings(arguments.out / "timings.jsonl"), arguments.settings)


if __name__ == "__main__":
    main()
