"""The proof on a real model: trained students beside untrained controls, from the records of window_table.py.

    python benchmarks/proof_report.py [results/proof/records]

Names of records say which student: W7 or W4 are untrained windows with so many layers kept (`beam7-window-512`, ...),
WT4 the window that was trained, K7 or K4 Kimi Delta Attention beside a window, of which the recurrence alone was
trained, or of K4-mixers whole mixers, and P7 Kimi Delta Attention without a window. `-settled` had a third stage,
mostly of conversations, `-token` a share of the recurrence for each token besides, `-replies` sums that the teacher
worked out behind examples among its conversations, `-broad` keys that start centred, and data of more kinds.
`-far_distillation` and `-block_alignment` are students before their last stage, `-window-1024` one that was asked with
a longer window than it was trained with, and `-without_window` one with its windows off. Beside the records lie the
metrics of the runs and what each took. Writes table.json, tables.md and the frontier, retention over cache bytes a
token; figures of a GPU go into the ledger. Of other records, results/rehearsal/records say, there are tables alone.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from ledger import ROOT, record_from_gpu
from window_report import NOTHING, Lines, compare_all, outcomes, percent, read_models, retention_cell, right_cell

from gendistill.analysis.scores import MEAN
from gendistill.analysis.significance import compare, mcnemar, rank_flips
from gendistill.analysis.tables import to_markdown
from gendistill.files import write_atomically
from gendistill.report.plots import pyplot_to_files

RECORDS = ROOT / "results/proof/records"
TEACHER = "teacher"
# Names of untrained windows in the records, and here.
CONTROLS = {f"beam{kept}-window-512": f"W{kept}" for kept in (7, 4, 2)}
CONTROLS |= {f"beam{kept}-window-1024": f"W{kept}-window-1024" for kept in (7, 4)}
SETS = ("arc_easy", "arc_challenge", "openbookqa", "mmlu_redux", "commonsense_qa", "boolq")  # ranked as well
SHORT = (*SETS, "gsm8k", "humaneval")
EQUAL = "K4-mixers-far_distillation"  # has had as many tokens as WT4
# The recipe, recipes/hybrid-1.5b.yaml, with seven layers kept, and what was asked of it with four: its second stage.
SEVEN, FOUR = "K7-token-replies", "K4-token-replies-far_distillation"
PURE = "P7-broad"  # recipes/pure-1.5b.yaml
# By student those that it is held to, on the same items: controls of equal cache, and what it was made of.
BESIDE = {
    SEVEN: ("W7", PURE, "K7", "K7-token", f"{SEVEN}-far_distillation"),
    f"{SEVEN}-far_distillation": ("W7",),
    FOUR: ("W4", "WT4", "K4"),
    PURE: ("W7", "P7", f"{PURE}-block_alignment"),
    f"{PURE}-block_alignment": ("P7",),
    "K7": ("W7", "P7"),
    "K7-window-1024": ("W7-window-1024", "K7"),
    "K7-settled": ("W7", "K7"),
    "K7-settled-window-1024": ("W7-window-1024",),
    "K7-token": ("W7", "K7", "K7-settled"),
    "K7-token-far_distillation": ("K7",),
    "K7-token-window-1024": ("W7-window-1024", "K7-token"),
    "K4": ("W4", "WT4", "K4-mixers"),
    "K4-settled": ("W4", "WT4", "K4"),
    "K4-settled-window-1024": ("W4-window-1024",),
    "K4-mixers": (EQUAL,),
    "WT4": ("W4",),
    EQUAL: ("WT4",),
    # Of the rehearsal: what stood in the rows of the second stage.
    "K4-distant": ("W4", "K4-ordinary"),
    "K4-ordinary": ("W4",),
}
LINES = {  # of the frontier: names, how they are drawn, and where a name stands beside its point
    "window, nothing trained": (("W2", "W4", "W7"), "o--", "#777777", (-30, 6)),
    "window, trained": (("WT2", "WT4", "WT7"), "s-", "#e69f00", (-38, -10)),
    "KDA beside a window, mixers trained": ((EQUAL,), "^-", "#009e73", (5, -16)),
    "KDA beside a window, the recurrence trained": (("K2", FOUR, SEVEN), "D-", "#0072b2", (9, -5)),
    "KDA alone, all of it trained": (("P4-broad", PURE), "v-", "#cc79a7", (9, -16)),
}
# Students with figures, by the figures' names.
FIGURES = {"k7": SEVEN, "k7_window_1024": "K7-window-1024", "k4": FOUR, "p7": PURE}
MINUTES = (
    "Minutes are of the optimizer's steps, with other work on the same GPU; conversion, data, compilation and "
    "measurements are no part of them."
)
CONTEXTS = {"32768": "32K", "131072": "128K"}  # tokens, of the cache's bytes
LONGEST = "131072"
TOLD = {
    "gsm8k": "gsm8k",
    "humaneval": "humaneval",
    "needle_16k": "needle_single_16384",
    "recall_8k": "recall_easy_8192",
    "recall_16k": "recall_easy_16384",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="?", default=RECORDS)
    folder = parser.parse_args().records
    models = {CONTROLS.get(name, name): lines for name, lines in read_models(folder).items()}
    results = folder.parent
    table = tabulate(models) | {"runs": read_runs(results / "runs")}
    write_atomically(results / "table.json", json.dumps(table, indent=1) + "\n")
    write_atomically(results / "tables.md", markdown(table))
    if folder.resolve() != RECORDS:
        return
    draw(results, table)
    if table["machine"]["gpu"] is not None:
        record_from_gpu(results / "table.json", proof_figures, "python benchmarks/proof_report.py")


def tabulate(models: dict[str, Lines]) -> dict[str, Any]:
    """What `compare_all` finds of each student, its mean over the ranked sets, and pairs of students."""
    table = compare_all(models)
    for name, row in table["configurations"].items():
        row["ranked_sets"] = ranked_sets(models[TEACHER], models[name])
    # What a figure changes by is the newest of the records.
    dates = [lines[0]["machine"]["measured"] for lines in models.values() if lines[0]["machine"]["gpu"] is not None]
    table["machine"]["measured"] = max(dates, default=None)
    table["pairs"] = {
        f"{one} {other}": pair(models[one], models[other])
        for other, beside in BESIDE.items()
        for one in beside
        if {one, other} <= models.keys()
    }
    asked = {name: outcomes(lines, SETS, "strict") for name, lines in models.items() if tasks_of(lines) >= set(SETS)}
    table["rank_flips"] = rank_flips(asked)
    return table


def tasks_of(lines: Lines) -> set[str]:
    return {line["task"] for line in lines[1:]}


def read_runs(folder: Path) -> dict[str, Any]:
    """By run: seconds of its parts, and of each stage its tokens and seconds, and losses and reply-KL at its end."""
    seconds = json.loads((folder / "seconds.json").read_text())
    return {run: {"seconds": seconds[run], "stages": read_stages(folder / run)} for run in seconds}


def read_stages(folder: Path) -> dict[str, dict[str, Any]]:
    stages = {}
    for path in sorted(folder.glob("*-metrics.jsonl.gz")):
        steps = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        replies = path.with_name(path.name.replace("metrics.jsonl", "reply_kl.json"))
        first, last = steps[0], steps[-1]
        stages[path.name.removesuffix("-metrics.jsonl.gz")] = {
            "tokens": last["tokens"],
            "seconds_of_steps": seconds_of(steps),
            "held_out": [first["held_out_loss_before"], last["held_out_loss"]],
            "distant": [first["distant_loss_before"], last["distant_loss"]],
            "reply_kl": read_reply_kl(replies),
        }
    return stages


def seconds_of(steps: list[dict[str, Any]]) -> float | None:
    """None of a run of which only the losses at its ends were kept."""
    if any("seconds" not in step for step in steps):
        return None
    return round(sum(step["seconds"] for step in steps), 1)


def read_reply_kl(path: Path) -> float | None:
    """Nats a token; None of a run whose stages all learn text: there are no replies held out."""
    if not path.exists():
        return None
    return json.loads(gzip.decompress(path.read_bytes()))["reply_kl"]["mean"]


def ranked_sets(teacher: Lines, student: Lines) -> dict[str, Any] | None:
    """The mean over the six sets under both protocols, by strict extraction; None unless all were asked."""
    if not tasks_of(student) >= set(SETS):
        return None
    mean = compare(outcomes(teacher, SETS, "strict"), outcomes(student, SETS, "strict"))[MEAN]
    said = [line["letter"] for line in student[1:] if line["task"] in SETS]
    return {
        "items": mean["items"],
        "gap": mean["gap"],
        "letters": {letter: said.count(letter) for letter in sorted({each for each in said if each})},
    } | {protocol: mean[protocol]["retention"] for protocol in ("generation", "ranking")}


def pair(one: Lines, other: Lines) -> dict[str, dict[str, Any]]:
    """By task: right answers of both, the second's lead in points, and McNemar's p."""
    found = {}
    for task in sorted(tasks_of(one) & tasks_of(other)):
        both = [{line["index"]: line["strict"] for line in lines[1:] if line["task"] == task} for lines in (one, other)]
        shared = sorted(both[0].keys() & both[1].keys())
        first, second = (np.array([right[index] for index in shared], bool) for right in both)  # [items]
        found[task] = {
            "items": len(shared),
            "right": [int(first.sum()), int(second.sum())],
            "lead_pp": round(100 * float(second.mean() - first.mean()), 2),
            "p": mcnemar(first, second),
        }
    return found


def markdown(table: dict[str, Any]) -> str:
    """A table of answers, one of retention, one of protocols, and one for each pair."""
    rows = table["configurations"]
    tasks = list(rows[TEACHER]["tasks"])
    parts = [
        "# Trained students and untrained controls, by generated answers",
        f"On {table['machine']['gpu'] or 'a CPU'}, in bfloat16. Greedy replies, strict extraction. In brackets "
        "intervals of 95 %: Wilson's of accuracies, paired bootstrap of retention. Written by "
        "benchmarks/proof_report.py.",
    ]
    for title, cell in (("Right, percent", right_cell), ("Retention, percent of the teacher", retention_cell)):
        header = ["", "Kept", "KiB a token at 128K", *(f"{t} ({rows[TEACHER]['tasks'][t]['items']})" for t in tasks)]
        cells = [
            [
                name,
                str(len(row["layers"])),
                f"{kib_a_token(row, LONGEST):.2f}",
                *(cell(row["tasks"].get(t)) for t in tasks),
            ]
            for name, row in rows.items()
        ]
        parts += [f"## {title}", to_markdown(header, cells)]
    header = ["Run", "Stage", "Tokens", "Minutes"]
    header += ["Held out", "Distant answers", "the same, windows off", "Reply-KL a token"]
    cells = [
        [run, name, f"{stage['tokens']:,}", minutes_cell(stage), *loss_cells(stage), kl_cell(stage)]
        for run, row in table["runs"].items()
        for name, stage in row["stages"].items()
    ]
    parts += ["## Stages: losses in nats a token, before and after", to_markdown(header, cells), MINUTES]
    header = ["", "by generation", "by ranking", "gap, points", "letters"]
    ranked = [[name, *protocol_cells(row["ranked_sets"])] for name, row in rows.items() if row["ranked_sets"]]
    if ranked:
        parts += ["## Mean of the six ranked sets, retention in percent", to_markdown(header, ranked)]
    for name, tasks in table["pairs"].items():
        one, other = name.split()
        header = ["Task", "Items", f"{one}, right", f"{other}, right", "lead, points", "McNemar's p"]
        cells = [
            [task, str(row["items"]), *map(str, row["right"]), f"{row['lead_pp']:+.1f}", f"{row['p']:.2g}"]
            for task, row in tasks.items()
        ]
        parts += [f"## {other} beside {one}, on the same items", to_markdown(header, cells)]
    if ranked:
        flips = [f"{' and '.join(flip['models'])}" for flip in table["rank_flips"]]
        parts.append(
            "Pairs that ranking orders one way and generation the other: " + ("; ".join(flips) or "none") + "."
        )
    return "\n\n".join(parts) + "\n"


def kib_a_token(row: dict[str, Any], context: str) -> float:
    return row["cache_bytes"][context] / int(context) / 1024


def loss_cells(stage: dict[str, Any]) -> list[str]:
    """On rows held out; on distant answers as the student is, and with its windows off, where they were measured."""
    distant = [each or {} for each in stage["distant"]]
    pairs = [stage["held_out"], *([each.get(how) for each in distant] for how in ("as_is", "without_window"))]
    return [NOTHING if None in pair else " -> ".join(f"{loss:.3f}" for loss in pair) for pair in pairs]


def minutes_cell(stage: dict[str, Any]) -> str:
    seconds = stage["seconds_of_steps"]
    return NOTHING if seconds is None else f"{seconds / 60:.1f}"


def kl_cell(stage: dict[str, Any]) -> str:
    return NOTHING if stage["reply_kl"] is None else f"{stage['reply_kl']:.3f}"


def protocol_cells(row: dict[str, Any]) -> list[str]:
    cells = [percent(row[protocol]["value"], row[protocol]["interval"]) for protocol in ("generation", "ranking")]
    low, high = row["gap"]["interval"]
    gap = f"{row['gap']['value']:+.1f} [{low:.1f}, {high:.1f}]"
    return [*cells, gap, ", ".join(f"{letter} {count}" for letter, count in row["letters"].items())]


def proof_figures(results: Path) -> dict[str, dict]:
    """Retention of the trained students by generation, K4's lead over WT4 at equal tokens; only what was measured.

    A figure's spread is the 95 % interval of the retention; of a gap between protocols, whichever way, with its sign.
    """
    table = json.loads((results / "table.json").read_text())
    source = "results/proof/table.json"
    figures = {}
    for short, student in FIGURES.items():
        row = table["configurations"].get(student)
        if row is None:
            continue
        name = f"proof_{short}"
        for what, task in TOLD.items():
            if (score := row["tasks"].get(task)) is not None:
                kept = {"value": score["strict"]["retention"], "spread": score["strict"]["retention_interval"]}
                figures[f"{name}_retention_{what}"] = kept | {"unit": "ratio", "source": source}
        if (mean := row["ranked_sets"]) is not None:
            kept = {"value": round(mean["generation"]["value"], 4), "spread": mean["generation"]["interval"]}
            figures[f"{name}_retention_mc"] = kept | {"unit": "ratio", "source": source}
            gap = {"value": round(abs(mean["gap"]["value"]), 2), "spread": mean["gap"]["interval"]}
            figures[f"{name}_protocol_gap_mc_pp"] = gap | {"unit": "points", "source": source}
    if (lead := table["pairs"].get(f"WT4 {EQUAL}", {}).get(TOLD["recall_8k"])) is not None:
        figures["proof_k4_minus_wt4_recall_8k_pp"] = {"value": lead["lead_pp"], "unit": "points", "source": source}
    if SEVEN in table["runs"]:
        figures |= cost_figures(table["runs"][SEVEN])
    return figures


def cost_figures(run: dict[str, Any]) -> dict[str, dict]:
    """Tokens and GPU hours of the best student's run, conversion, compilation and measurements among them."""
    tokens = sum(stage["tokens"] for stage in run["stages"].values())
    hours = sum(run["seconds"].values()) / 3600
    source = "results/proof/table.json"
    return {
        "proof_tokens_millions": {"value": round(tokens / 1e6, 2), "unit": "million tokens", "source": source},
        "proof_gpu_hours": {"value": round(hours, 2), "unit": "h", "source": source},
    }


def draw(results: Path, table: dict[str, Any]) -> None:
    """Retention over cache bytes a token, at two contexts: short tasks, and what lies beyond the window; a line an
    architecture."""
    pyplot = pyplot_to_files()
    rows = table["configurations"]
    drawn = [name for names, *_ in LINES.values() for name in names if name in rows]
    # What all were asked that were asked such a thing, so that points can be compared.
    beyond = [rows[name]["tasks"].keys() - set(SHORT) for name in drawn]
    long = [
        task for task in rows[TEACHER]["tasks"] if task not in SHORT and all(task in asked for asked in beyond if asked)
    ]
    panels = {"Short tasks, mean of eight": SHORT, "Beyond the window: " + ", ".join(long): long}
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.6), sharex=True, sharey=True, layout="constrained")
    for line, context in zip(axes, CONTEXTS, strict=True):
        for axis, (title, tasks) in zip(line, panels.items(), strict=True):
            draw_panel(axis, rows, tasks, context)
            axis.set_title(title, fontsize=9, wrap=True)
        line[0].set_ylabel("right answers, % of the teacher's")
    axes[0, 0].set_xlim(0, 1.2 * max(kib_a_token(rows[name], context) for name in drawn for context in CONTEXTS))
    axes[0, 0].set_ylim(0, 108)
    axes[0, 0].legend(fontsize=9, loc="lower right")
    figure.savefig(results / "frontier.svg", metadata={"Date": None})  # equal results draw equal files
    figure.savefig(results / "frontier.png", dpi=160)
    pyplot.close(figure)


def draw_panel(axis: Any, rows: dict[str, Any], tasks: Any, context: str) -> None:
    """Some tasks' retention over the cache's bytes at a context."""
    for label, (names, style, color, beside) in LINES.items():
        points = [(kib_a_token(rows[n], context), mean_retention(rows[n], tasks), n) for n in names if n in rows]
        points = [point for point in points if point[1] is not None]
        axis.plot([x for x, *_ in points], [y for _, y, _ in points], style, color=color, label=label)
        for x, y, name in points:
            short = name.split("-")[0]
            axis.annotate(short, (x, y), xytext=beside, textcoords="offset points", fontsize=9, color=color)
    axis.axhline(100, color="black", linewidth=0.8)
    teachers = kib_a_token(rows[TEACHER], context)
    axis.set_xlabel(f"cache at {CONTEXTS[context]}, KiB a token (teacher: {teachers:.0f})")
    axis.tick_params(labelbottom=True)
    axis.grid(alpha=0.3)


def mean_retention(row: dict[str, Any], tasks: Any) -> float | None:
    """Percent, of tasks of equal weight; None unless all were asked."""
    kept = [row["tasks"].get(task, {}).get("strict", {}).get("retention") for task in tasks]
    return None if None in kept else 100 * sum(kept) / len(kept)


if __name__ == "__main__":
    main()
