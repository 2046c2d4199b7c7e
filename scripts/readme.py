"""Writes the measured numbers and result tables of README.md and docs/*.md anew from results/.

    python scripts/readme.py

A number is followed by a comment that names its entry in results/figures.json, which a reader does not see:
`24.6<!-- gpu_kd_peak_gib --> GiB`. It keeps the digits behind the point that it has; with " %" behind it, it is the
entry's ratio in percent. A comment `<!-- NAME.hardware -->` stands behind the GPU the entry was measured on. Tables lie
between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from figures import window_retention  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NUMBER = re.compile(r"(?P<number>\d[\d,]*(?:\.\d+)?)(?P<percent> %)?<!-- (?P<name>\w+) -->")
HARDWARE = re.compile(r"\w+<!-- (?P<name>\w+)\.hardware -->")
MARK = re.compile(r"<!-- (\w+)(?:\.hardware)? -->")
# No comment within: a table without an end would take in the next one.
TABLE = re.compile(r"<!-- table: (?P<name>\w+) -->(?:(?!<!--).)*<!-- end of table -->", re.DOTALL)
REAL_TASKS = {"arc_easy": "ARC-Easy, 5-shot", "openbookqa": "OpenBookQA, 5-shot", "gsm8k": "GSM8K, 3-shot"}


def main() -> None:
    ledger = json.loads((ROOT / "results/figures.json").read_text())
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text, ledger), encoding="utf-8")


def filled(text: str, ledger: dict[str, dict]) -> str:
    """The page with every marked number and table as results/ has it; KeyError for a name that is not there."""

    def number(match: re.Match) -> str:
        value = ledger[match["name"]]["value"]
        _, _, decimals = match["number"].partition(".")
        shown = f"{100 * value if match['percent'] else value:,.{len(decimals)}f}"
        return f"{shown}{match['percent'] or ''}<!-- {match['name']} -->"

    def hardware(match: re.Match) -> str:
        name = match["name"]
        # "1x NVIDIA H100 80GB HBM3" is told to a reader as "H100".
        gpu = re.search(r"NVIDIA (\w+)", ledger[name]["hardware"])[1]
        return f"{gpu}<!-- {name}.hardware -->"

    def table(match: re.Match) -> str:
        name = match["name"]
        return f"<!-- table: {name} -->\n\n{TABLES[name]()}\n\n<!-- end of table -->"

    return TABLE.sub(table, HARDWARE.sub(hardware, NUMBER.sub(number, text)))


def demo_table(first_cells: str) -> str:
    """The table of results/demo/summary.md whose header begins with these cells."""
    lines = (ROOT / "results/demo/summary.md").read_text(encoding="utf-8").split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith(first_cells))
    return "\n".join(lines[start : lines.index("", start)])


def real_table() -> str:
    """Teacher and last student of results/qwen2.5-1.5b by ranking and by generation, percent."""
    scores = json.loads((ROOT / "results/qwen2.5-1.5b/scores.json").read_text())
    rows = {row["task"]: row for row in list(scores["paired"].values())[-1]}
    lines = [
        "| task | ranking: teacher | student | retention | generation: teacher | student | retention |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task, label in REAL_TASKS.items():
        cells = [
            rows[task][way][key] for way in ("ranking", "generation") for key in ("teacher", "student", "retention")
        ]
        lines.append(f"| {label} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def windows_table() -> str:
    """Retention by generation under every window of results/window/embedded.json, percent."""
    raw = json.loads((ROOT / "results/window/embedded.json").read_text())
    windows = list(raw["with_sinks"])
    lines = [f"| window, tokens | text, tokens | {' | '.join(windows)} |", f"| --- |{' ---: |' * (1 + len(windows))}"]
    for task, tokens in raw["text_tokens"].items():
        kept = [100 * counts[task] / raw["teacher"][task] for counts in raw["with_sinks"].values()]
        cells = " | ".join(f"{share:.1f}" for share in kept)
        lines.append(f"| {task} | {tokens['median']} to {tokens['longest']} | {cells} |")
    for label, which in (("mean", "with_sinks"), ("mean, without sinks", "without_sinks")):
        cells = " | ".join(f"{100 * share:.1f}" for share in window_retention(raw, which).values())
        lines.append(f"| {label} | | {cells} |")
    return "\n".join(lines)


# Columns of the table of a real teacher's windows: tasks of results/window/table.json, as a reader knows them.
WINDOW_TASKS = {
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "arc_easy": "ARC-Easy",
    "openbookqa": "OpenBookQA",
    "needle_single_8192": "needle 8K",
    "needle_single_16384": "needle 16K",
    "recall_full_4096": "recall 4K",
    "recall_easy_8192": "easy recall 8K",
}


def real_windows_table() -> str:
    """Accuracy by generation of a real teacher and of untrained students, and what of the cache is saved."""
    rows = json.loads((ROOT / "results/window/table.json").read_text())["configurations"]
    shares = {}
    for name, row in rows.items():
        scores = [row["tasks"].get(task) for task in WINDOW_TASKS]
        right = [None if score is None else score["strict"]["right"] / score["items"] for score in scores]
        shares[_configuration(row, name)] = row, right
    return _students_table("kept layers, window", list(WINDOW_TASKS.values()), shares)


def _students_table(corner: str, columns: list[str], students: dict[str, tuple[dict, list[float | None]]]) -> str:
    """By student its row in a table.json, for what of the cache is saved, and shares, shown in percent."""
    lines = [
        f"| {corner} | cache at 128K | {' | '.join(columns)} |",
        "| --- | ---: |" + " ---: |" * len(columns),
    ]
    for label, (row, shares) in students.items():
        saved = "" if row["mixer"] is None else f"-{100 * row['cache_saving']['131072']:.1f} %"  # the teacher has none
        cells = ["" if share is None else f"{100 * share:.1f}" for share in shares]
        lines.append(f"| {label} | {saved} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _configuration(row: dict, name: str) -> str:
    """Where attention is kept, and what the other layers hold."""
    placement = name.split("-")[0]
    if row["mixer"] in (None, "window"):
        return ", ".join(map(str, filter(None, (placement, row["window"]))))
    beside = "" if row["window"] is None else f" beside {row['window']}"
    return f"{placement}, {row['mixer']}{beside}"


# Rows and columns of the table of trained students: names in results/proof/table.json, as a reader knows them.
PROOF_STUDENTS = {
    "teacher": "teacher, all 28 layers",
    "W7": "7 kept, window, untrained",
    "K7-token-replies": "7 kept, KDA beside window: the recipe",
    "K7": "7 kept, two stages, a share for each head",
    "K7-window-1024": "that one, asked with a window of 1,024",
    "P7-broad": "7 kept, KDA alone: the published architecture",
    "P7": "that one as it began",
    "W4": "4 kept, window, untrained",
    "K4-token-replies-far_distillation": "4 kept, KDA beside window: the recipe's first two stages",
    "WT4": "4 kept, window, trained as K4-mixers",
    "K4-mixers": "4 kept, KDA beside window, mixers",
}
PROOF_TASKS = {
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "needle_single_8192": "needle 8K",
    "recall_easy_8192": "recall 8K",
    "needle_single_16384": "needle 16K",
    "recall_easy_16384": "recall 16K",
}


def proof_table() -> str:
    """Retention by generation of trained students and untrained controls, percent, and what of the cache is saved."""
    rows = json.loads((ROOT / "results/proof/table.json").read_text())["configurations"]
    shares = {}
    for name, label in PROOF_STUDENTS.items():
        scores = [rows[name]["tasks"].get(task) for task in PROOF_TASKS]
        kept = [None if score is None else score["strict"]["retention"] for score in scores]
        sets = rows[name]["ranked_sets"]  # None where they were not asked
        shares[label] = rows[name], [sets and sets["generation"]["value"], *kept]
    return _students_table("", ["six sets", *PROOF_TASKS.values()], shares)


TABLES: dict[str, Callable[[], str]] = {
    "demo_stages": lambda: demo_table("| task | teacher | 0-conversion |"),
    "demo_pair": lambda: demo_table("| task | rank: teacher | student |"),
    "real_checkpoint": real_table,
    "embedded_windows": windows_table,
    "real_windows": real_windows_table,
    "proof": proof_table,
}


if __name__ == "__main__":
    main()
