"""How values of the ledger follow from raw output under results/: scores, training, data and tests.

Those of the speed and memory of inference, serving and scaling: speed_figures.py.
"""

import json
from pathlib import Path
from statistics import median

from ledger import ROOT, spread_of

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
        return {"value": round(both[0] / both[1], 3), "spread": spread_of(by_turn, 3), "unit": "x", "source": source}

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
        "prepare_tokens_per_second_cpu": {
            "value": round(median(ours)),
            "unit": "tokens/s",
            "spread": spread_of(ours, 0),
        },
        "prepare_share_of_tokenizer_speed": {
            "value": round(median(shares), 3),
            "unit": "ratio",
            "spread": spread_of(shares, 3),
        },
        "prepare_memory_ratio_60mb_vs_15mb": {"value": round(growth, 3), "unit": "ratio"},
        "packing_waste": {"value": round(padding / total, 4), "unit": "ratio", "spread": spread_of(wastes, 4)},
    }
    return {name: figure | {"source": "results/cpu/prepare.json"} for name, figure in figures.items()}


def prepare_memory_figures(results: Path) -> dict[str, dict]:
    """How many times the memory ten times the text takes, from benchmarks/prepare_memory.py: the worse of two forms."""
    raw = json.loads((results / "prepare_memory.json").read_text())
    ratios = [raw[form]["200"]["peak_bytes"] / raw[form]["20"]["peak_bytes"] for form in (".txt", ".txt.gz")]
    figure = {"value": round(max(ratios), 3), "unit": "ratio", "spread": spread_of(ratios, 3)}
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
