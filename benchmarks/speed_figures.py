"""How values of the ledger follow from raw output under results/: speed and memory of inference, serving and scaling.

Those of scores, training, data and tests: figures.py.
"""

import json
from pathlib import Path
from statistics import median

from ledger import spread_of


def scaling_figures(path: Path) -> dict[str, dict]:
    """From a file of benchmarks/scaling.py: medians of several GPUs over those of one, in one run of it."""
    raw = json.loads(path.read_text())
    source = f"results/gpu/{path.name}"
    one = raw["1"]

    def speed(part: dict) -> float:
        if "seconds" in part and "tokens_per_second" not in part:
            return 1 / part["seconds"][-1]  # the second time, when kernels are there
        return median(part["tokens_per_second"])

    def ratio(part: dict, of: dict, digits: int) -> dict:
        measured = {"measured": part["measured"]} if "measured" in part else {}
        return {"value": round(speed(part) / speed(of), digits), "unit": "x", "source": source} | measured

    figures = {}
    if "exchange" in one:
        figures["replica_path_speed_share"] = ratio(one["exchange"], one["kd"], 3)
    if "fsdp" in one:
        # In micro-batches of one size, where both have been measured.
        figures["fsdp_compiled_speed_share_one_gpu"] = ratio(one["fsdp"], one.get("kd_16", one["kd"]), 3)
    # FSDP is compared with one GPU that has the models whole: with what a user would leave for it.
    compared = {
        "kd": ("kd_speedup", "kd"),
        "kd_1p5b": ("kd_speedup_1p5b", "kd_1p5b"),
        "align": ("align_speedup", "align"),
        "fsdp_1p5b": ("fsdp_speedup_1p5b", "kd_1p5b"),
        "evaluation": ("evaluation_speedup", "evaluation"),
        "synthesis": ("synthesis_speedup", "synthesis"),
    }
    for number in sorted(name for name in raw if name.isdigit() and name != "1"):
        parts = raw[number]
        for part, (figure, of) in compared.items():
            if part in parts and of in one:
                figures[f"gpu{number}_{figure}"] = ratio(parts[part], one[of], 2)
        if "fsdp_8b" in parts:
            mfu = round(median(parts["fsdp_8b"]["mfu"]), 3)
            figures[f"gpu{number}_fsdp_mfu_8b"] = {"value": mfu, "unit": "ratio", "source": source}
    return figures


def synthesize_figures(results: Path) -> dict[str, dict]:
    """Tokens a second of the slowest set of benchmarks/synthesize_speed.py whose replies are more than a letter."""
    sets = json.loads((results / "synthesize.json").read_text())["sets"].values()
    written = [each for each in sets if each["tokens_this_time"] >= 10 * each["replies"]]
    speeds = [each["tokens_this_time"] / each["seconds_this_time"] for each in written]
    speed = {"value": round(min(speeds)), "unit": "tokens/s", "spread": spread_of(speeds, 0)}
    return {"gpu_synthesize_tokens_per_second": speed | {"source": "results/gpu/synthesize.json"}}


def evaluation_speed_figures(results: Path) -> dict[str, dict]:
    """Seconds of whole tasks, and how many times faster than lm_eval the slowest kind of prompt is."""
    raw = json.loads((results / "evaluation_speed.json").read_text())
    figures = {
        f"gpu_{name}_seconds": _seconds(raw[f"ask_{part}"]["seconds"])
        for part, name in (("arc_easy", "arc_easy_both_protocols"), ("humaneval", "humaneval"))
    }
    for protocol in ("rank", "generate"):
        parts = [part for name, part in raw.items() if name.startswith(f"{protocol}_")]
        ratios = [[b / a for a, b in zip(part["ours"], part["lm_eval"], strict=True)] for part in parts]
        slowest = min(ratios, key=median)
        figures[f"{protocol}_speedup_vs_lm_eval"] = {
            "value": round(median(slowest), 2),
            "unit": "ratio",
            "spread": spread_of(slowest, 2),
        }
    return {name: figure | {"source": "results/gpu/evaluation_speed.json"} for name, figure in figures.items()}


def gsm8k_speed_figures(results: Path) -> dict[str, dict]:
    """Seconds of GSM8K, 5 shots, both protocols; without the first turn, in which kernels are compiled."""
    first, *others = json.loads((results / "gsm8k_speed.json").read_text())["ask_gsm8k"]["seconds"]
    return {"gpu_gsm8k_seconds": _seconds(others or [first]) | {"source": "results/gpu/gsm8k_speed.json"}}


def _seconds(measured: list[float]) -> dict[str, float | str | list[float]]:
    return {"value": round(median(measured), 1), "unit": "s", "spread": spread_of(measured, 1)}


def bench_figures(results: Path) -> dict[str, dict]:
    """Speed, memory and cache of the pair of Qwen3-0.6B's shape, from benchmarks/inference_speed.py.

    A ratio's spread comes from the extremes of both sides. The peak of a prefill is without the teacher's weights,
    which lay beside the student's.
    """
    shown = "results/gpu/bench"
    files = [f"qwen3-0.6b-{part}.json" for part in ("short", "long", "batch-8")]
    rows = [
        row | {"source": f"{shown}/{file}"}
        for file in files
        for row in json.loads((results / file).read_text())["rows"]
    ]

    def row(model: str, form: str, context: int, batch: int = 1) -> dict:
        wanted = (model, form, context, batch)
        return next(r for r in rows if (r["model"], r["form"], r["context"], r["batch"]) == wanted)

    def ratio(key: str, form: str, context: int) -> dict:
        teacher, student = row("teacher", form, context), row("student", "best", context)
        low, high = min(teacher[key]) / max(student[key]), max(teacher[key]) / min(student[key])
        value = round(median(teacher[key]) / median(student[key]), 3)
        return {"value": value, "spread": [round(low, 3), round(high, 3)], "unit": "ratio", "source": student["source"]}

    figures = {}
    for context, name in ((2048, "2k"), (8192, "8k"), (32768, "32k"), (131072, "128k")):
        for form in ("default", "best"):
            figures[f"ttft_ratio_{name}_vs_{form}"] = ratio("first", form, context)
    longest, teacher = row("student", "best", 131072), row("teacher", "best", 131072)
    weights = 2 * 596_049_920  # bytes of the teacher
    for name, value, unit in (
        ("ttft_128k_ms", round(1000 * longest["first_median"], 1), "ms"),
        ("prefill_128k_peak_gib", round((longest["peak"] - weights) / 2**30, 2), "GiB"),
        ("cache_saving_128k", round(1 - longest["cache"] / teacher["cache"], 4), "ratio"),
    ):
        figures[name] = {"value": value, "unit": unit, "source": longest["source"]}
    figures["tpot_ratio_128k_b1"] = ratio("token", "best", 131072)
    for name, model, context, batch in (
        ("decode_memory_share_128k_b1", "student", 131072, 1),
        ("decode_memory_share_32k_b8", "student", 32768, 8),
        ("decode_memory_share_8k_b1", "student", 8192, 1),
        ("decode_memory_share_128k_b1_teacher", "teacher", 131072, 1),
    ):
        own = row(model, "best", context, batch)
        value = round(own["share_of_limit_token"], 3)
        figures[name] = {"value": value, "unit": "ratio", "source": own["source"]}
    generate = json.loads((results / "qwen3-0.6b-generate.json").read_text())
    shares = [seconds["bare"] / seconds["generate"] for seconds in generate.values()]
    share = {"value": round(min(shares), 3), "unit": "ratio", "spread": spread_of(shares, 3)}
    figures["generate_share_of_bare_loop"] = share | {"source": f"{shown}/qwen3-0.6b-generate.json"}
    return figures


def serve_leak_figures(results: Path) -> dict[str, dict]:
    """Requests over which a server's memory stayed where it was, from benchmarks/serve.py; 0 if it grew.

    Behind the warm-up, the last quarter's memory is compared with the first's, medians; 1 % is what it may differ.
    """
    raw = json.loads((results / "serve_leak.json").read_text())
    samples = [memory for number, memory in raw["samples"] if number >= raw["warm_up"]]
    quarter = len(samples) // 4
    first, last = median(samples[:quarter]), median(samples[-quarter:])
    value = raw["requests"] - raw["warm_up"] if last <= 1.01 * first else 0
    figure = {"value": value, "unit": "requests", "source": "results/cpu/serve_leak.json"}
    return {"serve_requests_without_leak": figure}


def serve_throughput_figures(results: Path) -> dict[str, dict]:
    """How many times more tokens a second 64 clients get together than one, from benchmarks/serve.py: the median of
    the rounds."""
    ratios = throughput_ratios(json.loads((results / "serve_throughput.json").read_text()))
    figure = {"value": round(median(ratios), 2), "unit": "x", "spread": spread_of(ratios, 2)}
    return {"serve_throughput_64_vs_1": figure | {"source": "results/gpu/serve_throughput.json"}}


def throughput_ratios(raw: dict) -> list[float]:
    """Tokens a second of a round with 64 clients over those of the round with one that came behind it."""
    speeds = {at_once: [each["tokens"] / each["seconds"] for each in found] for at_once, found in raw["rounds"].items()}
    return [many / one for many, one in zip(speeds["64"], speeds["1"], strict=True)]


def vllm_serve_figures(results: Path) -> dict[str, dict]:
    """How many times more tokens a second vLLM writes with the student than with the teacher, contexts of 32,768 tokens
    and each under the most that it holds, from benchmarks/vllm_serve.py: the least of the pairs."""
    pairs = json.loads((results / "vllm_serve.json").read_text())["pairs"]
    ratios = []
    for pair in pairs.values():
        speed = {
            side: row["output_throughput"]
            for side, rows in pair["measured"].items()
            for row in rows
            if (row["context"], row["load"]) == (32768, "largest")
        }
        if len(speed) == 2:  # a side may not be measured yet
            ratios.append(speed["student"] / speed["teacher"])
    if not ratios:
        return {}
    figure = {"value": round(min(ratios), 2), "unit": "x", "spread": spread_of(ratios, 2)}
    return {"vllm_throughput_ratio_32k": figure | {"source": "results/gpu/vllm_serve.json"}}
