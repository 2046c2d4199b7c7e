"""A table of the page as CSV, JSON, Markdown and LaTeX."""

import csv
import io
import json
from collections.abc import Callable

from gendistill.analysis.tables import to_markdown
from gendistill.report.page.parts import Column, Interval, Table, Value, shown, text
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
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([key for column in _spread(table) for key in column])
    for row in table.rows:
        cells = []
        for keys, value in zip(_spread(table), row, strict=True):
            cells += _values(value, len(keys))
        writer.writerow(["" if value is None else value for value in cells])
    return written.getvalue()


def to_json(table: Table) -> str:
    """A list of objects, a row each; an interval as `KEY`, `KEY_low` and `KEY_high`."""
    rows = []
    for row in table.rows:
        record = {}
        for keys, value in zip(_spread(table), row, strict=True):
            record |= dict(zip(keys, _values(value, len(keys)), strict=True))
        rows.append(record)
    return json.dumps({"title": table.title, "note": table.note, "rows": rows}, indent=1, ensure_ascii=False) + "\n"


def _spread(table: Table) -> list[list[str]]:
    """The keys of each column: one, or three where a row has an interval."""
    keys = []
    for number, column in enumerate(table.columns):
        spreads = any(isinstance(row[number], Interval) for row in table.rows)
        keys.append([column.key, f"{column.key}_low", f"{column.key}_high"] if spreads else [column.key])
    return keys


def _values(value: Value, places: int) -> list[str | float | int | None]:
    """What stands under so many keys."""
    if isinstance(value, Interval):
        return list(value)
    return [value, *[None] * (places - 1)]


def to_markdown_table(table: Table) -> str:
    header = [column.label for column in table.columns]
    return f"**{table.title}**\n\n{to_markdown(header, _cells(table))}\n\n{table.note}\n"


def to_latex(table: Table) -> str:
    r"""A `tabular` with the rules of booktabs."""
    columns = "".join("l" if is_name(column) else "r" for column in table.columns)
    header = " & ".join(_latex(column.label) for column in table.columns)
    rows = [" & ".join(map(_latex, row)) for row in _cells(table)]
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
    return [
        [" ".join(visible(shown(column, value)).split()) for column, value in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]


def _latex(cell: str) -> str:
    return "".join(LATEX.get(char, char) for char in cell)


def is_name(column: Column) -> bool:
    """Whether a column holds names, and not numbers."""
    return column.show is text


FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "json": to_json,
    "md": to_markdown_table,
    "tex": to_latex,
}
