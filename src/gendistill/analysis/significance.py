"""Significance of a comparison: teacher and students on the same items, item by item.

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

PROTOCOLS = ("ranking", "generation")  # the last axis of every array here, in this order
RESAMPLES = 2000  # of bootstrap and permutation test; a percentile of 2.5 % then rests on 50 draws
LEVEL = 0.95  # of intervals, and one minus the error that the minimum detectable effect allows
POWER = 0.8
MOST_POINTS = 100  # two accuracies cannot differ by more
_CHUNK = 100  # resamples at once; they hold 8 bytes for each item, so all of them would take 160 MB for 10,000 items

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
    """A figure and its interval at LEVEL; both None where there is no ranking or the teacher got nothing right."""

    value: float | None
    interval: tuple[float, float] | None


def outcomes(records: Records) -> dict[str, Outcomes]:
    """Takes from the records of `evaluate_model` what statistics need, by task."""
    found = {}
    for task, items in records.items():
        right = [[item[f"{protocol}_correct"] for protocol in PROTOCOLS] for item in items]
        correct = np.array(right, float)  # [items, 2]; None, where nothing is ranked, becomes nan
        by_ranking = np.mean([_guessing(item, item["candidates"], np.nan) for item in items])
        by_generation = np.mean([_guessing(item, item["choices"], 0) for item in items])
        chance = np.array([by_ranking, by_generation])  # [2]
        found[task] = Outcomes(correct, chance)
    return found


def _guessing(item: Mapping[str, Any], among: Sequence[str], if_empty: float) -> float:
    """The chance that one drawn from `among` is right; several may be."""
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
        UserError: the two were not evaluated on the same items.
    """
    check_same(teacher, student)
    theirs, ours = outcomes(teacher), outcomes(student)
    measured, drawn = {}, {}
    for number, task in enumerate(theirs):
        measured[task] = _accuracies(theirs[task], ours[task])  # [1, 2, 2]: teacher and student, protocol
        # A generator of its own for each task, so that its draws do not depend on the items of those before it.
        drawn[task] = _resample(theirs[task], ours[task], [seed, number])  # [RESAMPLES, 2, 2]
    rows = {}
    for task in theirs:
        row = _row(measured[task], drawn[task], theirs[task].chance)
        tests = _tests(theirs[task], ours[task])
        for protocol in PROTOCOLS:
            row[protocol] |= tests[protocol]
        rows[task] = {"items": len(teacher[task])} | row
    for name, tasks in means({task: outcome.ranked for task, outcome in theirs.items()}).items():
        # A mean over tasks of which some are not ranked has no ranking: nan stays nan.
        mean_measured = np.mean([measured[task] for task in tasks], axis=0)  # [1, 2, 2]
        # Draws of different tasks are independent, so the n-th draw of a mean is the mean of the n-th draws.
        mean_drawn = np.mean([drawn[task] for task in tasks], axis=0)  # [RESAMPLES, 2, 2]
        mean_chance = np.mean([theirs[task].chance for task in tasks], axis=0)  # [2]
        items = sum(len(teacher[task]) for task in tasks)
        rows[name] = {"items": items} | _row(mean_measured, mean_drawn, mean_chance)
    return rows


def _accuracies(teacher: Outcomes, student: Outcomes) -> np.ndarray:
    """[1, teacher and student, protocol]: as if it were one draw, so that the same functions take both."""
    both = [teacher.correct.mean(0), student.correct.mean(0)]  # [2] each, by protocol
    return np.stack(both)[None]


def _resample(teacher: Outcomes, student: Outcomes, seed: list[int]) -> np.ndarray:
    """Accuracies [RESAMPLES, teacher and student, protocol] on items drawn with replacement."""
    items = len(teacher.correct)
    both = np.concatenate([teacher.correct, student.correct], axis=1).astype(np.float32)  # [items, 4]
    random = np.random.default_rng(seed)
    uniform = np.full(items, 1 / items)
    accuracies = []
    for _ in range(RESAMPLES // _CHUNK):
        # How often each item is drawn says the same as which items are drawn, and scores by one matrix product.
        times = random.multinomial(items, uniform, size=_CHUNK)  # [_CHUNK, items]
        accuracies.append(times @ both / items)  # [_CHUNK, 4]
    return np.concatenate(accuracies).reshape(RESAMPLES, 2, 2)


def _tests(teacher: Outcomes, student: Outcomes) -> dict[str, dict[str, float | None]]:
    """By protocol: McNemar's p and the minimum detectable effect of one task."""
    found = {}
    for number, protocol in enumerate(PROTOCOLS):
        if protocol == "ranking" and not teacher.ranked:
            found[protocol] = {"p": None, "minimum_detectable_effect": None}
            continue
        theirs = teacher.correct[:, number].astype(bool)  # [items]
        ours = student.correct[:, number].astype(bool)  # [items]
        found[protocol] = {
            "p": mcnemar(theirs, ours),
            "minimum_detectable_effect": minimum_detectable_effect(theirs, ours),
        }
    return found


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p of McNemar's exact test: whether the items that only one of two models gets right favour one of them.

    Args:
        one, other: [items] bool.
    """
    only_one = int((one & ~other).sum())
    only_other = int((other & ~one).sum())
    differ = only_one + only_other
    # If both are equally good, each of these items is a toss of a fair coin. Whole numbers: 2**differ overflows floats.
    tail = sum(math.comb(differ, few) for few in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / 2**differ)


def minimum_detectable_effect(one: np.ndarray, other: np.ndarray) -> float | None:
    """The difference, in points, that so many items would show with a chance of POWER at LEVEL.

    From the share of items on which the two models differ; at least one item is taken to differ. None if so few items
    show no difference there can be: it would be more than 100 points.

    Args:
        one, other: [items] bool.
    """
    items = len(one)
    normal = NormalDist()
    deviations = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)  # 1.96 + 0.84
    differ = max(1, int((one != other).sum())) / items  # the variance of one item's difference, if the mean is small
    points = 100 * deviations * math.sqrt(differ / items)
    return points if points <= MOST_POINTS else None


def rank_flips(models: Mapping[str, Records]) -> list[dict[str, Any]]:
    """Pairs of models that ranking orders one way and generation the other, by their means over ranked tasks.

    Returns:
        for each pair, the one that ranking prefers first: "models", "ranking" and "generation" (differences, points),
        and "p" of each protocol: the chance of a difference as large if the two models' outcomes were swapped at
        random, item by item.

    Raises:
        UserError: two models were not evaluated on the same items.
    """
    flips = []
    for one, other in combinations(models, 2):
        check_same(models[one], models[other])
        first, second = _ranked(outcomes(models[one])), _ranked(outcomes(models[other]))
        if not first:
            continue  # nothing that ranking could order
        differences = _mean_difference(first, second)  # [2]
        by_ranking, by_generation = differences.tolist()
        if by_ranking * by_generation >= 0:
            continue  # the same order, or a tie by one of the two
        p = _permutation_p(first, second, np.abs(differences))  # [2]
        flips.append(
            {
                "models": (one, other) if by_ranking > 0 else (other, one),
                "ranking": abs(by_ranking),
                "generation": -abs(by_generation),
                "p": dict(zip(PROTOCOLS, p.tolist(), strict=True)),
            }
        )
    return flips


def _ranked(found: dict[str, Outcomes]) -> dict[str, Outcomes]:
    return {task: outcome for task, outcome in found.items() if outcome.ranked}


def _mean_difference(one: dict[str, Outcomes], other: dict[str, Outcomes]) -> np.ndarray:
    """[2]: by how many points one model's mean over tasks exceeds the other's, by protocol."""
    by_task = [one[task].correct.mean(0) - other[task].correct.mean(0) for task in one]  # [2] each
    return 100 * np.mean(by_task, axis=0)


def _permutation_p(one: dict[str, Outcomes], other: dict[str, Outcomes], observed: np.ndarray) -> np.ndarray:
    """p [2] of mean differences at least as large as those observed [2] (points), swapping models item by item."""
    total = np.zeros((RESAMPLES, 2))  # the mean difference over tasks, as a share
    random = np.random.default_rng(0)
    for task in one:
        differences = one[task].correct.astype(np.float32) - other[task].correct  # [items, 2]
        items = len(differences)
        for start in range(0, RESAMPLES, _CHUNK):
            # Swapping an item's outcomes turns its difference round, under both protocols at once.
            signs = random.integers(0, 2, (_CHUNK, items), dtype=np.int8) * 2 - 1  # [_CHUNK, items], 1 or -1
            total[start : start + _CHUNK] += signs @ differences / items / len(one)  # [_CHUNK, 2]
    # The margin: sums in another order may fall short of an equal difference by rounding.
    larger = (100 * np.abs(total) >= observed - 1e-9).sum(0)  # [2]
    # The observed order is one of the permutations, so that p is never 0.
    return (larger + 1) / (RESAMPLES + 1)


def check_same(one: Records, other: Records) -> None:
    """By id and question, in order: pairing is by position."""
    for task in one.keys() | other.keys():
        first = [(item["id"], item["question"]) for item in one.get(task, ())]
        second = [(item["id"], item["question"]) for item in other.get(task, ())]
        if first != second:
            raise UserError(
                f"task '{task}': the two models were not evaluated on the same items; evaluate both on the same"
            )


def _row(measured: np.ndarray, drawn: np.ndarray, chance: np.ndarray) -> dict[str, Any]:
    """Retention by protocol and the gap, of accuracies [1, 2, 2], with intervals from [RESAMPLES, 2, 2]."""
    row: dict[str, Any] = {}
    for number, protocol in enumerate(PROTOCOLS):
        above_chance = measured[0, :, number] - chance[number]  # [2], teacher and student
        retained = _estimate(_retention(measured, number), _retention(drawn, number))
        row[protocol] = {
            "retention": vars(retained),
            # A teacher that guesses has nothing above chance that could be retained; nan > 0 is false, too.
            "corrected_retention": retention(*above_chance) if above_chance[0] > 0 else None,
        }
    gap = 100 * (_retention(measured, 0) - _retention(measured, 1))  # [1]
    drawn_gaps = 100 * (_retention(drawn, 0) - _retention(drawn, 1))  # [RESAMPLES]
    return row | {"gap": vars(_estimate(gap, drawn_gaps))}


def _retention(accuracies: np.ndarray, protocol: int) -> np.ndarray:
    """[draws, 2, 2] -> [draws]: student over teacher; nan where the teacher got nothing right, or nothing is ranked."""
    teacher = accuracies[:, 0, protocol]  # [draws]
    student = accuracies[:, 1, protocol]  # [draws]
    return np.divide(student, teacher, out=np.full_like(teacher, np.nan), where=teacher > 0)


def _estimate(measured: np.ndarray, drawn: np.ndarray) -> Estimate:
    """Of a figure [1] and its draws [RESAMPLES]."""
    if np.isnan(measured[0]):
        return Estimate(None, None)
    # A draw in which the teacher has nothing right has no ratio; it is left out.
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(measured[0]), (float(low), float(high)))
