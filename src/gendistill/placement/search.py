"""Which layers to keep: searches over sets of layers by their scores."""

from collections.abc import Sequence

from gendistill.errors import UserError
from gendistill.names import look_up
from gendistill.placement.layerwise import Kept
from gendistill.placement.scoring import Evaluate


def fixed(method: str, layers: int, of: int) -> list[int]:
    """Layers by their place alone: evenly spread up to the last one, the first ones, or the last ones.

    Raises:
        UserError: there are not so many layers; or there is no such method.
    """
    if layers > of:
        raise UserError(f"keep_attention.layers is {layers}; the teacher has {of} layers")
    spread = [(i + 1) * of // layers - 1 for i in range(layers)]  # 7 of 28: 3, 7, ..., 27
    places = {"uniform": spread, "first": list(range(layers)), "last": list(range(of - layers, of))}
    return look_up(places, method, "method")


def beam(evaluate: Evaluate, layers: int, candidates: Sequence[int], width: int, score: str) -> list[Kept]:
    """Beam search over sets of layers, from none: the best `width` sets of each size are grown by one layer.

    Args:
        candidates: layers to choose among.
        score: what sets are compared by; equal ones in the order of their layers.

    Returns:
        the best set of each size, from none on.
    """
    evaluate([()])  # where the growth starts from
    beams: list[Kept] = [()]
    best = [()]
    for _ in range(layers):
        # Sets that several beams grow into are scored once.
        grown = sorted({tuple(sorted((*kept, new))) for kept in beams for new in candidates if new not in kept})
        scores = evaluate(grown)
        beams = sorted(grown, key=lambda kept: (scores[kept].key(score), kept))[:width]
        best.append(beams[0])
    return best


def left_out(layer: int, of: int) -> Kept:
    """All layers but one."""
    return tuple(other for other in range(of) if other != layer)


def ranked_by_leaving_out(evaluate: Evaluate, of: int, score: str) -> list[int]:
    """The layers, those first without which the teacher answers worst; equal ones in their order."""
    scores = evaluate([left_out(layer, of) for layer in range(of)])
    # `reverse` keeps equal ones in their order.
    return sorted(range(of), key=lambda layer: scores[left_out(layer, of)].key(score), reverse=True)


def ranked_by_restoring(evaluate: Evaluate, of: int, score: str) -> list[int]:
    """The layers, those first whose attention alone makes the model answer best; equal ones in their order."""
    scores = evaluate([(layer,) for layer in range(of)])
    return sorted(range(of), key=lambda layer: scores[(layer,)].key(score))
