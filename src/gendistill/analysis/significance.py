"""How sure a comparison is: teacher and students on the same items, item by item.

Accuracies are shares (0 to 1); differences and gaps are percentage points. Means are over tasks of equal weight.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from gendistill.analysis.scores import means, retention
from gendistill.errors import UserError

PROTOCOLS = ("ranking", "generation")
RESAMPLES = 2000
LEVEL = 0.95
POWER = 0.8

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # of one model: records per item, by task


class Outcomes(NamedTuple):
    """One model on one task: which items it got right, and what guessing would get.

    Attributes:
        correct: [items, 2] 1 or 0, by ranking and by generation; ranking is nan if the task is not ranked.
        chance: [2]; 0 for generation without options to choose from.
    """

    correct: np.ndarray
    chance: np.ndarray

    @property
    def ranked(self) -> bool:
        return not np.isnan(self.correct).any()


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval at LEVEL; both None where there is no ranking or the teacher has nothing to keep."""

    value: float | None
    interval: tuple[float, float] | None


def outcomes(records: Records) -> dict[str, Outcomes]:
    """Reads the records that `evaluate_model` writes."""
    found = {}
    for task, items in records.items():
        correct = np.array([[item[f"{protocol}_correct"] for protocol in PROTOCOLS] for item in items], float)
        by_ranking = np.mean([_guessing(item, item["candidates"], np.nan) for item in items])
        by_generation = np.mean([_guessing(item, item["choices"], 0) for item in items])
        found[task] = Outcomes(correct, np.array([by_ranking, by_generation]))
    return found


def _guessing(item: Mapping[str, Any], among: Sequence[str], if_empty: float) -> float:
    return len(item["gold"]) / len(among) if among else if_empty


def compare(teacher: Records, student: Records, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The paired comparison of a student with its teacher.

    Returns:
        a row for each task and for each mean of `means`, ready for JSON: "items"; for each protocol "retention" with
        its interval, "corrected_retention" (of what is above chance), "p" (McNemar's exact test; for single tasks) and
        "minimum_detectable_effect" (points; for single tasks), all None where there is no ranking;
        and "gap" = retention by ranking minus by generation, in points, with its interval. Intervals are percentiles of
        a paired bootstrap: items are drawn anew within each task, and teacher and student are scored on the same draw.

    Raises:
        UserError: the two were not asked the same items.
    """
    theirs, ours = outcomes(teacher), outcomes(student)
    _check_same(teacher, student)
    draws = {task: _resample(theirs[task], ours[task], [seed, n]) for n, task in enumerate(theirs)}
    points = {
        task: np.stack([theirs[task].correct.mean(0), ours[task].correct.mean(0)])[None] for task in theirs
    }  # [1, teacher and student, protocol], as draws are [RESAMPLES, 2, 2]
    rows = {}
    for task in theirs:
        rows[task] = {"items": len(teacher[task])} | _row(points[task], draws[task], theirs[task].chance)
        for number, protocol in enumerate(PROTOCOLS):
            if protocol == "ranking" and not theirs[task].ranked:
                rows[task][protocol] |= {"p": None, "minimum_detectable_effect": None}
                continue
            right, kept = (each[task].correct[:, number].astype(bool) for each in (theirs, ours))
            rows[task][protocol] |= {
                "p": mcnemar(right, kept),
                "minimum_detectable_effect": minimum_detectable_effect(right, kept),
            }
    for name, tasks in means({task: outcome.ranked for task, outcome in theirs.items()}).items():
        # A mean over tasks of which some are not ranked has no ranking: nan stays nan.
        over = [np.mean([figures[task] for task in tasks], axis=0) for figures in (points, draws)]
        items = sum(len(teacher[task]) for task in tasks)
        rows[name] = {"items": items} | _row(*over, np.mean([theirs[task].chance for task in tasks], axis=0))
    return rows


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p of McNemar's exact test: whether the items that only one of two models gets right favour one of them.

    Args:
        one, other: [items] bool.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    differ = only_one + only_other
    tail = sum(math.comb(differ, few) for few in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / 2**differ)


def minimum_detectable_effect(one: np.ndarray, other: np.ndarray) -> float:
    """The difference, in points, that so many items would show with a chance of POWER at LEVEL.

    From the share of items on which the two models differ; at least one item is taken to differ.
    """
    normal = NormalDist()
    differ = max(1, int((one != other).sum())) / len(one)
    return 100 * (normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * math.sqrt(differ / len(one))


def rank_flips(models: Mapping[str, Records]) -> list[dict[str, Any]]:
    """Pairs of models that ranking orders one way and generation the other, by their means over ranked tasks.

    Returns:
        for each pair, the one that ranking prefers first: "models", "ranking" and "generation" (differences, points),
        and "p" of each protocol: the chance of a difference as large if the two models' answers were swapped at random,
        item by item.

    Raises:
        UserError: two models were not asked the same items.
    """
    flips = []
    for one, other in combinations(models, 2):
        _check_same(models[one], models[other])
        first, second = (_ranked(outcomes(models[name])) for name in (one, other))
        if not first:
            continue
        differences = 100 * np.mean([(first[t].correct.mean(0) - second[t].correct.mean(0)) for t in first], axis=0)
        if differences[0] * differences[1] >= 0:
            continue
        pair = (one, other) if differences[0] > 0 else (other, one)
        p = _swapped(first, second, np.abs(differences))
        ranking, generation = np.abs(differences[0]), -np.abs(differences[1])
        flips.append(
            {"models": pair, "ranking": float(ranking), "generation": float(generation)}
            | {"p": dict(zip(PROTOCOLS, p.tolist(), strict=True))}
        )
    return flips


def _ranked(found: dict[str, Outcomes]) -> dict[str, Outcomes]:
    return {task: outcome for task, outcome in found.items() if outcome.ranked}


def _check_same(one: Records, other: Records) -> None:
    for task in one.keys() | other.keys():
        asked = [[(item["id"], item["question"]) for item in records.get(task, ())] for records in (one, other)]
        if asked[0] != asked[1]:
            raise UserError(f"task '{task}': the two models were not asked the same items; evaluate both on the same")


def _resample(teacher: Outcomes, student: Outcomes, seed: list[int]) -> np.ndarray:
    """Accuracies [RESAMPLES, teacher and student, protocol] on items drawn with replacement."""
    items = len(teacher.correct)
    both = np.concatenate([teacher.correct, student.correct], axis=1).astype(np.float32)  # [items, 4]
    random = np.random.default_rng(seed)
    scores = [
        random.multinomial(items, np.full(items, 1 / items), size=100) @ both / items for _ in range(RESAMPLES // 100)
    ]
    return np.concatenate(scores).reshape(RESAMPLES, 2, 2)


def _row(point: np.ndarray, draws: np.ndarray, chance: np.ndarray) -> dict[str, Any]:
    """Figures of accuracies [1, 2, 2], with intervals from [RESAMPLES, 2, 2]."""
    row: dict[str, Any] = {}
    for number, protocol in enumerate(PROTOCOLS):
        above = point[0, :, number] - chance[number]
        row[protocol] = {
            "retention": vars(_estimate(_kept(point, number), _kept(draws, number))),
            "corrected_retention": retention(*above) if above[0] > 0 else None,
        }
    gap = 100 * (_kept(point, 0) - _kept(point, 1)), 100 * (_kept(draws, 0) - _kept(draws, 1))
    return row | {"gap": vars(_estimate(*gap))}


def _kept(accuracies: np.ndarray, protocol: int) -> np.ndarray:
    """Student over teacher; nan where the teacher got nothing right, or there is no ranking."""
    teacher, student = accuracies[:, 0, protocol], accuracies[:, 1, protocol]
    return np.divide(student, teacher, out=np.full_like(teacher, np.nan), where=teacher > 0)


def _estimate(point: np.ndarray, draws: np.ndarray) -> Estimate:
    if np.isnan(point[0]):
        return Estimate(None, None)
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(point[0]), (float(low), float(high)))


def _swapped(one: dict[str, Outcomes], other: dict[str, Outcomes], seen: np.ndarray) -> np.ndarray:
    """p [2] of differences of means at least as large as those seen (points), swapping answers item by item."""
    total = np.zeros((RESAMPLES, 2))
    random = np.random.default_rng(0)
    for task in one:
        differences = one[task].correct.astype(np.float32) - other[task].correct  # [items, 2]
        for start in range(0, RESAMPLES, 100):
            signs = random.integers(0, 2, (100, len(differences)), dtype=np.int8) * 2 - 1
            total[start : start + 100] += signs @ differences / len(differences) / len(one)
    larger = (100 * np.abs(total) >= seen - 1e-9).sum(0)
    return (larger + 1) / (RESAMPLES + 1)
