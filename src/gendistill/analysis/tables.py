"""Score tables for the terminal and for Markdown, from the plain data of `statistics`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gendistill.analysis.diagnostics import Diagnostics
from gendistill.analysis.scores import Scores, TaskScore, retention

WRAPPED_NAME = 12  # characters of a name that stay on one line in the terminal
PAIRED_HEADER = [
    "task",
    "rank: teacher",
    "student",
    "kept",
    "gen: teacher",
    "student",
    "kept",
    "flexible: kept",
    "gap",
    "unparsed",
]
SURE_HEADER = ["task", "items", "rank: kept", "gen: kept", "above chance", "gap", "p", "seen"]
REPLIES_HEADER = [
    "task",
    "model",
    "right: strict",
    "flexible",
    "unparsed: strict",
    "flexible",
    "truncated",
    "tokens",
    "loops",
    "margin",
    "letters",
]
RANKINGS_HEADER = ["task", "model", "letter", "text", "per token", "per byte"]
ROTATIONS_HEADER = ["task", "model", "right", "all right", "same letter", "same option"]


def paired_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells under PAIRED_HEADER for one point of `paired_table`: percent, and points for the gap."""
    return [
        [
            row["task"],
            *(
                _percent(row[protocol][key])
                for protocol in ("ranking", "generation")
                for key in ("teacher", "student", "retention")
            ),
            _percent(row["flexible"]["retention"]),
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
            str(row["items"]),
            _interval(row["ranking"]["retention"], 100),
            _interval(row["generation"]["retention"], 100),
            _percent(row["generation"]["corrected_retention"]),
            _interval(row["gap"], 1),
            f"{row['generation']['p']:.2g}" if "p" in row["generation"] else "",
            f"{row['generation']['minimum_detectable_effect']:.1f}" if "p" in row["generation"] else "",
        ]
        for task, row in rows.items()
    ]


def _interval(estimate: Mapping[str, Any], scale: float) -> str:
    if estimate["value"] is None:
        return "–"
    low, high = estimate["interval"]
    return f"{scale * estimate['value']:.1f} ({scale * low:.1f} to {scale * high:.1f})"


def replies_cells(task: str, models: Mapping[str, Diagnostics]) -> list[list[str]]:
    """Cells under REPLIES_HEADER, a row a model: percent, tokens as median/90 %, letters as given/right."""
    return [
        [
            task,
            model,
            *map(
                _percent, (found.generation, found.flexible, found.unparsed, found.flexible_unparsed, found.truncated)
            ),
            "/".join(f"{tokens:.0f}" for tokens in found.tokens),
            _percent(found.repeating),
            "–" if found.margin is None else f"{found.margin:.2f}",
            " ".join(
                f"{letter} {100 * share:.0f}/{100 * found.gold_letters[letter]:.0f}"
                for letter, share in found.letters.items()
            ),
        ]
        for model, found in models.items()
    ]


def rankings_cells(task: str, models: Mapping[str, Diagnostics]) -> list[list[str]]:
    """Cells under RANKINGS_HEADER, a row a model if there are options to rank: percent."""
    ways = ("letter", "text", "text_per_token", "text_per_byte")
    return [
        [task, model, *(_percent(found.ranking_by[way]) for way in ways)]
        for model, found in models.items()
        if found.ranking_by
    ]


def rotations_cells(task: str, models: Mapping[str, Diagnostics]) -> list[list[str]]:
    """Cells under ROTATIONS_HEADER, a row for each model that was asked them: percent."""
    return [
        [task, model, *map(_percent, (turned.accuracy, turned.all_right, turned.same_letter, turned.same_choice))]
        for model, found in models.items()
        if (turned := found.rotations) is not None
    ]


def points_cells(teacher: Scores, points: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the way from the teacher through the points of a run, a column each.

    A task's cell is "ranking/generation" accuracy in percent, generation alone if it is not ranked. Below are the means
    over tasks that have both, what is kept of the teacher's mean, and the share of unparsed replies.
    """
    columns = {teacher.label: teacher, **points}
    rows = [[task, *(_both(scores.tasks[task]) for scores in columns.values())] for task in teacher.tasks]
    for protocol in ("ranking", "generation"):
        theirs, *_ = means = [getattr(scores.paired, protocol) for scores in columns.values()]
        rows += [[protocol, *map(_percent, means)], ["kept", *(_percent(retention(theirs, ours)) for ours in means)]]
    rows.append(["unparsed", *(_percent(scores.paired.unparsed_rate) for scores in columns.values())])
    return ["task", *columns], rows


def _both(score: TaskScore) -> str:
    generation = _percent(score.generation)
    return generation if score.ranking is None else f"{_percent(score.ranking)}/{generation}"


def to_rich(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal: the first column to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    # The numbers have to fit 80 columns, so names break between words: in the header always, elsewhere if long.
    for column, name in enumerate(header):
        table.add_column(re.sub("[ _-]", "\n", name), justify="left" if column == 0 else "right")
    for first, *others in cells:
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
