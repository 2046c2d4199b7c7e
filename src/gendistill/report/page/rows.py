"""Models side by side: the headline, differences, and the order by both protocols, over seeds and items.

A row is one model, or one with several seeds; what is compared is `gendistill.analysis.ablation.compare_rows`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gendistill.analysis.ablation import compare_rows
from gendistill.analysis.diagnostics import SIGNIFICANT
from gendistill.analysis.significance import PROTOCOLS, Records
from gendistill.report.evaluations import TEACHER
from gendistill.report.page import charts
from gendistill.report.page.evidence import INTERVALS, STYLES, Judged, interval, scaled
from gendistill.report.page.parts import (
    Column,
    Figure,
    Interval,
    Note,
    Number,
    Part,
    Table,
    count,
    decimals,
    p_value,
    percent,
    points,
)

LEAST_TO_DRAW = 3  # rows whose order is drawn; of two a sentence says it


class Row(NamedTuple):
    """What the headline and its plot say of a row.

    Attributes:
        control: what it is if it is no result, but something to hold results against: "untrained student".
        retention: by protocol; None where there is no ranking or the teacher got nothing right.
        gap: in points; None as well where a row has several seeds.
    """

    name: str
    control: str | None
    retention: Mapping[str, Interval | None]
    gap: Interval | None = None


class Rows:
    """Rows compared with each other, paired over seeds and items."""

    def __init__(self, rows: Mapping[str, Mapping[int, Records]], base: str, seed: int = 0):
        """Compares them.

        Args:
            rows: records of each by seed, in the order of the page; the teacher's too.
            base: the row that differences are from.
            seed: of the bootstrap.

        Raises:
            UserError: two rows were not evaluated on the same items.
        """
        self.base = base
        self.found = compare_rows(rows, base, TEACHER, seed)

    @property
    def several_seeds(self) -> bool:
        return any(len(row["seeds"]) > 1 for row in self.found["rows"].values())

    @property
    def over(self) -> str:
        """What the bootstrap draws anew."""
        return "seeds and items" if self.several_seeds else "items"

    def row(self, name: str, control: str | None = None) -> Row:
        own = self.found["rows"][name]
        kept = {by: None if own[by] is None else interval(own[by]["retention"]) for by in PROTOCOLS}
        return Row(name, control, kept)


def row_of(judged: Judged) -> Row:
    """Of a model with one seed, by the comparison that the summary of its run has as well."""
    kept = {by: judged.retention(by) for by in PROTOCOLS}
    return Row(judged.name, judged.model.control, kept, judged.gap())


def headline(rows: Sequence[Row]) -> tuple[str, list[Number]]:
    """The best result in a sentence, and its numbers with the controls beside them.

    Args:
        rows: controls, and results: one, or several that are compared.
    """
    # By generation: what a model is for. Ranking may prefer another, which the section on rank flips says.
    results = [row for row in rows if row.control is None]
    controls = [row for row in rows if row.control is not None]
    best = max(results, key=lambda row: _value(row.retention["generation"]))
    numbers = [
        _number(f"retention by {by}", " %", best.retention[by], [(row, row.retention[by]) for row in controls])
        for by in reversed(PROTOCOLS)  # generation first: it is what the models are for
    ]
    numbers.append(_number("gap between the two", " points", best.gap, [(row, row.gap) for row in controls]))
    by_generation, by_ranking = best.retention["generation"], best.retention["ranking"]
    shown = [number for number in numbers if number is not None]
    if by_generation is None:
        return "The teacher answers nothing right by generation, so there is nothing that could be retained.", shown
    who = f"After {best.name}, the student retains"
    if len(results) > 1:
        who = f"Of {len(results)} students, {best.name} retains most:"
    lead = f"{who} {percent(by_generation.value)} % of the teacher's accuracy by generated answers"
    if by_ranking is not None:
        lead += f", {percent(by_ranking.value)} % by ranking"
    return f"{lead}.", shown


def _value(found: Interval | None) -> float:
    # Where the teacher got nothing right, all rows have none, and the first is as good as any.
    return -1 if found is None else found.value


def _number(
    label: str, unit: str, found: Interval | None, controls: Sequence[tuple[Row, Interval | None]]
) -> Number | None:
    """Retention is a share and shown in percent, the gap is in points already."""
    if found is None:
        return None
    in_unit = scaled if unit == " %" else Interval._make
    value, low, high = in_unit(found)
    beside = [f"{row.control}: {in_unit(own).value:.1f}{unit}" for row, own in controls if own is not None]
    return Number(label, f"{value:.1f}{unit}", f"{low:.1f} to {high:.1f}{unit}", beside)


def retention_figure(rows: Sequence[Row], over: str) -> Figure:
    """Retention under both protocols, a line for each row."""
    # One colour and marker for a protocol, here and in every other plot.
    series = []
    for by in reversed(PROTOCOLS):
        found = [row.retention[by] for row in rows]
        if any(found):  # no task may be ranked
            series.append(charts.Dots(by, [None if one is None else scaled(one) for one in found], STYLES[by]))
    svg = charts.dots(
        [row.name if row.control in (None, row.name) else f"{row.name} ({row.control})" for row in rows],
        series,
        reference=100,
        reference_label="teacher",
        x_label="retention: mean accuracy, percent of the teacher's",
    )
    said = "; ".join(f"{row.name} {_said(row)}" for row in rows)
    alt = f"Retention in percent of the teacher's accuracy. {said}"
    note = f"{INTERVALS}, by a paired bootstrap over {over}."
    return Figure("retention", "Accuracy retained under both protocols", svg, alt, note)


def _said(row: Row) -> str:
    return ", ".join(f"{by} {percent(one.value)}" for by, one in row.retention.items() if one is not None)


def difference_parts(rows: Rows) -> list[Part]:
    """Every row's accuracy and retention, and its difference from the base: the largest by generation first."""
    # Accuracy says how good a model is, retention how much of the teacher is left in it.
    columns = [Column("row", "model"), Column("seeds", "seeds", count), Column("items", "items", count)]
    for what, label in (("accuracy", "accuracy, %"), ("retention", "retention, %")):
        columns += [Column(f"{by}_{what}", f"{by}: {label}", percent) for by in PROTOCOLS]
    cells = []
    for name, row in rows.found["rows"].items():
        # All accuracies first, then all retentions: neighbours are of one unit.
        figures = [_figure(row, by, what) for what in ("accuracy", "retention") for by in PROTOCOLS]
        cells.append([name, len(row["seeds"]), row["items"], *figures])
    note = f"Means over the tasks that are ranked as well as generated. {INTERVALS}, by a bootstrap over {rows.over}."
    return [*_differences(rows), Table("rows", "Accuracy and retention of every model", columns, cells, note)]


def _figure(row: Mapping[str, Any], by: str, what: str) -> Interval | None:
    return None if row[by] is None or what not in row[by] else interval(row[by][what])


def _differences(rows: Rows) -> list[Part]:
    columns = [Column("row", "model")]
    for by in PROTOCOLS:
        columns += [
            Column(f"{by}_difference", f"{by}: difference, points", points),
            Column(f"{by}_p", f"{by}: p", p_value),
            Column(f"{by}_p_corrected", f"{by}: p, {rows.found['correction']}", p_value),
        ]
    cells: list[list[Any]] = []
    for name, row in rows.found["rows"].items():
        # The base differs from itself by nothing, and from the teacher by what retention says.
        if name in (rows.base, TEACHER):
            continue
        own = [name]
        for by in PROTOCOLS:
            tested = row[by] or {}  # None: nothing is ranked
            own += [_figure(row, by, "difference"), tested.get("p"), tested.get("p_corrected")]
        cells.append(own)
    if not cells:
        return []
    cells.sort(key=lambda own: -abs(own[4].value if own[4] is not None else 0))  # by generation
    # The corrected p alone: of a hundred differences five are below 0.05 by chance.
    certain = [own[0] for own in cells if own[6] is not None and own[6] < SIGNIFICANT]
    lead = f"Beyond chance by generation, after correction: {', '.join(certain) or 'no difference'}."
    note = (
        f"Difference of mean accuracies from {rows.base}, on the same seeds and items; {INTERVALS.lower()}, by a "
        f"paired bootstrap over {rows.over}, and so is p; corrected by {rows.found['correction']}'s method for "
        f"{rows.found['comparisons']} comparisons."
    )
    return [Note(lead), Table("differences_of_models", f"Difference from {rows.base}", columns, cells, note)]


def order_parts(rows: Rows) -> list[Part]:
    """Which protocol prefers which row, and where the two disagree; nothing where nothing is ranked."""
    orders, flips, pairs = (rows.found[key] for key in ("orders", "flips", "pairs"))
    names = orders["generation"]
    if len(names) < 2 or not orders["ranking"]:
        return []  # one model has no order, and what is not ranked no second one
    accuracies = {name: [rows.found["rows"][name][by]["accuracy"]["value"] for by in PROTOCOLS] for name in names}
    columns = [
        Column("model", "model"),
        Column("ranking_place", "place by ranking", count),
        Column("generation_place", "place by generation", count),
        Column("ranking", "ranking, %", percent),
        Column("generation", "generation, %", percent),
    ]
    cells = []
    for name in names:
        # Equal ones share the better place.
        places = [1 + sum(other[by] > own for other in accuracies.values()) for by, own in enumerate(accuracies[name])]
        cells.append([name, *places, *accuracies[name]])
    note = "Mean accuracy over the tasks that are ranked as well as generated."
    table = Table("order", "Order of the models under both protocols", columns, cells, note)
    figures = []
    if len(names) >= LEAST_TO_DRAW:
        lines = _lines(accuracies)
        said = "; ".join(f"{name} {first} and {second}" for name, (first, second) in lines.items())
        alt = f"Places of the models by ranking and by generation: {said}"
        svg = charts.slopes(lines)
        figures = [Figure("order", "Order under both protocols", svg, alt, "Lines that cross are rank flips.")]
    return [*_flips(flips, pairs, rows), *figures, table]


def _lines(accuracies: Mapping[str, Sequence[float]]) -> dict[str, tuple[int, int]]:
    """Places by ranking and by generation; a tie by one is ordered as the other has it, so that it crosses nothing."""
    # Both from the best down; the other protocol decides between equal ones.
    by_ranking = sorted(accuracies, key=lambda name: [-accuracies[name][0], -accuracies[name][1]])
    by_generation = sorted(accuracies, key=lambda name: [-accuracies[name][1], -accuracies[name][0]])
    return {name: (1 + by_ranking.index(name), 1 + by_generation.index(name)) for name in by_generation}


def _flips(flips: Sequence[Mapping[str, Any]], pairs: int, rows: Rows) -> list[Part]:
    """A sentence on the flips, with both orders of the clearest, and a table of all."""
    # That there is none is a finding, too: the cheaper protocol would have chosen the same.
    if not flips:
        return [Note(f"Both protocols order all {pairs} pairs of models alike: no rank flips.")]
    certain = [flip for flip in flips if flip["p_corrected"] < SIGNIFICANT]
    # Named, with both orders: a count of flips says nothing that could be acted on.
    first, second = flips[0]["rows"]  # the least p stands first
    lead = (
        f"Ranking and generation disagree on {len(flips)} of {pairs} pairs of models, beyond chance on {len(certain)}. "
        f"The clearest: ranking puts {first} above {second} by {flips[0]['ranking']:.1f} points, generation puts "
        f"{second} above {first} by {-flips[0]['generation']:.1f} (corrected p {p_value(flips[0]['p_corrected'])})."
    )
    columns = [
        Column("ranking_prefers", "ranking prefers"),
        Column("generation_prefers", "generation prefers"),
        Column("ranking_difference", "by ranking, points", decimals(1)),
        Column("generation_difference", "by generation, points", decimals(1)),
        Column("p", "p", p_value),
        Column("p_corrected", f"p, {rows.found['correction']}", p_value),
    ]
    cells = [[*flip["rows"], flip["ranking"], -flip["generation"], flip["p"], flip["p_corrected"]] for flip in flips]
    note = (
        f"p: of a paired bootstrap over {rows.over}, the larger of both protocols'; corrected by "
        f"{rows.found['correction']}'s method for all {pairs} pairs."
    )
    return [Note(lead), Table("rank_flips", "Rank flips", columns, cells, note)]
