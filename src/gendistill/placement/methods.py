"""The methods that measure, each a function of a measurement and its settings.

Each returns what it adds to the result: `layers`, `by_layer` with a figure of each layer, and beam search its `steps`.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gendistill.placement.gates import train_gates
from gendistill.placement.measurement import Measurement
from gendistill.placement.search import beam, left_out, ranked_by_leaving_out, ranked_by_restoring
from gendistill.recipe.placement import Beam, Gates, LeaveOneOut, Measured, Restored


def by_beam(measurement: Measurement, settings: Beam) -> dict[str, Any]:
    """Beam search (arXiv 2603.26556 selects its layers so, by exact match with the other layers silenced)."""
    candidates = list(range(measurement.of))
    if settings.candidates is not None:
        # Layers work in chains: alone hardly one helps, so that only leaving them out tells which matter.
        ranked = ranked_by_leaving_out(measurement.evaluate, measurement.of, settings.score)
        candidates = sorted(ranked[: settings.candidates])
    best = beam(measurement.evaluate, settings.layers, candidates, settings.width, settings.score)
    return {
        "layers": list(best[-1]),
        "steps": [{"layers": kept, "score": asdict(measurement.scores[kept])} for kept in best],
        "by_layer": measurement.by_layer("alone", settings.score, {layer: (layer,) for layer in candidates}),
    }


def by_leaving_out(measurement: Measurement, settings: LeaveOneOut) -> dict[str, Any]:
    """Each layer alone out of the whole teacher (the evidence of arXiv 2606.27791)."""
    ranked = ranked_by_leaving_out(measurement.evaluate, measurement.of, settings.score)
    sets = {layer: left_out(layer, measurement.of) for layer in range(measurement.of)}
    return {
        "layers": ranked[: settings.layers],
        "by_layer": measurement.by_layer("without it", settings.score, sets),
    }


def by_restoring(measurement: Measurement, settings: Restored) -> dict[str, Any]:
    """Each layer's attention alone given back to an aligned student (after arXiv 2512.20569).

    Without training, as it is; else after a short one, by its loss.
    """
    if settings.stage is not None:
        values = measurement.train_each()
        ranked = sorted(range(measurement.of), key=lambda layer: values[layer])
        label = "alone, after training: KL(teacher || student), nats a token"
        return {"layers": ranked[: settings.layers], "by_layer": {"label": label, "values": values}}
    ranked = ranked_by_restoring(measurement.evaluate, measurement.of, "kl")
    sets = {layer: (layer,) for layer in range(measurement.of)}
    return {"layers": ranked[: settings.layers], "by_layer": measurement.by_layer("alone", "kl", sets)}


def by_gates(measurement: Measurement, settings: Gates) -> dict[str, Any]:
    """Gates between attention and mixer, trained together, so that layers that work together are found together."""
    gates = train_gates(measurement, settings)
    ranked = sorted(range(measurement.of), key=lambda layer: gates[layer], reverse=True)
    return {"layers": ranked[: settings.layers], "by_layer": {"label": "its gate: share of attention", "values": gates}}


METHODS: dict[str, Callable[[Measurement, Measured], dict[str, Any]]] = {
    "beam": by_beam,
    "leave_one_out": by_leaving_out,
    "gates": by_gates,
    "kl": by_restoring,
}
