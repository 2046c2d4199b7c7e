"""Plots as SVG: files are in the colours of a light page, for print; inside the page its variables take their place.

Series are told apart by marker and dashes as well as by colour; the colours are Okabe and Ito's (2008), darkened where
a thin line of them would be too pale on white.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from gendistill.report.plots import pyplot_to_files

# Each colour of a plot with the page's variable of the same meaning; exact, since nothing else in a plot has colours.
INK, DIM, GRID = "#1f2328", "#59636e", "#d8dee4"
SERIES_COLOURS = ("#0072b2", "#d55e00", "#00795a", "#a9508a", "#7a5c00", "#3a4a5c")
VARIABLES = {INK: "--ink", DIM: "--dim", GRID: "--grid"}
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES_COLOURS, 1)}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
WIDTH = 6.4  # inches of a whole figure, 460 points; of a panel about half


# Little ink: no frame, quiet lines behind the data, names as large as the page's small print.
SETTINGS = {
    "svg.fonttype": "none",  # letters, which can be searched and take the page's font
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a $
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": DIM,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
}


class Style(NamedTuple):
    """How a series is drawn: by its place among the others."""

    color: str
    marker: str
    dashes: Any


def style(number: int) -> Style:
    """The n-th, from 0: no two of the first 84 are the same, and no two neighbours share anything."""
    # 6, 7 and 4 of them: the turns of the three meet again after 84.
    return Style(SERIES_COLOURS[number % 6], MARKERS[number % 7], DASHES[number % 4])


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Any, list[str]]]:
    """A figure of so many inches, its axis, and a list that holds its SVG when the block has ended."""
    pyplot = pyplot_to_files()
    with pyplot.rc_context(SETTINGS):
        # Constrained: legends and long names get their room, and take it from the axis.
        figure, axis = pyplot.subplots(figsize=(width, height), layout="constrained")
        drawn: list[str] = []
        try:
            yield figure, axis, drawn
            written = io.StringIO()
            # Transparent, so that it lies on either paper; no date, so that equal runs draw equal files.
            figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
            drawn.append(_cleaned(written.getvalue()))
        finally:
            pyplot.close(figure)  # pyplot keeps every figure that is not closed


def _cleaned(svg: str) -> str:
    """An SVG of matplotlib as it can stand in a page, and with half the bytes."""
    # The header of an XML file has no place in a page, nor what matplotlib says of itself.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Hundredths of a point are finer than a screen, and half the bytes. In tags alone: what is written stays.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", _hundredths, tag[0]), svg)
    return re.sub(r"\n\s*", "\n", svg)


def _hundredths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def in_page(svg: str, label: str, number: int) -> str:
    """An SVG as an image in the page, in its colours; `number` keeps its ids apart from those of the others."""
    # Exact: no colour of the table is part of another's digits.
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # matplotlib gives equal shapes equal ids, and all plots are in one document here.
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>p{number}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    # The page says how wide it is; the view box keeps its shape.
    svg = re.sub(r"<svg [^>]*>", lambda tag: re.sub(r' (?:width|height)="[^"]*"', "", tag[0]), svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
