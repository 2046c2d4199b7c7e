"""From the timings of scripts/tune_kernels.py to the files of settings that fla reads; needs no GPU."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

KEPT_FOR_FLOAT32 = 3  # best candidates of bfloat16 that are worth timing in float32 too


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
        except (ValueError, TypeError):  # no JSON, or without all fields
            continue
        timing = timing._replace(ms=math.inf if timing.ms is None else timing.ms)
        timings[timing.kernel, timing.case, timing.config] = timing
    return list(timings.values())


def is_number(value: object) -> bool:
    """An int or float; a bool, which Python counts among them, says what kind of call it is."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def signature(key: list) -> str:
    """What fla's fuzzy match compares of a key: all but the numbers, and where those stand."""
    return json.dumps([0 if is_number(value) else value for value in key])


def key_hash(key: list) -> str:
    """The name of an entry, as fla computes it."""
    return hashlib.md5(json.dumps(key, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def group_cases(timings: Iterable[Timing]) -> Cases:
    """Cases with every candidate timed, or if there is none, those cut off. A case that no candidate can run is out."""
    cases: Cases = defaultdict(dict)
    sizes = {}  # candidates of each case, whether timed or not
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
        if finite:  # it runs somewhere
            scores.append(Score(len(ratios) - len(finite), max(finite), geometric_mean(finite), config))
    return sorted(scores)  # by the fields of Score in their order


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
            # Any of its keys: they differ in numbers, which the match ignores.
            key = its_timings[0].key
            entries[key_hash(key)] = {"autotune_key": key, "config": json.loads(choice.config)}
            choices.append((text, choice))
    content = {"kernel_name": kernel, "triton_version": timings[-1].triton, "autotune_entries": entries}
    if default := choose_default(timings):
        content["default_config"] = json.loads(default)
    return content, choices


def short(text: str) -> str:
    """A signature for people: its types with how often each follows itself."""
    # Numbers stand as 0 in a signature and say nothing; False equals 0 in Python, and does.
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
        if choices:  # without an entry, fla times candidates itself
            (folder / f"{kernel}.json").write_text(json.dumps(content) + "\n")
