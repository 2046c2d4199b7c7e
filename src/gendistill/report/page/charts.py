"""The kinds of plots that a page has, as SVG: names and numbers in, no knowledge of runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gendistill.report.page.drawing import DASHES, DIM, GRID, INK, SERIES_COLOURS, WIDTH, drawing, style
from gendistill.report.page.parts import Interval

CHARACTER = 0.09  # inches of a letter of the legend, and some for its line
FEW = 30  # points of a curve that has a marker at each
POINTS = 200  # of a curve, at most; of longer ones the means of as many spans are drawn
# Which multiples of a power of ten a logarithmic axis names, by how many decades it spans at most.
DIGITS = {0.8: (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), 2: (1.0, 2.0, 5.0), math.inf: (1.0,)}
# Colour, marker, dashes and width of a model whose place by generation is better than by ranking (1), or worse (-1).
MOVES = {0: (DIM, "o", "-", 1), 1: (SERIES_COLOURS[0], "^", "-", 2), -1: (SERIES_COLOURS[1], "v", DASHES[1], 1)}


class Dots(NamedTuple):
    """A series of values, one for each row: None where there is none."""

    name: str
    values: Sequence[Interval | None]
    style: int  # the place of its style
    hollow: bool = False


def dots(
    rows: Sequence[str],
    series: Sequence[Dots],
    *,
    reference: float | None = None,
    reference_label: str = "",
    x_label: str,
) -> str:
    """Values with their intervals, a line for each row, the series one above the other in it."""
    # Rows are 1 apart, and a fifth of that stays free between them.
    gap = 0.8 / max(1, len(series))
    height = 0.75 + len(rows) * max(0.3, 0.17 * len(series))
    with drawing(WIDTH, height) as (figure, axis, drawn):
        for number, own in enumerate(series):
            color, marker, _ = style(own.style)
            filled = "none" if own.hollow else color
            for row, found in enumerate(own.values):
                if found is None:
                    continue
                # The series of a row stand around its middle.
                y = row + gap * (number - (len(series) - 1) / 2)
                if found.low is not None and found.high is not None:
                    axis.plot([found.low, found.high], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
                axis.plot(
                    [found.value], [y], marker, markersize=6, markerfacecolor=filled, markeredgecolor=color, zorder=3
                )
            # An empty one of the series for the legend, whatever its rows lack.
            axis.plot([], [], marker=marker, color=color, markerfacecolor=filled, linestyle="-", label=own.name)
        # What all rows are held against, named at its upper end.
        if reference is not None:
            axis.axvline(reference, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
            axis.annotate(
                reference_label,
                (reference, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8,
                color=DIM,
            )
        axis.set_yticks(range(len(rows)), rows)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.set_ylim(len(rows) - 0.45, -0.55)  # the first row on top
        axis.set_xlim(left=0)  # shares begin at nothing: a cut axis makes small differences large
        axis.set_xlabel(x_label)
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        figure.legend(loc="outside lower right", ncols=3)
    return drawn[0]


def curves(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    width: float = 3.6,
    height: float = 2.7,
    x_log: bool = False,
    markers: bool = False,
) -> str:
    """Lines of (name, x, y) over a logarithmic y.

    Args:
        x_log: x is a context or a position, and doubles from point to point.
        markers: at every point, for those that were measured one by one.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator

    tell_apart = markers or len(series) > 2  # two are told apart by their dashes
    columns = 2 if max(len(name) for name, *_ in series) * CHARACTER * 2 < width else 1
    # The legend lies below, and has its height for itself.
    rows_of_legend = -(-len(series) // columns)
    with drawing(width, height + 0.17 * rows_of_legend) as (figure, axis, drawn):
        for number, (name, x, y) in enumerate(series):
            color, marker, dashes = style(number)
            thin_x, thin_y = thinned(x, y)
            every = max(1, len(thin_x) // 8)  # a few markers on a long line, to tell it by
            axis.plot(
                thin_x,
                thin_y,
                color=color,
                linestyle=dashes,
                marker=marker if tell_apart or len(thin_x) < FEW else None,
                markevery=1 if markers or len(thin_x) < FEW else every,
                markersize=4,
                label=name,
            )
        if x_log:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
            axis.xaxis.set_major_formatter(FuncFormatter(_in_powers_of_two))
        else:
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_yscale("log")  # losses and times differ by orders of magnitude
        _label_decades(axis)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label, fontsize=8)
        axis.grid(which="minor", visible=False)
        if len(series) > 1:  # of one the title says what it is
            figure.legend(loc="outside lower center", ncols=columns)
    return drawn[0]


def _in_powers_of_two(value: float, _: int) -> str:
    return f"{value / 1024:g}K" if value >= 1024 else f"{value:g}"


def _label_decades(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, and more of them the fewer decades it spans."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # By what is drawn: a loss of NaN or 0 has no place on the axis, and none in its limits.
    low, high = axis.get_ylim()
    decades = math.log10(high / low)
    between = next(digits for most, digits in DIGITS.items() if decades < most)
    axis.yaxis.set_major_locator(LogLocator(subs=between))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS of a curve: the mean of each span of y, at the span's last x."""
    span = -(-len(x) // POINTS)  # points that are drawn as one, rounded up
    starts = range(0, len(x), span)
    ends = [min(start + span, len(x)) for start in starts]
    means = [sum(y[start:end]) / (end - start) for start, end in zip(starts, ends, strict=True)]
    return [x[end - 1] for end in ends], means


def slopes(places: Mapping[str, tuple[int, int]]) -> str:
    """A line for each model, from its place by ranking to that by generation; dashed if it falls, bold if it rises."""
    with drawing(WIDTH, 0.7 + 0.26 * len(places)) as (_, axis, drawn):
        for name, (first, second) in places.items():
            color, marker, dashes, linewidth = MOVES[(first > second) - (first < second)]
            axis.plot([0, 1], [first, second], marker, ls=dashes, color=color, linewidth=linewidth)
            for x, place, side, ha in ((0, first, -8, "right"), (1, second, 8, "left")):
                where = {"xytext": (side, 0), "textcoords": "offset points", "ha": ha, "va": "center", "fontsize": 8}
                axis.annotate(f"{name}  {place}" if x == 0 else f"{place}  {name}", (x, place), **where)
        axis.set_xlim(-1.1, 2.1)  # room for the names
        axis.set_ylim(len(places) + 0.5, 0.5)  # the first place on top
        axis.set_xticks([0, 1], ["by ranking", "by generation"])
        axis.tick_params(length=0, labelcolor=INK)
        axis.set_yticks([])
        axis.grid(visible=False)
        axis.set_frame_on(False)
    return drawn[0]


def letters(gold: Mapping[str, float], series: Mapping[str, Mapping[str, float]]) -> str:
    """Each letter's share of the right answers as a bar, of each model's replies as a marker; shares of 1."""
    with drawing(WIDTH, 2.4 + 0.17 * -(-len(series) // 3)) as (figure, axis, drawn):
        places = range(len(gold))
        axis.bar(places, [100 * share for share in gold.values()], width=0.8, color=GRID, label="right answers")
        step = 0.7 / max(1, len(series))  # markers stand side by side within the bar
        for number, (name, shares) in enumerate(series.items()):
            color, marker, _ = style(number)
            offset = step * (number - (len(series) - 1) / 2)
            x = [place + offset for place in places]
            axis.plot(x, [100 * share for share in shares.values()], marker, color=color, label=name)
        axis.set_xticks(places, list(gold))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("letter")
        axis.set_ylabel("replies, percent")
        axis.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=3)
    return drawn[0]


def layers(rows: Mapping[str, Sequence[str | None]], labels: Mapping[str | None, str]) -> str:
    """A row of squares for each model, a square a layer: filled where attention is kept, else by its mixer.

    Args:
        labels: of attention (None) and of each mixer that there is, in the order of the legend.
    """
    styles = {kind: style(number) for number, kind in enumerate(labels)}
    with drawing(WIDTH, 0.95 + 0.3 * len(rows)) as (figure, axis, drawn):
        for row, kinds in enumerate(rows.values()):
            for layer, kind in enumerate(kinds):
                color, marker, _ = styles[kind]
                # Filled or not says the most important thing, whatever the mixers are.
                filled = color if kind is None else "none"
                axis.plot(layer, row, marker, markersize=8, markerfacecolor=filled, markeredgecolor=color)
        # The legend by empty series: each kind once, however many squares it has.
        for kind, label in labels.items():
            color, marker, _ = styles[kind]
            filled = color if kind is None else "none"
            axis.plot([], [], marker, markersize=7, markerfacecolor=filled, markeredgecolor=color, label=label)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        _number_layers(axis, max(map(len, rows.values())))
        figure.legend(loc="outside lower center", ncols=3)
    return drawn[0]


def bars(values: Sequence[float | None], kept: Sequence[int], y_label: str) -> str:
    """A bar for each layer that has a value; those that keep attention are hatched as well as of another colour."""
    there = {layer: value for layer, value in enumerate(values) if value is not None}
    low, high = min(there.values()), max(there.values())
    margin = 0.1 * (high - low or 1)  # all may be equal
    with drawing(WIDTH, 2.5) as (figure, axis, drawn):
        for keeps, name, color, hatch in ((True, "kept", SERIES_COLOURS[1], "//"), (False, "replaced", GRID, "")):
            own = {layer: value for layer, value in there.items() if (layer in kept) == keeps}
            heights = [value - low + margin for value in own.values()]
            # From a little below the least: differences are what layers are chosen by.
            axis.bar(
                list(own), heights, bottom=low - margin, color=color, hatch=hatch, edgecolor=INK, linewidth=0.5,
                label=name,
            )  # fmt: skip
        axis.set_ylim(low - margin, high + margin)
        axis.set_ylabel(y_label, fontsize=8)
        _number_layers(axis, len(values))
        figure.legend(loc="outside lower center", ncols=2)
    return drawn[0]


def _number_layers(axis: Any, layers: int) -> None:
    every = -(-layers // 32)  # of deep models not each has room for its number
    axis.set_xlim(-0.7, layers - 0.3)
    axis.set_xticks(range(0, layers, every))
    axis.set_xlabel("layer")
    axis.grid(axis="y", visible=False)
