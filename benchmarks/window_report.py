"""The tables and the picture of window_table.py, from its records: results/window."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import window_figures
from ledger import ROOT, record_from_gpu

from gendistill.analysis.scores import wilson
from gendistill.analysis.significance import compare
from gendistill.analysis.tables import to_markdown
from gendistill.files import write_atomically
from gendistill.report.plots import pyplot_to_files

RESULTS = ROOT / "results/window"
COMMAND = "python benchmarks/window_table.py --report results/window/records"
PROTOCOLS = ("strict", "flexible")  # of extraction
NOTHING = "-"
GIB = 2**30
Lines = list[dict[str, Any]]  # a header, then one for each item


def write_report(folder: Path, results: Path = RESULTS, name: str | None = None) -> None:
    """Writes table.json, table.md, retention.svg and retention.png, and puts figures of a GPU into the ledger.

    Args:
        name: of the teacher, as a reader knows it; None for that of its folder.

    Raises:
        SystemExit: there are no records of the teacher, or some are of other questions than its.
    """
    models = read_models(folder)
    table = compare_all(models) | ({"teacher": name} if name else {})
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / "table.json", json.dumps(table, indent=1) + "\n")
    write_atomically(results / "table.md", markdown(table))
    draw(results, table)
    if table["machine"]["gpu"] is not None:
        record_from_gpu(results / "table.json", window_figures, COMMAND)


def read_models(folder: Path) -> dict[str, Lines]:
    """The records of each configuration, the teacher first, the others as they are asked."""
    from window_table import ORDER

    paths = {path.name.removesuffix(".jsonl.gz"): path for path in sorted(folder.glob("*.jsonl.gz"))}
    if "teacher" not in paths:
        raise SystemExit(f"{folder}: no records of the teacher, which all others are compared with")
    names = ["teacher", *("-".join(map(str, filter(None, each))) for each in ORDER)]
    models = {}
    for name in [*names, *(name for name in paths if name not in names)]:
        if name in paths:
            text = gzip.decompress(paths[name].read_bytes()).decode()
            models[name] = [json.loads(line) for line in text.splitlines()]
    theirs = models["teacher"][0]["questions"]
    for name, lines in models.items():
        if others := [task for task, digest in lines[0]["questions"].items() if theirs.get(task, digest) != digest]:
            raise SystemExit(f"{folder}: {name} was asked other questions than the teacher: {', '.join(others)}")
    return models


def compare_all(models: dict[str, Lines]) -> dict[str, Any]:
    """Accuracies of every configuration, and what it retains of the teacher's on the same items."""
    theirs = models["teacher"]
    head = {key: theirs[0][key] for key in ("teacher", "machine", "questions", "seed")}
    rows = {}
    for name, lines in models.items():
        kept = ("layers", "mixer", "window", "cache_bytes", "placement", "seconds")
        row = {key: lines[0][key] for key in kept}
        row["cache_saving"] = {
            length: round(1 - size / theirs[0]["cache_bytes"][length], 4) for length, size in row["cache_bytes"].items()
        }
        rows[name] = row | {"tasks": scores(theirs, lines)}
    return head | {"configurations": rows}


def scores(teacher: Lines, student: Lines) -> dict[str, dict[str, Any]]:
    """By task: items, unparsed replies, and by extraction right answers, retention and McNemar's p."""
    asked = {line["task"] for line in student[1:]}
    # In the teacher's order; a task that one of the two was not asked yet has no comparison.
    tasks = [task for task in dict.fromkeys(line["task"] for line in teacher[1:]) if task in asked]
    compared = {how: compare(outcomes(teacher, tasks, how), outcomes(student, tasks, how)) for how in PROTOCOLS}
    found = {}
    for task in tasks:
        items = [line for line in student[1:] if line["task"] == task]
        found[task] = {
            "items": len(items),
            "unparsed": sum(not line["parsed"] for line in items),
            "tokens": sum(line["tokens"] for line in items),
        }
        for how in PROTOCOLS:
            right = sum(line[how] for line in items)
            row = compared[how][task]["generation"]
            retained = row["retention"]["value"]  # None where the teacher has nothing right
            found[task][how] = {
                "right": right,
                "interval": _rounded(wilson(right, len(items))),
                "retention": None if retained is None else round(retained, 4),
                "retention_interval": _rounded(row["retention"]["interval"]),
                "p": row["p"],
            }
    return found


def outcomes(lines: Lines, tasks: Sequence[str], how: str) -> dict[str, Lines]:
    """The records as `compare` reads them: no options are there to guess among."""
    unasked = {"question": "", "candidates": (), "choices": (), "gold": ()}
    found: dict[str, Lines] = {task: [] for task in tasks}
    for line in lines[1:]:
        if line["task"] in found:
            outcome = {"id": line["index"], "ranking_correct": line.get("ranked"), "generation_correct": line[how]}
            found[line["task"]].append(unasked | outcome)
    return found


def _rounded(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [round(bound, 4) for bound in interval]


def markdown(table: dict[str, Any]) -> str:
    """What it was measured on, a table of the configurations, then one of accuracies and one of retention."""
    rows = table["configurations"]
    tasks = list(rows["teacher"]["tasks"])
    gpu = table["machine"]["gpu"] or "a CPU"
    about = [
        "# Untrained students, by generated answers",
        f"Teacher {table['teacher']}, on {gpu}, in bfloat16. Greedy replies, graded by strict extraction. Names say "
        "where attention is kept and of how many layers, what the others hold, and how many tokens a window sees "
        "(and 4 sinks). Intervals are 95 %: Wilson's of accuracies, paired bootstrap of retention.",
    ]
    lengths = list(rows["teacher"]["cache_bytes"])
    header = ["Configuration", "Kept layers"]
    header += [f"{what} at {int(length) // 1024}K" for length in lengths for what in ("GiB", "saved %")]
    header += ["placement, s", "asking, s"]
    cells = []
    for name, row in rows.items():
        sizes = [
            text
            for length in lengths
            for text in (f"{row['cache_bytes'][length] / GIB:.3f}", f"{100 * row['cache_saving'][length]:.1f}")
        ]
        cost = row["placement"]["cost"]
        layers = "all" if row["mixer"] is None else ",".join(map(str, row["layers"]))
        spent = NOTHING if cost is None else f"{cost['seconds']:.1f}"
        cells.append([name, layers, *sizes, spent, f"{sum(row['seconds'].values()):.0f}"])
    parts = [*about, to_markdown(header, cells)]
    header = ["Configuration", *(f"{task} ({rows['teacher']['tasks'][task]['items']})" for task in tasks)]
    for title, cell in (("## Right, percent", right_cell), ("## Retention, percent of the teacher", retention_cell)):
        cells = [[name, *(cell(row["tasks"].get(task)) for task in tasks)] for name, row in rows.items()]
        parts += [title, to_markdown(header, cells)]
    return "\n\n".join(parts) + "\n"


def right_cell(score: dict[str, Any] | None) -> str:
    """Of a task's row in `scores`: percent right, and the interval."""
    if score is None:
        return NOTHING
    return percent(score["strict"]["right"] / score["items"], score["strict"]["interval"])


def retention_cell(score: dict[str, Any] | None) -> str:
    """Percent of the teacher's, and the interval."""
    if score is None or score["strict"]["retention"] is None:
        return NOTHING
    return percent(score["strict"]["retention"], score["strict"]["retention_interval"])


def percent(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.1f} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def draw(results: Path, table: dict[str, Any]) -> None:
    """A grid of retention: a row for each student, a column for each task, the number in each cell."""
    pyplot = pyplot_to_files()
    rows = {name: row for name, row in table["configurations"].items() if name != "teacher"}
    tasks = list(table["configurations"]["teacher"]["tasks"])
    values = [[_retention(row["tasks"].get(task)) for task in tasks] for row in rows.values()]  # [students, tasks]
    figure, axis = pyplot.subplots(figsize=(2.6 + 0.62 * len(tasks), 1.9 + 0.32 * len(rows)), layout="constrained")
    # Light is much, dark is little, so that it says the same in grey; beyond the teacher there is no other colour.
    axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            shown = NOTHING if value != value else f"{value:.0f}"  # nan is not itself
            axis.text(x, y, shown, ha="center", va="center", fontsize=8, color="black" if value > 55 else "white")
    saved = [f"{name}  (-{100 * row['cache_saving']['131072']:.0f} %)" for name, row in rows.items()]
    axis.set_yticks(range(len(rows)), saved, fontsize=8)
    axis.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", fontsize=8)
    axis.set_title("Right answers kept without training, % of the teacher's (in brackets: cache at 128K)", fontsize=9)
    figure.savefig(
        results / "retention.svg", metadata={"Date": None}
    )  # no date, so that equal results draw equal files
    figure.savefig(results / "retention.png", dpi=200)
    pyplot.close(figure)


def _retention(score: dict[str, Any] | None) -> float:
    """Percent; nan where there is none."""
    retained = None if score is None else score["strict"]["retention"]
    return float("nan") if retained is None else 100 * retained
