"""Score tables for the terminal and for Markdown, from the plain data of `statistics`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gendistill.evaluate.statistics import Scores, retention

WRAPPED_NAME = 12  # characters of a name that stay on one line in the terminal
PAIRED_HEADER = [
    "task",
    "items",
    "rank: teacher",
    "student",
    "kept",
    "gen: teacher",
    "student",
    "kept",
    "gap",
    "unparsed",
]

SURE_HEADER = ["task", "rank: kept", "gen: kept", "above chance", "gap", "p", "seen"]


def paired_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells under PAIRED_HEADER for one point of `paired_table`: percent, and points for the gap."""
    return [
        [
            row["task"],
            str(row["items"]),
            *(
                _percent(row[protocol][key])
                for protocol in ("ranking", "generation")
                for key in ("teacher", "student", "retention")
            ),
            "–" if row["gap"] is None else f"{row['gap']:+.1f}",
            _percent(row["unparsed"]),
        ]
        for row in rows
    ]


def sure_cells(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells under SURE_HEADER for the rows of `comparison.compare`: percent, and points for gap and seen."""
    return [
        [
            task,
            _interval(row["ranking"]["retention"], 100),
            _interval(row["generation"]["retention"], 100),
            _percent(row["generation"]["corrected_retention"]),
            _interval(row["gap"], 1),
            f"{row['generation']['p']:.2g}" if "p" in row["generation"] else "",
            f"{row['generation']['smallest_difference']:.1f}" if "p" in row["generation"] else "",
        ]
        for task, row in rows.items()
    ]


def _interval(estimate: Mapping[str, Any], scale: float) -> str:
    if estimate["value"] is None:
        return "–"
    low, high = estimate["interval"]
    return f"{scale * estimate['value']:.1f} ({scale * low:.1f} to {scale * high:.1f})"


def points_cells(teacher: Scores, points: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the way from the teacher through the points of a run.

    Each task's cell is "ranking/generation" accuracy in percent; then the means, what is kept of the teacher's mean,
    and the share of unparsed replies.
    """
    header = ["point", *teacher.tasks, "rank", "kept", "gen", "kept", "unparsed"]
    cells = []
    for name, scores in {teacher.label: teacher, **points}.items():
        tasks = [
            f"{_percent(scores.tasks[task].ranking)}/{_percent(scores.tasks[task].generation)}"
            for task in teacher.tasks
        ]
        means = [
            _percent(value)
            for protocol in ("ranking", "generation")
            for value in (getattr(scores, protocol), retention(getattr(teacher, protocol), getattr(scores, protocol)))
        ]
        cells.append([name, *tasks, *means, _percent(scores.unparsed_rate)])
    return header, cells


def to_rich(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal: the first column to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for column, name in enumerate(header):
        table.add_column(name.replace(": ", ":\n"), justify="left" if column == 0 else "right")
    for first, *others in cells:
        # A long name, such as a stage's, may wrap between its words: the numbers have to fit 80 columns.
        table.add_row(first.replace("_", " ") if len(first) > WRAPPED_NAME else first, *others)
    return table


def to_markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table, without a line break at its end."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *cells)
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
