"""The ledger results/figures.json: how each value follows from the raw output committed under results/."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "results/figures.json"
QWEN3_0_6B = dict(  # its published configuration
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40960,
    tie_word_embeddings=True,
)


def demo_figures(results: Path) -> dict[str, dict]:
    """Value, unit and source of every figure of the demo, from the files of one benchmark run."""
    scores = json.loads((results / "scores.json").read_text())
    mean = list(scores["paired"].values())[-1][-1]["generation"]
    source = "results/demo/scores.json"
    return {
        "demo_seconds": {
            "value": json.loads((results / "timing.json").read_text())["seconds"],
            "unit": "s",
            "source": "results/demo/timing.json",
        },
        "demo_retention_generation": {"value": round(mean["retention"], 4), "unit": "ratio", "source": source},
        "demo_teacher_generation_accuracy": {"value": round(mean["teacher"], 4), "unit": "ratio", "source": source},
        "qwen3_0_6b_student_parameters": {
            "value": json.loads((results / "qwen3-0.6b-size.json").read_text())["parameters"],
            "unit": "parameters",
            "source": "results/demo/qwen3-0.6b-size.json",
        },
    }


def ablation_figures(results: Path) -> dict[str, dict]:
    """How long the shipped ablation takes on a CPU, killed twice on its way."""
    raw = json.loads((results / "ablation.json").read_text())
    return {
        "ablation_cpu_minutes": {"value": raw["minutes"], "unit": "minutes", "source": "results/cpu/ablation.json"},
    }


def graded_replies_figures(tests: Path) -> dict[str, dict]:
    """How many replies of real models the readings are held against, from the table of the tests."""
    table = json.loads((tests / "evaluate/kinds/shared/real_replies.json").read_text(encoding="utf-8"))
    return {
        "graded_replies": {
            "value": len(table["replies"]),
            "unit": "replies",
            "source": "tests/evaluate/kinds/shared/real_replies.json",
        }
    }


def kda_cpu_figures(results: Path) -> dict[str, dict]:
    """How many times faster the chunked form is, from benchmarks/kda_cpu.py: medians of the rounds' ratios."""
    seconds = json.loads((results / "kda.json").read_text())["seconds"]["kda"]
    compared = {
        "kda_cpu_train_speedup_vs_recurrence": ("train", "recurrence"),
        "kda_cpu_forward_speedup_vs_recurrence": ("forward", "recurrence"),
        "kda_cpu_train_speedup_vs_transformers": ("train", "transformers"),
    }
    figures = {}
    for name, (what, side) in compared.items():
        ours, theirs = seconds["chunked"][what], seconds[side][what]
        rounds = [b / a for a, b in zip(ours, theirs, strict=True)]
        figures[name] = {
            "value": round(median(rounds), 2),
            "spread": [round(min(rounds), 2), round(max(rounds), 2)],
            "unit": "x",
            "source": "results/cpu/kda.json",
        }
    return figures


def embedded_window_figures(results: Path) -> dict[str, dict]:
    """Where the embedded teacher's answers break under untrained windows, from benchmarks/window_embedded.py."""
    raw = json.loads((results / "embedded.json").read_text())
    retention, without = (window_retention(raw, which) for which in ("with_sinks", "without_sinks"))
    enough = min(window for window, kept in retention.items() if kept >= 0.95)
    broken = max(window for window, kept in retention.items() if kept < 0.95)
    source = "results/window/embedded.json"
    return {
        "embedded_window_enough": {"value": enough, "unit": "tokens", "source": source},
        "embedded_window_breaks": {"value": broken, "unit": "tokens", "source": source},
        "embedded_window_retention_enough": {"value": round(retention[enough], 4), "unit": "ratio", "source": source},
        "embedded_window_retention_breaks": {"value": round(retention[broken], 4), "unit": "ratio", "source": source},
        "embedded_window_retention_without_sinks": {
            "value": round(without[enough], 4),
            "unit": "ratio",
            "source": source,
        },
        "embedded_window_seconds": {"value": raw["seconds"], "unit": "s", "source": source},
    }


def window_retention(raw: dict, which: str) -> dict[int, float]:
    """Student's share of right replies over the teacher's, means over the tasks, by window; with or without sinks."""

    def share(counts: dict[str, int]) -> float:
        return sum(count / raw["items"][task] for task, count in counts.items())

    return {int(window): share(counts) / share(raw["teacher"]) for window, counts in raw[which].items()}


def cold_start_figures(results: Path) -> dict[str, dict]:
    """Seconds to the first optimisation step on a GPU without compiled kernels, from benchmarks/cold_start.py."""
    raw = json.loads((results / "cold_start.json").read_text())
    return {
        f"gpu_cold_first_step_seconds_{shape}": {
            "value": raw[shape]["shipped"]["seconds"],
            "unit": "s",
            "source": "results/gpu/cold_start.json",
        }
        for shape in ("d64", "d128")
    }


def training_speed_figures(results: Path) -> dict[str, dict]:
    """From benchmarks/training_speed.py: medians over the steady steps of all turns, and the highest peaks."""
    raw = json.loads((results / "training_speed.json").read_text())
    source = "results/gpu/training_speed.json"

    def speed(*names: str) -> dict:
        speeds = [speed for name in names for speed in raw[name]["tokens_per_second"]]
        spread = [round(min(speeds)), round(max(speeds))]
        return {"value": round(median(speeds)), "spread": spread, "unit": "tokens/s", "source": source}

    def gib(value: float) -> dict:
        return {"value": round(value, 2), "unit": "GiB", "source": source}

    kd = ("kd ours 0", "kd ours 1")
    return {
        "gpu_kd_tokens_per_second": speed(*kd),
        "gpu_kd_tokens_per_second_plain": speed("kd plain 0", "kd plain 1"),
        "gpu_kd_peak_gib": gib(max(raw[name]["peak_gib"] for name in kd)),
        "gpu_align_tokens_per_second": min(
            (speed(name) for name in ("qk_alignment", "block_alignment")), key=lambda figure: figure["value"]
        ),
        "kl_loss_peak_gib_16k": gib(max(raw["loss"]["peak_gib"].values())),
    }


def on_policy_cost_figures(results: Path, name: str = "on_policy_cost.json") -> dict[str, dict]:
    """From benchmarks/on_policy_cost.py: ratios of medians over the steady steps; spread: over the turns."""
    raw = json.loads((results / name).read_text())
    source = f"results/gpu/{name}"
    turns = range(sum(key.startswith("off-policy ") for key in raw))

    def ratio(of: str, to: str, what: str) -> dict:
        by_turn = [median(raw[f"{of} {turn}"][what]) / median(raw[f"{to} {turn}"][what]) for turn in turns]
        both = [median([x for turn in turns for x in raw[f"{side} {turn}"][what]]) for side in (of, to)]
        return {"value": round(both[0] / both[1], 3), "spread": _spread(by_turn, 3), "unit": "x", "source": source}

    shortest, *longer = (f"length {length}" for length in raw["setting"]["lengths"])
    shares = {
        f"kd_{name}_speed_share": ratio(length, shortest, "tokens_per_second")
        for name, length in zip(("8k", "16k"), longer, strict=True)
    }
    return {"onpolicy_step_cost_ratio": ratio("on-policy", "off-policy", "seconds")} | shares


def placement_cost_figures(results: Path) -> dict[str, dict]:
    """What placement by kl costs, in alignments of the student that it needs, from benchmarks/placement_cost.py."""
    stages = json.loads((results / "alignment.json").read_text())["stages"]
    cost = json.loads((results / "kl7.json").read_text())["cost"]["seconds"]
    ratio = cost / sum(stage["seconds"] for stage in stages.values())
    source = "results/window/placements/alignment.json"
    return {"kl_placement_cost_in_alignments": {"value": round(ratio, 2), "unit": "x", "source": source}}


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


def plan_accuracy_figures(results: Path) -> dict[str, dict]:
    """The worst relative error of `gendistill plan` over the shapes of benchmarks/plan_accuracy.py."""
    raw = json.loads((results / "plan_accuracy.json").read_text())
    results = [result for name, result in raw.items() if name != "machine"]

    def worst(planned: str, measured: str) -> dict:
        errors = [abs(result[planned] / result[measured] - 1) for result in results if measured in result]
        spread = [round(min(errors), 3), round(max(errors), 3)]
        return {
            "value": round(max(errors), 3),
            "spread": spread,
            "unit": "ratio",
            "source": "results/gpu/plan_accuracy.json",
        }

    return {
        "plan_memory_error": worst("planned_bytes", "measured_bytes"),
        "plan_hours_error": worst("planned_seconds", "measured_seconds"),
    }


def prepare_figures(results: Path) -> dict[str, dict]:
    """Speed of preparing text and its share of the tokenizer's own; memory; padding: benchmarks/prepare_data.py."""
    raw = json.loads((results / "prepare.json").read_text())
    speeds = [{side: run["tokens"] / run["seconds"] for side, run in each.items()} for each in raw["rounds"]]
    shares = [speed["prepare"] / speed["alone"] for speed in speeds]
    ours = [speed["prepare"] for speed in speeds]
    padding = sum(each["padding_tokens"] for each in raw["instructions"])
    wastes = [each["padding_tokens"] / (each["tokens"] + each["padding_tokens"]) for each in raw["instructions"]]
    growth = median(each["prepare"]["peak_bytes"] for each in raw["rounds"]) / raw["quarter"]["peak_bytes"]
    total = padding + sum(each["tokens"] for each in raw["instructions"])
    figures = {
        "prepare_tokens_per_second_cpu": {"value": round(median(ours)), "unit": "tokens/s", "spread": _spread(ours, 0)},
        "prepare_share_of_tokenizer_speed": {
            "value": round(median(shares), 3),
            "unit": "ratio",
            "spread": _spread(shares, 3),
        },
        "prepare_memory_ratio_60mb_vs_15mb": {"value": round(growth, 3), "unit": "ratio"},
        "packing_waste": {"value": round(padding / total, 4), "unit": "ratio", "spread": _spread(wastes, 4)},
    }
    return {name: figure | {"source": "results/cpu/prepare.json"} for name, figure in figures.items()}


def prepare_memory_figures(results: Path) -> dict[str, dict]:
    """How many times the memory ten times the text takes, from benchmarks/prepare_memory.py: the worse of two forms."""
    raw = json.loads((results / "prepare_memory.json").read_text())
    ratios = [raw[form]["200"]["peak_bytes"] / raw[form]["20"]["peak_bytes"] for form in (".txt", ".txt.gz")]
    figure = {"value": round(max(ratios), 3), "unit": "ratio", "spread": _spread(ratios, 3)}
    return {"prepare_memory_ratio_txt_200mb_vs_20mb": figure | {"source": "results/cpu/prepare_memory.json"}}


def suite_figures(results: Path) -> dict[str, dict]:
    """Seconds of `make test` without its linting, from benchmarks/test_suite.py."""
    raw = json.loads((results / "test_suite.json").read_text())
    return {"test_suite_seconds": {"value": raw["seconds"], "unit": "s", "source": "results/cpu/test_suite.json"}}


def hostile_figures(results: Path) -> dict[str, dict]:
    """The share of hostile programs that the sandbox contains, over all set-ups."""
    raw = json.loads((results / "hostile_programs.json").read_text())
    ends = [ok for setup in raw.values() for ok in setup.values()]
    source = "results/cpu/hostile_programs.json"
    return {
        "hostile_programs_contained_share": {
            "value": round(sum(ends) / len(ends), 4),
            "unit": "ratio",
            "source": source,
        },
        "hostile_programs": {"value": len(next(iter(raw.values()))), "unit": "programs", "source": source},
    }


def report_page_figures(results: Path) -> dict[str, dict]:
    """The largest of the report pages that benchmarks/report_page.py has written."""
    pages = json.loads((results / "report_page.json").read_text())["pages"]
    largest = max(page["bytes"] for page in pages)
    source = "results/cpu/report_page.json"
    return {"report_page_kb": {"value": round(largest / 1000, 1), "unit": "kB", "source": source}}


def trials_figures(results: Path) -> dict[str, dict]:
    """What small runs survive, from benchmarks/trials: kills, flipped bytes, full disks."""
    raw = json.loads((results / "trials.json").read_text())
    # One that had just ended by itself, with status 0, was not killed.
    kills = [(trial, kill) for trial in raw["kills"].values() for kill in trial["kills"] if kill["code"]]
    identical = [trial["outcome"] == "identical" for trial, _ in kills]
    flips = [flip["outcome"] for flip in raw["flips"].values()]
    kept = [trial["outcome"] == "nothing lost" for trial in raw["full_disk"].values()]
    figures = {
        "kills_survived_share": {"value": round(sum(identical) / len(identical), 4), "unit": "ratio"},
        "kills": {"value": len(identical), "unit": "kills"},
        "flips_silent": {"value": flips.count("silent"), "unit": "flips"},
        "flips_tracebacks": {"value": flips.count("traceback"), "unit": "flips"},
        "flips": {"value": len(flips), "unit": "flips"},
        "full_disks_survived_share": {"value": round(sum(kept) / len(kept), 4), "unit": "ratio"},
    }
    return {name: figure | {"source": "results/cpu/trials.json"} for name, figure in figures.items()}


def synthesize_figures(results: Path) -> dict[str, dict]:
    """Tokens a second of the slowest set of benchmarks/synthesize_speed.py whose replies are more than a letter."""
    sets = json.loads((results / "synthesize.json").read_text())["sets"].values()
    written = [each for each in sets if each["tokens_this_time"] >= 10 * each["replies"]]
    speeds = [each["tokens_this_time"] / each["seconds_this_time"] for each in written]
    speed = {"value": round(min(speeds)), "unit": "tokens/s", "spread": _spread(speeds, 0)}
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
            "spread": _spread(slowest, 2),
        }
    return {name: figure | {"source": "results/gpu/evaluation_speed.json"} for name, figure in figures.items()}


def gsm8k_speed_figures(results: Path) -> dict[str, dict]:
    """Seconds of GSM8K, 5 shots, both protocols; without the first turn, in which kernels are compiled."""
    first, *others = json.loads((results / "gsm8k_speed.json").read_text())["ask_gsm8k"]["seconds"]
    return {"gpu_gsm8k_seconds": _seconds(others or [first]) | {"source": "results/gpu/gsm8k_speed.json"}}


def _seconds(measured: list[float]) -> dict[str, float | str | list[float]]:
    return {"value": round(median(measured), 1), "unit": "s", "spread": _spread(measured, 1)}


def window_figures(results: Path) -> dict[str, dict]:
    """What untrained students keep of the teacher's right answers, from benchmarks/window_table.py; only what is there.

    A figure's spread is the 95 % interval of the retention.
    """
    rows = json.loads((results / "table.json").read_text())["configurations"]
    source = "results/window/table.json"
    asked = {
        "gsm8k": ("beam7-window-512", "gsm8k"),
        "humaneval": ("beam7-window-512", "humaneval"),
        "needle_8k": ("beam7-window-512", "needle_single_8192"),
        "recall_4k": ("beam7-window-1024", "recall_full_4096"),
    }
    figures = {}
    for name, (configuration, task) in asked.items():
        score = rows.get(configuration, {"tasks": {}})["tasks"].get(task)
        if score is not None and score["strict"]["retention"] is not None:
            kept = {"value": score["strict"]["retention"], "spread": score["strict"]["retention_interval"]}
            figures[f"window_untrained_retention_{name}"] = kept | {"unit": "ratio", "source": source}
    if chosen := rows.get("beam7-window-512"):
        minutes = round(chosen["placement"]["cost"]["seconds"] / 60, 2)
        saving = chosen["cache_saving"]["131072"]
        figures["window_cache_saving_128k"] = {"value": saving, "unit": "ratio", "source": source}
        figures["placement_minutes_7_of_28"] = {"value": minutes, "unit": "min", "source": source}
    return figures


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
    share = {"value": round(min(shares), 3), "unit": "ratio", "spread": _spread(shares, 3)}
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
    figure = {"value": round(median(ratios), 2), "unit": "x", "spread": _spread(ratios, 2)}
    return {"serve_throughput_64_vs_1": figure | {"source": "results/gpu/serve_throughput.json"}}


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
    figure = {"value": round(min(ratios), 2), "unit": "x", "spread": _spread(ratios, 2)}
    return {"vllm_throughput_ratio_32k": figure | {"source": "results/gpu/vllm_serve.json"}}


def throughput_ratios(raw: dict) -> list[float]:
    """Tokens a second of a round with 64 clients over those of the round with one that came behind it."""
    speeds = {at_once: [each["tokens"] / each["seconds"] for each in found] for at_once, found in raw["rounds"].items()}
    return [many / one for many, one in zip(speeds["64"], speeds["1"], strict=True)]


def _spread(values: list[float], digits: int) -> list[float]:
    return [round(min(values), digits), round(max(values), digits)]


def kda_cpu_times(raw: dict) -> str:
    """A line for each kind of state update and form: median milliseconds of a forward pass and of a training step."""
    lines = [f"{'ms':<18}{'form':<14}{'forward':>9}{'train':>9}"]
    for kind, sides in raw["seconds"].items():
        for side, seconds in sides.items():
            forward, train = (1000 * median(seconds[what]) for what in ("forward", "train"))
            lines.append(f"{kind:<18}{side:<14}{forward:>9.0f}{train:>9.0f}")
    return "\n".join(lines)


def student_parameters() -> dict[str, int]:
    """Counts the Qwen3-0.6B student of recipes/qwen3-0.6b.yaml on the meta device."""
    import torch
    from transformers import Qwen3Config

    from gendistill.models import GendistillForCausalLM
    from gendistill.models.families import student_config
    from gendistill.recipe.loading import load_recipe

    teacher = Qwen3Config(**QWEN3_0_6B)
    keep = load_recipe(ROOT / "recipes/qwen3-0.6b.yaml").student.keep_attention
    with torch.device("meta"):
        student = GendistillForCausalLM(student_config(teacher, keep))
    return {
        "parameters": sum(p.numel() for p in student.parameters()),
        "layers_without_keys_and_values": len(student.config.layers_of_type("linear_attention")),
        "layers": student.config.num_hidden_layers,
    }


def gpu_machine(*packages: str) -> dict:
    """The GPU, the versions of what runs on it (of `packages` besides), and today's date."""
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "measured": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "triton", "fla-core", "transformers", *packages)},
    }


def commit(checkout: Path = ROOT) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()


def record(figures: dict[str, dict], command: str, **elsewhere) -> None:
    """Puts figures measured just now into the ledger; `elsewhere` says on what, if not on this CPU."""
    ledger = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
    shared = {
        "command": command,
        "hardware": f"CPU, {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"gendistill": commit(), **{name: version(name) for name in ("torch", "transformers")}},
        "measured": datetime.date.today().isoformat(),
    } | elsewhere
    ledger |= {name: figure | shared for name, figure in figures.items()}
    LEDGER.write_text(json.dumps(ledger, indent=2, sort_keys=True) + "\n")


def record_from_gpu(path: Path, figures_of: Callable[[Path], dict[str, dict]], command: str) -> None:
    """Puts figures of raw output that came from a GPU into the ledger; the file at `path` says on what.

    Those whose value is in the ledger already stay as they are, with the commit that measured them.
    """
    machine = json.loads(path.read_text())["machine"]
    versions = {"gendistill": commit()} | machine["versions"]
    elsewhere = {"hardware": f"1x {machine['gpu']}", "versions": versions, "measured": machine["measured"]}
    record(changed(figures_of(path.parent)), command, **elsewhere)


def changed(figures: dict[str, dict]) -> dict[str, dict]:
    """The figures that the ledger does not have, or has with another value."""
    ledger = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
    return {name: figure for name, figure in figures.items() if ledger.get(name, {}).get("value") != figure["value"]}
