"""Score tables for the terminal and for Markdown, from the plain data of `scores`, `significance`, `diagnostics`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gendistill.analysis.diagnostics import Diagnostics
from gendistill.analysis.scores import Scores, TaskScore, retention

NOTHING = "–"
WRAPPED_NAME = 12  # characters of a name that stay on one line in the terminal
# Words of a header that are wider than the numbers below them; ten columns fit 80 characters only with these broken.
HYPHENATED = {"retention": "reten-\ntion", "unparsed": "un-\nparsed"}
PAIRED_HEADER = [
    "task",
    "rank: teacher",
    "student",
    "retention",
    "gen: teacher",
    "student",
    "retention",
    "flexible: retention",
    "gap",
    "unparsed",
]
SIGNIFICANCE_HEADER = [
    "task",
    "items",
    "rank: retention",
    "gen: retention",
    "above chance",
    "gap",
    "p",
    "min. detectable",
]
REPLIES_HEADER = [
    "task",
    "model",
    "right: strict",
    "flexible",
    "unparsed: strict",
    "flexible",
    "truncated",
    "tokens",
    "repetitive",
    "margin",
    "letters",
]
RANKINGS_HEADER = ["task", "model", "letter", "text", "per token", "per byte"]
ROTATIONS_HEADER = ["task", "model", "right", "all right", "same letter", "same option"]


SCORES_HEADER = ["task", "items", "generation", "flexible", "ranking", "unparsed", "truncated"]


def scores_cells(scores: Scores) -> list[list[str]]:
    """Cells under SCORES_HEADER, a row a task of one model: percent."""
    return [
        [
            name,
            f"{task.items:,}",
            _percent(task.generation),
            _percent(task.flexible),
            _percent(task.ranking),
            _percent(task.unparsed_rate),
            _percent(task.truncated_rate),
        ]
        for name, task in scores.tasks.items()
    ]


def paired_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells under PAIRED_HEADER for one student of `paired_table`: percent, and points for the gap."""
    cells = []
    for row in rows:
        numbers = []
        for protocol in ("ranking", "generation"):
            numbers += [row[protocol][key] for key in ("teacher", "student", "retention")]
        # Of flexible extraction the accuracies are left out: two more columns would not fit a terminal.
        numbers.append(row["flexible"]["retention"])
        gap = NOTHING if row["gap"] is None else f"{row['gap']:+.1f}"
        cells.append([row["task"], *map(_percent, numbers), gap, _percent(row["unparsed"])])
    return cells


def significance_cells(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells under SIGNIFICANCE_HEADER for the rows of `significance.compare`.

    Percent; points for the gap and the minimum detectable effect.
    """
    cells = []
    for task, row in rows.items():
        generation = row["generation"]
        # Means are over tasks of unlike items, on which there is no test; the cells stay empty.
        p, effect = "", ""
        if "p" in generation:
            p = f"{generation['p']:.2g}"
            points = generation["minimum_detectable_effect"]
            effect = NOTHING if points is None else f"{points:.1f}"
        cells.append(
            [
                task,
                str(row["items"]),
                _interval(row["ranking"]["retention"], 100),  # shares to percent
                _interval(generation["retention"], 100),
                _percent(generation["corrected_retention"]),
                _interval(row["gap"], 1),  # in points already
                p,
                effect,
            ]
        )
    return cells


def _interval(estimate: Mapping[str, Any], scale: float) -> str:
    if estimate["value"] is None:
        return NOTHING
    low, high = estimate["interval"]
    return f"{scale * estimate['value']:.1f} ({scale * low:.1f} to {scale * high:.1f})"


def replies_cells(task: str, models: Mapping[str, Diagnostics]) -> list[list[str]]:
    """Cells under REPLIES_HEADER, a row a model: percent, tokens as median/90 %, letters as given/right."""
    cells = []
    for model, found in models.items():
        rates = (found.generation, found.flexible, found.unparsed, found.flexible_unparsed, found.truncated)
        tokens = "/".join(f"{tokens:.0f}" for tokens in found.tokens)
        margin = NOTHING if found.margin is None else f"{found.margin:.2f}"
        letters = []
        for letter, share in found.letters.items():
            letters.append(f"{letter} {100 * share:.0f}/{100 * found.gold_letters[letter]:.0f}")
        cells.append(
            [task, model, *map(_percent, rates), tokens, _percent(found.repetitive), margin, " ".join(letters)]
        )
    return cells


def rankings_cells(task: str, models: Mapping[str, Diagnostics]) -> list[list[str]]:
    """Cells under RANKINGS_HEADER, a row a model if there are options to rank: percent."""
    ways = ("letter", "text", "text_per_token", "text_per_byte")  # in the header's order, not that of the records
    return [
        [task, model, *(_percent(found.ranking_by[way]) for way in ways)]
        for model, found in models.items()
        if found.ranking_by
    ]


def rotations_cells(task: str, models: Mapping[str, Diagnostics]) -> list[list[str]]:
    """Cells under ROTATIONS_HEADER, a row for each model whose items were rotated: percent."""
    cells = []
    for model, found in models.items():
        rotated = found.rotations
        if rotated is not None:
            rates = (rotated.accuracy, rotated.all_right, rotated.same_letter, rotated.same_choice)
            cells.append([task, model, *map(_percent, rates)])
    return cells


def stages_cells(teacher: Scores, students: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the teacher and the student after each stage of a run, a column each.

    A task's cell is "ranking/generation" accuracy in percent, generation alone if it is not ranked. Below are the means
    over tasks that have both, their retention, and the share of unparsed replies.
    """
    columns = {teacher.label: teacher, **students}
    rows = [[task, *(_both(scores.tasks[task]) for scores in columns.values())] for task in teacher.tasks]
    for protocol in ("ranking", "generation"):
        means = [getattr(scores.paired, protocol) for scores in columns.values()]  # [columns], the teacher's first
        rows.append([protocol, *map(_percent, means)])
        rows.append(["retention", *(_percent(retention(means[0], mean)) for mean in means)])
    rows.append(["unparsed", *(_percent(scores.paired.unparsed_rate) for scores in columns.values())])
    return ["task", *columns], rows


def _both(score: TaskScore) -> str:
    generation = _percent(score.generation)
    return generation if score.ranking is None else f"{_percent(score.ranking)}/{generation}"


def to_rich(title: str, header: Sequence[str], cells: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal: the first column to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    # The numbers have to fit 80 columns, so names break between words: in the header always, elsewhere if long.
    for column, name in enumerate(header):
        words = re.split("[ _-]", name)
        lines = "\n".join(HYPHENATED.get(word, word) for word in words)
        table.add_column(lines, justify="left" if column == 0 else "right")
    for first, *others in cells:
        table.add_row(first.replace("_", " ") if len(first) > WRAPPED_NAME else first, *others)
    return table


def to_markdown(header: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table, without a line break at its end."""
    rule = ["---", *["---:"] * (len(header) - 1)]  # "---:" puts a column's cells to the right
    lines = []
    for row in (header, rule, *cells):
        escaped = [cell.replace("|", "\\|") for cell in row]  # a task's name may hold what ends a cell
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}"
