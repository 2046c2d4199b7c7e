"""Results of placements, side by side: which layers, what was measured of each, how far they agree, what they cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gendistill.errors import UserError

PLACEMENT_HEADER = ["method", "layers", "nats/token", "right", "shared", "seconds", "tokens"]
NOTHING = "–"
KEPT, OTHER = "tab:orange", "tab:blue"

Results = Mapping[str, Mapping[str, Any]]  # as in placement.json, by the names of their files


def placement_cells(results: Results) -> list[list[str]]:
    """Cells under PLACEMENT_HEADER: scores of the chosen layers, and how many of the first result's they share.

    Before them the whole teacher and no attention at all, as the first result has measured them.
    """
    first = next(iter(results.values()))
    scores = first.get("scores", {})
    cells = [
        _cells(name, "", scores[key]) for name, key in (("teacher", "teacher"), ("none kept", "nothing")) if scores
    ]
    for number, result in enumerate(results.values(), 1):
        layers = ",".join(map(str, result["layers"]))
        row = _cells(f"{number} {result['method']}", layers, result.get("scores", {}).get("chosen"))
        row[4] = f"{len({*result['layers']} & {*first['layers']})}/{len(result['layers'])}"
        if "cost" in result:
            row[5:] = [f"{result['cost']['seconds']:.1f}", f"{result['cost']['tokens']:,}"]
        cells.append(row)
    return cells


def _cells(name: str, layers: str, score: Mapping[str, float] | None) -> list[str]:
    measured = [NOTHING, NOTHING] if score is None else [f"{score['likelihood']:.3f}", f"{score['exact_match']:.0%}"]
    return [name, layers, *measured, "", "", ""]


def plot_placements(path: Path, results: Results) -> None:
    """Draws what was measured of each layer, with the chosen ones in another colour; growth, and agreement of several.

    Raises:
        UserError: the results are of models with different numbers of layers.
    """
    counts = {result["teacher"]["layers"] for result in results.values()}
    if len(counts) > 1:
        raise UserError(
            f"placements of models with {' and '.join(map(str, sorted(counts)))} layers have none in common"
        )
    import matplotlib  # takes a second to import, which only this needs

    matplotlib.use("svg")  # before pyplot, which would look for a display
    matplotlib.rcParams["svg.hashsalt"] = "gendistill"  # else the ids in a file are random
    from matplotlib import pyplot

    panels = [
        (_draw_layers, number, result) for number, result in enumerate(results.values(), 1) if "by_layer" in result
    ]
    panels += [(_draw_growth, number, result) for number, result in enumerate(results.values(), 1) if "steps" in result]
    panels.append((_draw_agreement, 0, results))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 2.6 * len(panels)), squeeze=False)
    for axis, (draw, number, what) in zip(axes.flat, panels, strict=True):
        draw(axis, number, what)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})  # no date, so that equal results draw equal files
    pyplot.close(figure)


def _draw_layers(axis: Any, number: int, result: Mapping[str, Any]) -> None:
    """A bar for each layer that was measured."""
    measured = {layer: value for layer, value in enumerate(result["by_layer"]["values"]) if value is not None}
    colours = [KEPT if layer in result["layers"] else OTHER for layer in measured]
    axis.bar(list(measured), list(measured.values()), color=colours)
    # From a little below the least: differences are what layers are chosen by.
    low, high = min(measured.values()), max(measured.values())
    axis.set_ylim(low - 0.1 * (high - low or 1), high + 0.1 * (high - low or 1))
    label, _, unit = result["by_layer"]["label"].partition(": ")
    axis.set_title(f"{number} {result['method']}: each layer, {label}; orange: kept", fontsize=9)
    axis.set_ylabel(unit.replace(", ", ",\n"), fontsize=7)
    _number_layers(axis, result["teacher"]["layers"])


def _draw_growth(axis: Any, number: int, result: Mapping[str, Any]) -> None:
    """The best set of each size, between no attention and all of it."""
    score = result["settings"]["score"]
    values = [step["score"][score] for step in result["steps"]]
    axis.plot(range(len(values)), values, marker="o", color=KEPT)
    axis.axhline(result["scores"]["teacher"][score], linestyle="--", color="gray", linewidth=1)
    axis.set_title(f"{number} {result['method']}: the best set of each size; dashed: the whole teacher", fontsize=9)
    axis.set_xticks(
        range(len(values)), [_growth_label(result["steps"], size) for size in range(len(values))], fontsize=7
    )
    axis.set_ylabel(result["by_layer"]["label"].partition(": ")[2].replace(", ", ",\n"), fontsize=7)


def _growth_label(steps: list[Mapping[str, Any]], size: int) -> str:
    """What a set has that the one before it had not; a wide beam's best sets need not grow out of each other."""
    new = sorted({*steps[size]["layers"]} - {*steps[size - 1]["layers"]}) if size else []
    return "none" if size == 0 else "+" + ",".join(map(str, new))


def _draw_agreement(axis: Any, _: int, results: Results) -> None:
    """A row of squares for each result: the layers it keeps."""
    for row, result in enumerate(results.values()):
        axis.scatter(result["layers"], [row] * len(result["layers"]), marker="s", s=60, color=KEPT)
    names = [f"{number} {result['method']}" for number, result in enumerate(results.values(), 1)]
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_title("layers that keep attention", fontsize=9)
    axis.grid(axis="x", alpha=0.25)
    _number_layers(axis, next(iter(results.values()))["teacher"]["layers"])


def _number_layers(axis: Any, layers: int) -> None:
    axis.set_xlim(-0.7, layers - 0.3)
    axis.set_xticks(range(layers), [str(layer) for layer in range(layers)], fontsize=6)
