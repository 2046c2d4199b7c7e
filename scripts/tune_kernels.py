"""Measures launch settings of fla-core's Triton kernels on one GPU: src/gendistill/ops/launch_settings/*.json.

    python scripts/tune_kernels.py all --out tuning

Triton's autotuner compiles its candidates one after the other. Here as many processes as there are cores compile them
first (compile), then one process times them all from the warm cache (measure), and the timings become files (write).
float32 is only tried with the candidates that served bfloat16 best, and with the smallest one in case those do not fit.

Every timing is kept in OUT/timings.jsonl as soon as it is known: a phase that was cut off goes on where it stopped, and
`write` takes whatever is there. Which settings are numerically right is not asked here: run the gpu tests afterwards.
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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, product
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

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
KEPT_FOR_FLOAT32 = 3
BROKEN_DEVICE = 75  # exit status of a measuring process whose CUDA context a candidate broke

NO_SHORTCUTS = {  # neither settings nor results of an earlier autotuning may hide candidates
    "FLA_CACHE_MODE": "disabled",
    "FLA_CACHE_RESULTS": "0",
    "TRITON_CACHE_AUTOTUNING": "0",
}


# From timings to files: nothing below needs a GPU, until the next such line.


class Timing(NamedTuple):
    """One candidate in one case. A case is everything a kernel's call says: two may share the autotuner's key."""

    kernel: str
    key: list
    case: str
    candidates: int  # of this case, so that a case cut off half way can be told
    config: str  # JSON, as fla reads it
    ms: float  # inf if the candidate does not run
    triton: str


class Score(NamedTuple):
    """How a candidate does over several cases; the smaller the better."""

    failures: int
    worst: float  # its time over that of the case's best candidate
    mean: float
    config: str


Cases = dict[str, dict[str, float]]  # case -> config -> ms


def to_line(timing: Timing) -> str:
    """JSON knows no infinity: a candidate that does not run has null."""
    return json.dumps(timing._replace(ms=timing.ms if math.isfinite(timing.ms) else None)._asdict())


def read_timings(path: Path) -> list[Timing]:
    """Later lines replace earlier ones of the same candidate and case; a line that was cut off is passed over."""
    timings = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            timing = Timing(**json.loads(line))
        except (ValueError, TypeError):
            continue
        timing = timing._replace(ms=math.inf if timing.ms is None else timing.ms)
        timings[timing.kernel, timing.case, timing.config] = timing
    return list(timings.values())


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def signature(key: list) -> str:
    """What fla's fuzzy match compares of a key: all but the numbers, and where those stand."""
    return json.dumps([0 if is_number(value) else value for value in key])


def key_hash(key: list) -> str:
    """The name of an entry, as fla computes it."""
    return hashlib.md5(json.dumps(key, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def group_cases(timings: Iterable[Timing]) -> Cases:
    """Cases with every candidate timed, or if there is none, those cut off. A case that no candidate can run is out."""
    cases, sizes = defaultdict(dict), {}
    for timing in timings:
        cases[timing.case][timing.config] = timing.ms
        sizes[timing.case] = timing.candidates
    whole = {case: times for case, times in cases.items() if len(times) >= sizes[case]}
    return {case: times for case, times in (whole or cases).items() if min(times.values()) < math.inf}


def rank(cases: Cases) -> list[Score]:
    """Every candidate, best first: fewest cases it cannot run, then least loss in its worst case, then on average."""
    best = {case: min(times.values()) for case, times in cases.items()}
    scores = []
    for config in {config for times in cases.values() for config in times}:
        ratios = [times.get(config, math.inf) / best[case] for case, times in cases.items()]
        finite = [ratio for ratio in ratios if ratio < math.inf]
        if finite:
            scores.append(Score(len(ratios) - len(finite), max(finite), geometric_mean(finite), config))
    return sorted(scores)


def footprint(config: str) -> tuple[int, int]:
    """Fewest stages, then smallest blocks."""
    settings = json.loads(config)
    return settings["num_stages"], math.prod(value for value in settings["kwargs"].values() if is_number(value))


def by_kernel(timings: Iterable[Timing]) -> dict[str, list[Timing]]:
    kernels = defaultdict(list)
    for timing in timings:
        kernels[timing.kernel].append(timing)
    return dict(sorted(kernels.items()))


def in_bfloat16(timings: list[Timing]) -> list[Timing]:
    """Those of calls with bfloat16 tensors; all, for kernels that only ever see float32."""
    return [timing for timing in timings if "torch.bfloat16" in timing.key] or timings


def shortlist(timings: list[Timing], keep: int = KEPT_FOR_FLOAT32) -> dict[str, set[str]]:
    """By kernel, the candidates worth trying in float32: the best in bfloat16, and the one that needs least memory."""
    chosen = {}
    for kernel, its_timings in by_kernel(timings).items():
        ranking = [score.config for score in rank(group_cases(in_bfloat16(its_timings)))]
        if ranking:
            chosen[kernel] = {*ranking[:keep], min(ranking, key=footprint)}  # min keeps the better of equals
    return chosen


def choose(timings: list[Timing]) -> Score | None:
    """The candidate that runs in every case and loses least in its worst one; None if none runs in all."""
    ranking = rank(group_cases(timings))
    return ranking[0] if ranking and ranking[0].failures == 0 else None


def choose_default(timings: list[Timing]) -> str | None:
    """The best in bfloat16 of the candidates that run in every case there is, for calls that no entry matches."""
    serves_all = {score.config for score in rank(group_cases(timings)) if score.failures == 0}
    ranking = rank(group_cases(in_bfloat16(timings)))
    return next((score.config for score in ranking if score.config in serves_all), None)


def settings_file(kernel: str, timings: list[Timing]) -> tuple[dict, list[tuple[str, Score]]]:
    """What fla reads for a kernel, and the choices in it by signature.

    fla's match ignores numbers, so that head sizes cannot have settings of their own: one entry a signature serves all.
    """
    signatures = defaultdict(list)
    for timing in timings:
        signatures[signature(timing.key)].append(timing)
    entries, choices = {}, []
    for text, its_timings in signatures.items():
        if choice := choose(its_timings):
            key = its_timings[0].key
            entries[key_hash(key)] = {"autotune_key": key, "config": json.loads(choice.config)}
            choices.append((text, choice))
    content = {"kernel_name": kernel, "triton_version": timings[-1].triton, "autotune_entries": entries}
    if default := choose_default(timings):
        content["default_config"] = json.loads(default)
    return content, choices


def short(text: str) -> str:
    """A signature for people: its types with how often each follows itself."""
    names = [str(value).removeprefix("torch.") for value in json.loads(text) if value != 0 or value is False]
    counted = [(name, len(list(group))) for name, group in groupby(names)]
    return " ".join(f"{name}*{count}" if count > 1 else name for name, count in counted)


def write_settings(timings: list[Timing], folder: Path) -> None:
    """Writes a file for every kernel with a choice, and prints the choices with what they cost in their worst case."""
    folder.mkdir(parents=True, exist_ok=True)
    for kernel, its_timings in by_kernel(timings).items():
        content, choices = settings_file(kernel, its_timings)
        print(kernel, "" if "default_config" in content else "(no default: no candidate runs in every case)")
        for text, choice in choices:
            print(f"  {choice.worst:5.2f}x  {choice.config}  {short(text)}")
        if choices:
            (folder / f"{kernel}.json").write_text(json.dumps(content) + "\n")


# On the GPU, in processes of their own.


def make_call(family: str, head_size: int, shape: str, dtype: str) -> Callable[[], None]:
    """A forward and backward pass of the recurrence on CUDA, forward only for the shapes without gradients."""
    import torch

    from gendistill.ops.documents import Documents
    from gendistill.ops.kernels import kernel_linear_attention

    kind, size = FAMILIES[family], (*SHAPES[shape], HEADS[head_size])
    q, k, v = (torch.randn(*size, head_size, device=DEVICE, dtype=getattr(torch, dtype)) for _ in range(3))
    decay = torch.rand(*size, head_size, device=DEVICE) if kind["per_channel"] else torch.rand(size, device=DEVICE)
    inputs = {"q": q, "k": k, "v": v, "g": -0.5 * decay}
    if kind["delta_rule"]:
        inputs["beta"] = torch.rand(size, device=DEVICE)
    if shape == "step":
        inputs["initial_state"] = torch.randn(size[0], size[2], head_size, head_size, device=DEVICE)
    documents = None
    if shape == "packed":
        documents = Documents.from_position_ids(torch.cat([torch.arange(n) for n in DOCUMENTS])[None].to(DEVICE))

    trains = shape not in WITHOUT_GRADIENTS

    def call() -> None:
        with torch.set_grad_enabled(trains):
            for x in inputs.values():
                x.requires_grad_(trains)
            o, _ = kernel_linear_attention(**inputs, documents=documents, bounded=kind["bounded"])
            if trains:
                o.backward(torch.ones_like(o))

    return call


def run_scenarios(families: list[str], shapes: list[str], dtype: str, quiet: bool) -> None:
    """Makes every call once. What fla refuses on this machine is reported, and the rest goes on."""
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
        return [config for config in configs if to_json(config) in known] or configs

    Autotuner.prune_configs = prune_configs


def compile_only(claims: Path, timed: set[tuple[str, str, str]], until: float) -> None:
    """From now on kernels are compiled into Triton's cache and never launched; their outputs are left as they are.

    Each candidate is compiled by the process that first makes its file in `claims`.
    """
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    launch, seen = JITFunction.run, set()

    def run_function(function, *args, warmup: bool, **kwargs):
        return launch(function, *args, warmup=True, **kwargs) if warmup else None

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
        return [known.get((kernel, case, text), math.inf)] * 3

    def leave_if_broken() -> None:
        try:
            torch.cuda.synchronize()
        except Exception:
            os._exit(BROKEN_DEVICE)  # a CUDA context never recovers; a new process goes on after this candidate

    def run_tuner(tuner, *args, **kwargs):
        tuner.cache.clear()  # another case may have had the same key
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        tuner.candidates = len(tuner.prune_configs(kwargs))
        return run(tuner, *args, **kwargs)

    Autotuner.run, Autotuner._bench = run_tuner, bench_or_remember


def work(arguments: argparse.Namespace) -> None:
    """The part of a phase that runs in a process of its own."""
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
    """Their exit statuses. One candidate may take long to compile: what goes on a minute too long is ended."""
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
        options = [("--claims", claims, "--quiet")] * (arguments.workers - 1) + [("--claims", claims)]
        processes = [start(arguments, dtype, until, *words) for words in options]
        failed = sum(status != 0 for status in wait(processes, until))
        print(f"  {len(list(Path(claims).iterdir()))} candidates, {failed} of {arguments.workers} processes failed")


def measure_phase(arguments: argparse.Namespace, dtype: str, until: float) -> None:
    while list(wait([start(arguments, dtype, until)], until)) == [BROKEN_DEVICE] and time.time() < until:
        print("  a candidate broke the device's context; going on after it")


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
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["packed", "step", "prefill"], metavar="SHAPE")
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
