"""A table of the page as CSV, JSON, Markdown and LaTeX."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from gendistill.analysis.tables import to_markdown
from gendistill.report.page.parts import Column, Interval, Table, Value, known, shown, text
from gendistill.visible import visible

# What LaTeX would obey, and the signs of the tables here that its 7-bit fonts do not have.
LATEX = {char: f"\\{char}" for char in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
LATEX |= {
    "\u2011": "-",
    "\u00a0": "~",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "…": r"\dots{}",
    "⟨": r"$\langle$",
    "⟩": r"$\rangle$",
}


def to_csv(table: Table) -> str:
    """Values as measured, an interval in three columns."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")  # quotes what holds a comma
    columns = _spread(table)
    writer.writerow([key for keys in columns for key in keys])
    for row in table.rows:
        cells = []
        for keys, value in zip(columns, row, strict=True):
            cells += _values(value, len(keys))
        # Nothing, as spreadsheets and pandas read a value that is missing.
        writer.writerow(["" if value is None else value for value in cells])
    return written.getvalue()


def to_json(table: Table) -> str:
    """A list of objects, a row each; an interval as `KEY`, `KEY_low` and `KEY_high`."""
    rows, columns = [], _spread(table)
    for row in table.rows:
        record: dict[str, Any] = {}
        for keys, value in zip(columns, row, strict=True):
            record |= dict(zip(keys, _values(value, len(keys)), strict=True))
        rows.append(record)
    # Names stay readable in whatever script they are.
    return json.dumps({"title": table.title, "note": table.note, "rows": rows}, indent=1, ensure_ascii=False) + "\n"


def _spread(table: Table) -> list[list[str]]:
    """The keys of each column: one, or three where a row has an interval."""
    keys = []
    for number, column in enumerate(table.columns):
        # One row with an interval is enough: all rows have the same keys.
        spreads = any(isinstance(row[number], Interval) for row in table.rows)
        keys.append([column.key, f"{column.key}_low", f"{column.key}_high"] if spreads else [column.key])
    return keys


def _values(value: Value, places: int) -> list[str | float | int | None]:
    """What stands under so many keys."""
    if isinstance(value, Interval):
        return [known(part) for part in value]
    return [known(value), *[None] * (places - 1)]


def to_markdown_table(table: Table) -> str:
    """With the title in bold above it, and the note below."""
    header = [column.label for column in table.columns]
    return f"**{table.title}**\n\n{to_markdown(header, _cells(table))}\n\n{table.note}\n"


def to_latex(table: Table) -> str:
    r"""A `tabular` with the rules of booktabs; the caption is the paper's own."""
    # Names to the left, numbers to the right, as in the page.
    columns = "".join("l" if is_name(column) else "r" for column in table.columns)
    header = " & ".join(_latex(column.label) for column in table.columns)
    rows = [" & ".join(map(_latex, row)) for row in _cells(table)]
    # Title and note as comments, so that a reader of the file knows what is in it.
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% {visible(table.title)}. {visible(table.note)}".replace("\n", " "),
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        f"{header} \\\\",
        "\\midrule",
        *(f"{row} \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _cells(table: Table) -> list[list[str]]:
    """As shown, on one line each: names may come from anywhere."""
    # A line break would end a row of Markdown, and of LaTeX a paragraph.
    return [
        [" ".join(visible(shown(column, value)).split()) for column, value in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]


def _latex(cell: str) -> str:
    return "".join(LATEX.get(char, char) for char in cell)


def is_name(column: Column) -> bool:
    """Whether a column holds names, and not numbers."""
    return column.show is text  # all other ways to show a value are of numbers


# By the ending of the file.
FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "json": to_json,
    "md": to_markdown_table,
    "tex": to_latex,
}
