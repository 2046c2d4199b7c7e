"""What a student is and how fast it is: the layers that keep attention, and what `bench` measured."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from gendistill.names import MIXERS, look_up
from gendistill.report.page import charts
from gendistill.report.page.parts import Column, Figure, Interval, Part, Table, count, decimals
from gendistill.report.page.reading import RunRecords
from gendistill.report.placement import PLACEMENT_HEADER, placement_cells

ATTENTION = "softmax attention"
# Keys of a row of bench.json with the axis and the unit, and what the value is multiplied by.
MEASURED = {
    "first": ("time to first token, ms", 1000),
    "token": ("time per output token, ms", 1000),
    "cache": ("cache, MiB", 2**-20),
}


def layer_parts(runs: Sequence[RunRecords]) -> list[Part]:
    """Which layers keep attention, and what was measured to choose them."""
    # A run without a student in its folder, as a published excerpt, says nothing of its layers.
    having = [run for run in runs if run.layers]
    parts: list[Part] = []
    if having:
        # In the order in which they are met, each once.
        kinds = dict.fromkeys(kind for run in having for kind in run.layers)
        # Attention first, whatever layer is the first: it is what the picture is looked at for.
        labels = {None: ATTENTION} | {kind: look_up(MIXERS, kind, "mixer").label for kind in kinds if kind is not None}
        said = "; ".join(f"{run.name} {_kept(run.layers)}" for run in having)
        svg = charts.layers({run.name: run.layers for run in having}, labels)
        alt = f"Layers that keep softmax attention: {said}"
        parts.append(Figure("layers", "What each layer holds", svg, alt))
    chosen = {run.name: run.placement for run in runs if run.placement is not None}
    if chosen:
        # Cells as `gendistill place --compare` has them: texts already.
        columns = [Column(name.replace("/", "_per_"), name) for name in PLACEMENT_HEADER]
        note = "Scores on recall prompts: mean -log p of the right answers' tokens, and answers right word for word."
        parts.append(Table("placement", "How the layers were chosen", columns, placement_cells(chosen), note))
    parts += [_by_layer(name, number, result) for number, (name, result) in enumerate(chosen.items(), 1)
              if "by_layer" in result]  # fmt: skip
    return parts


def _kept(layers: Sequence[str | None]) -> str:
    return ", ".join(str(layer) for layer, kind in enumerate(layers) if kind is None) or "none"


def _by_layer(run: str, number: int, result: dict[str, Any]) -> Figure:
    # "alone: -log p of the right answers, nats a token": how it was measured, then what.
    label, _, unit = result["by_layer"]["label"].partition(": ")
    values = result["by_layer"]["values"]
    svg = charts.bars(values, result["layers"], unit.replace(", ", ",\n"))
    said = ", ".join(f"layer {layer} {value:.4g}" for layer, value in enumerate(values) if value is not None)
    title = f"Each layer, {label}: {run}"
    return Figure(f"placement_by_layer_{number}", title, svg, f"{unit}. {said}")


def speed_parts(runs: Sequence[RunRecords]) -> list[Part]:
    """Time and memory over the context, of the runs in whose folder `bench` left its results."""
    having = [run for run in runs if run.bench is not None]
    if not having:
        return []
    return [*_speed_figures(having), _speed_table(having)]


def _speed_figures(runs: Sequence[RunRecords]) -> list[Figure]:
    """At batch 1, in the best form of each model."""
    # Other batches and forms are in the table: a line for each of them would hide these.
    figures = []
    for key, (label, scale) in MEASURED.items():
        series = {}
        for run in runs:
            for model in ("teacher", "student"):
                rows = [
                    row for row in run.bench["rows"] if (row["model"], row["form"], row["batch"]) == (model, "best", 1)
                ]
                # Empty where that context ran out of memory.
                points = [(row["context"], scale * _median(row[key])) for row in rows if row[key]]
                if points:
                    series[model if len(runs) == 1 else f"{run.name}, {model}"] = points
        if not series:
            continue  # a cache's bytes are asked of CUDA's allocator only
        svg = charts.curves(
            [(name, *map(list, zip(*points, strict=True))) for name, points in series.items()],
            x_label="context, tokens",
            y_label=label,
            x_log=True,
            markers=True,
        )
        said = "; ".join(
            f"{name}: " + ", ".join(f"{value:.3g} at {context:,}" for context, value in points)
            for name, points in series.items()
        )
        figures.append(Figure(f"speed_{key}", label.partition(",")[0].capitalize(), svg, f"{label}. {said}"))
    return figures


def _median(value: Any) -> float:
    """Of repetitions; the cache's bytes are measured once."""
    return median(value) if isinstance(value, list) else value


def _speed_table(runs: Sequence[RunRecords]) -> Table:
    columns = [
        Column("run", "run"),
        Column("model", "model"),
        Column("form", "form"),
        Column("context", "context, tokens", count),
        Column("batch", "batch", count),
        Column("first_ms", "first token, ms", decimals(2)),
        Column("token_ms", "output token, ms", decimals(2)),
        Column("tokens_per_second", "tokens/s", count),
        Column("peak_gib", "peak, GiB", decimals(2)),
        Column("cache_mib", "cache, MiB", decimals(1)),
        Column("error", "error"),
    ]
    rows = []
    for run in runs:
        for row in run.bench["rows"]:
            peak, cache = (None if row[key] is None else row[key] * scale for key, scale in _BYTES.items())
            times = [_spread(row[key]) for key in ("first", "token")]
            cells = [run.name, row["model"], row["form"], row["context"], row["batch"], *times]
            rows.append([*cells, row.get("tokens_per_second"), peak, cache, row["error"]])
    # Runs may have been measured on several machines, which are then all named.
    devices = ", ".join(dict.fromkeys(run.bench["machine"]["device"] for run in runs))
    note = f"On {devices}. Medians, with the least and the most of the repetitions. Forms: see docs/bench.md."
    return Table("speed", "Speed and memory by context", columns, rows, note)


# Of a column in bench.json, what its bytes are divided by.
_BYTES = {"peak": 2**-30, "cache": 2**-20}


def _spread(seconds: Sequence[float]) -> Interval | None:
    return Interval(*(1000 * value for value in (median(seconds), min(seconds), max(seconds)))) if seconds else None
