"""Rows of an ablation against its base: paired over seeds and items, under both protocols, corrected for their number.

A row is a model trained with several seeds, each evaluated on items that its seed draws; the base has the same seeds
and items. The bootstrap is hierarchical (Davison and Hinkley, Bootstrap Methods and their Application, 3.8): seeds are
drawn anew, then within each task of a seed the items, and all rows are scored on the same draw. Its variance is right
where seeds differ by as much as items let them, too large where they differ less; with two seeds, too small by up to a
half where they differ far more. With one seed it speaks of items alone.

Accuracies are shares (0 to 1); differences are percentage points. Means are over tasks of equal weight.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from gendistill.analysis.significance import LEVEL, PROTOCOLS, Estimate, Records, check_same, outcomes
from gendistill.errors import UserError

RESAMPLES = 10_000  # a p of 2 in so many, after the correction for a hundred comparisons, is still 0.02
_CHUNK = 500  # resamples at once
CORRECTION = "Holm"  # Scandinavian Journal of Statistics 6 (1979)

Seeds = Mapping[int, Records]  # of one row: records per item, by task, by seed


def compare_rows(rows: Mapping[str, Seeds], base: str, teacher: str, seed: int = 0) -> dict[str, Any]:
    """Compares each row with the base, and the order of all rows by ranking with that by generation.

    Args:
        rows: by name, in the order of the table; `base` and `teacher` are among them.
        seed: of the bootstrap.

    Returns:
        ready for JSON: "rows", for each its "seeds", "items" and by protocol "accuracy", "retention" (of the teacher's
        mean accuracy) and, for all but the base, "difference" (row - base, points), each {"value", "interval"}, and
        "p" with "p_corrected"; "orders", names by protocol, the best first; "flips", pairs of rows that ranking orders
        one way and generation the other, the one that ranking prefers first: "rows", "ranking" and "generation"
        (differences, points), "p" and "p_corrected"; "comparisons" and "pairs", how many p each correction is for.
        Figures are over tasks that are ranked, or over all where none is; None by a protocol that no task has.

        A p is two-sided, of the bootstrap: twice the share of draws on the other side of zero. A flip takes both
        differences, so that its p is the larger of theirs. Corrections are Holm's: of differences over all rows and
        protocols, of flips over all pairs of rows.

    Raises:
        UserError: two rows were not evaluated on the same items.
    """
    # Pairing is by position, so that other items would be compared without a sign of it.
    _check_items(rows)
    drawn = _Drawn(rows, seed)
    found = {name: _row(drawn, name, base, teacher) for name in rows}
    tests = [(name, by) for name in rows if name != base for by in PROTOCOLS if found[name][by] is not None]
    corrected = holm([found[name][by]["p"] for name, by in tests])
    for (name, by), p in zip(tests, corrected, strict=True):
        found[name][by]["p_corrected"] = p
    # Without ranking there is one order, and nothing that it could contradict.
    pairs = list(combinations(rows, 2)) if drawn.is_ranked else []
    return {
        "rows": found,
        "orders": {by: _order(found, by) for by in PROTOCOLS},
        "flips": _flips(drawn, pairs),
        "comparisons": len(tests),
        "pairs": len(pairs),
        "correction": CORRECTION,
        "resamples": RESAMPLES,
    }


def holm(p: Sequence[float]) -> list[float]:
    """Values of p corrected for their number, in the given order: the step-down method of Holm (1979)."""
    corrected = [0.0] * len(p)
    highest = 0.0
    for place, index in enumerate(np.argsort(p, kind="stable")):
        # The smallest of m is held against 1 / m of the level, the next against 1 / (m - 1); none is below one before.
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = highest
    return corrected


class _Drawn:
    """Mean accuracies of all rows, by seed: as measured, and on items drawn anew, the same for all rows.

    Attributes:
        measured: by seed and row, [2] by protocol; nan where nothing is ranked.
        drawn: by seed and row, [RESAMPLES, 2].
    """

    def __init__(self, rows: Mapping[str, Seeds], seed: int):
        self.rows, self.seed = rows, seed
        first = outcomes(next(iter(next(iter(rows.values())).values())))
        ranked = [task for task, outcome in first.items() if outcome.ranked]
        # The same tasks for both protocols: a gap between them must not be one between tasks.
        self.is_ranked, self.tasks = bool(ranked), ranked or list(first)
        self.measured: dict[tuple[int, str], np.ndarray] = {}
        self.drawn: dict[tuple[int, str], np.ndarray] = {}
        for number in sorted({number for seeds in rows.values() for number in seeds}):
            self._draw(number)

    def _draw(self, number: int) -> None:
        # A row may lack a seed, of a variant that failed; the others are not drawn otherwise for it.
        names = [name for name, seeds in self.rows.items() if number in seeds]
        found = {name: outcomes(self.rows[name][number]) for name in names}
        measured = np.zeros((len(names), 2))
        drawn = np.zeros((RESAMPLES, len(names), 2))
        for place, task in enumerate(self.tasks):
            correct = np.stack([found[name][task].correct for name in names], axis=1)  # [items, rows, 2]
            measured += correct.mean(0) / len(self.tasks)
            # A generator of its own for each task: no draw depends on the rows, or the items of another task.
            drawn += _resample(correct, [self.seed, number % 2**32, place]) / len(self.tasks)
        for place, name in enumerate(names):
            self.measured[number, name] = measured[place]
            self.drawn[number, name] = drawn[:, place]

    def mean(self, name: str, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """A row's mean over seeds: as measured [2], and with seeds and items drawn anew [RESAMPLES, 2]."""
        measured = np.mean([self.measured[number, name] for number in seeds], axis=0)  # [2]
        # By the seeds alone, so that two rows of the same seeds are averaged over the same draw of them.
        random = np.random.default_rng([self.seed, len(seeds)])
        times = random.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES)
        drawn = sum(
            times[:, place, None] * self.drawn[number, name] / len(seeds) for place, number in enumerate(seeds)
        )  # [RESAMPLES, 2]
        return measured, drawn

    def seeds(self, *names: str) -> list[int]:
        """Seeds that all these rows have."""
        return sorted(set.intersection(*(set(self.rows[name]) for name in names)))


def _resample(correct: np.ndarray, seed: list[int]) -> np.ndarray:
    """Accuracies [RESAMPLES, rows, 2] on items drawn with replacement, of [items, rows, 2] right or wrong."""
    items, rows, _ = correct.shape
    flat = correct.reshape(items, -1)  # [items, rows * 2]
    random = np.random.default_rng(seed)
    uniform = np.full(items, 1 / items)
    chunks = []
    for _ in range(RESAMPLES // _CHUNK):
        times = random.multinomial(items, uniform, size=_CHUNK)  # [_CHUNK, items]: how often each item is drawn
        chunks.append(times @ flat / items)
    return np.concatenate(chunks).reshape(RESAMPLES, rows, 2)


def _row(drawn: _Drawn, name: str, base: str, teacher: str) -> dict[str, Any]:
    seeds = drawn.seeds(name)
    items = sum(len(drawn.rows[name][seed][task]) for seed in seeds for task in drawn.tasks)
    row: dict[str, Any] = {"seeds": seeds, "items": items}
    measured, means = drawn.mean(name, seeds)  # [2], [RESAMPLES, 2]
    for place, by in enumerate(PROTOCOLS):
        if np.isnan(measured[place]):
            row[by] = None
            continue
        row[by] = {"accuracy": _estimate(measured[place], means[:, place])}
        row[by]["retention"] = _retention(drawn, name, teacher, place)
        if name != base:
            row[by] |= _difference(drawn, name, base, place)
    return row


def _retention(drawn: _Drawn, name: str, teacher: str, place: int) -> dict[str, Any]:
    seeds = drawn.seeds(name, teacher)
    if not seeds:
        return vars(Estimate(None, None))
    (ours, our_draws), (theirs, their_draws) = drawn.mean(name, seeds), drawn.mean(teacher, seeds)
    if not theirs[place] > 0:  # nan too
        return vars(Estimate(None, None))
    # A draw in which the teacher has nothing right has no ratio.
    has = their_draws[:, place] > 0
    return _estimate(ours[place] / theirs[place], our_draws[has, place] / their_draws[has, place])


def _difference(drawn: _Drawn, name: str, other: str, place: int) -> dict[str, Any]:
    """Points by which a row exceeds another, over the seeds that both have, and p."""
    seeds = drawn.seeds(name, other)
    if not seeds:
        # Nothing can be said of them; as a comparison that found nothing it stays among those corrected for.
        return {"difference": vars(Estimate(None, None)), "p": 1.0}
    (ours, our_draws), (theirs, their_draws) = drawn.mean(name, seeds), drawn.mean(other, seeds)
    # Draw by draw on the same seeds and items, so that what makes both better or worse falls out.
    draws = 100 * (our_draws[:, place] - their_draws[:, place])
    return {"difference": _estimate(100 * (ours[place] - theirs[place]), draws), "p": _p(draws)}


def _p(draws: np.ndarray) -> float:
    """Two-sided p of differences drawn anew: how far zero is out among them."""
    # The margin: sums in another order may miss zero by rounding.
    beyond = min((draws <= 1e-9).sum(), (draws >= -1e-9).sum())
    # What was measured counts as one draw more, so that p is never 0.
    return min(1.0, 2 * float(beyond + 1) / (len(draws) + 1))


def _estimate(value: float, draws: np.ndarray) -> dict[str, Any]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return vars(Estimate(float(value), (float(low), float(high))))


def _order(found: Mapping[str, dict[str, Any]], by: str) -> list[str]:
    """Names of the rows, the best by this protocol first."""
    scored = {name: row[by]["accuracy"]["value"] for name, row in found.items() if row[by] is not None}
    return sorted(scored, key=scored.__getitem__, reverse=True)


def _flips(drawn: _Drawn, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    tested = []
    for one, other in pairs:
        by = [_difference(drawn, one, other, place) for place in range(len(PROTOCOLS))]
        # One that is zero, or was never measured, turns no order round.
        tested.append((one, other, *(found["difference"]["value"] or 0.0 for found in by), max(f["p"] for f in by)))
    # Of all pairs, since each of them could have been found.
    corrected = holm([p for *_, p in tested])
    flips = []
    for (one, other, ranking, generation, p), p_corrected in zip(tested, corrected, strict=True):
        if ranking * generation >= 0:
            continue  # the same order, or a tie by one of the two
        flips.append(
            {
                "rows": [one, other] if ranking > 0 else [other, one],
                "ranking": abs(ranking),
                "generation": -abs(generation),
                "p": p,
                "p_corrected": p_corrected,
            }
        )
    return sorted(flips, key=lambda flip: flip["p"])


def _check_items(rows: Mapping[str, Seeds]) -> None:
    """That rows which share a seed were asked the same."""
    first: dict[int, tuple[str, Records]] = {}
    for name, seeds in rows.items():
        for seed, records in seeds.items():
            other, asked = first.setdefault(seed, (name, records))
            try:
                check_same(asked, records)
            except UserError as error:
                raise UserError(f"{other} and {name}, seed {seed}: {error}") from None
