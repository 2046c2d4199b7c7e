"""Paired statistics against cases whose answer is known."""

import math
from functools import cache

import numpy as np
import pytest

from gendistill.analysis.significance import compare, mcnemar, minimum_detectable_effect, rank_flips
from gendistill.analysis.tables import NOTHING, significance_cells
from gendistill.errors import UserError


def records(ranking, generation, task="a", choices=4) -> dict[str, list[dict]]:
    """Records of one task from two rows of right (1) and wrong (0)."""
    options = [str(n) for n in range(choices)]
    return {
        task: [
            dict(id=n, question=f"q{n}", candidates=options or list("wxyz"), choices=options, gold=[0])
            | dict(ranking_correct=bool(r), generation_correct=bool(g))
            for n, (r, g) in enumerate(zip(ranking, generation, strict=True))
        ]
    }


def unranked(generation, task):
    """Records of a task without candidates."""
    (made,) = records(generation, generation, choices=0).values()
    return {task: [record | dict(candidates=[], gold=[], ranking_correct=None) for record in made]}


def ones(right, items):
    return [1] * right + [0] * (items - right)


def test_identical_models_do_not_differ():
    model = records(ones(70, 100), ones(55, 100))
    rows = compare(model, model)
    for row in rows.values():
        for protocol in ("ranking", "generation"):
            assert row[protocol]["retention"] == {"value": 1.0, "interval": (1.0, 1.0)}
            assert row[protocol]["corrected_retention"] == 1.0
        assert row["gap"] == {"value": 0.0, "interval": (0.0, 0.0)}
    assert rows["a"]["generation"]["p"] == 1.0
    assert rank_flips({"one": model, "two": model}) == []


def test_figures_by_hand():
    teacher, student = records(ones(80, 100), ones(60, 100)), records(ones(60, 100), ones(40, 100))
    row = compare(teacher, student)["a"]
    assert row["ranking"]["retention"]["value"] == pytest.approx(0.75)
    assert row["generation"]["retention"]["value"] == pytest.approx(2 / 3)
    assert row["gap"]["value"] == pytest.approx(100 * (0.75 - 2 / 3))
    # Four options: chance is 0.25, so 0.55 and 0.35 of ranking, 0.35 and 0.15 of generation.
    assert row["ranking"]["corrected_retention"] == pytest.approx(0.35 / 0.55)
    assert row["generation"]["corrected_retention"] == pytest.approx(0.15 / 0.35)
    assert row["generation"]["p"] == pytest.approx(2 * 0.5**20)
    free = compare(records(ones(8, 10), ones(8, 10), choices=0), records(ones(4, 10), ones(4, 10), choices=0))["a"]
    assert free["generation"]["corrected_retention"] == pytest.approx(0.5)  # nothing to choose from: no chance


def test_a_teacher_without_a_right_answer_has_no_retention():
    row = compare(records(ones(5, 10), ones(0, 10)), records(ones(5, 10), ones(3, 10)))["a"]
    assert row["generation"]["retention"] == {"value": None, "interval": None}
    assert row["gap"] == {"value": None, "interval": None}
    assert row["generation"]["corrected_retention"] is None


def test_mcnemar_is_the_exact_binomial_test():
    one = np.array(ones(9, 20), bool)
    other = np.array([0] * 9 + ones(3, 11), bool)
    # 9 against 3 of 12: 2 (C(12,0) + C(12,1) + C(12,2) + C(12,3)) / 2^12
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(2 * (1 + 12 + 66 + 220) / 4096)
    assert mcnemar(one, one) == 1.0


def test_the_minimum_detectable_effect_is_found_as_often_as_it_says():
    """Of pairs of models that differ by it, McNemar's test calls about 80 in 100 different."""
    random, items, differ = np.random.default_rng(0), 1000, 0.2
    one = np.zeros(items, bool)
    one[: int(items * differ)] = True
    points = minimum_detectable_effect(one, np.zeros(items, bool))
    assert points == pytest.approx(100 * (1.959964 + 0.841621) * math.sqrt(differ / items))
    share = (1 + points / 100 / differ) / 2  # of the items on which they differ, for a difference of as many points
    found = 0
    for _ in range(400):
        where = random.random(items) < differ
        first = random.random(items) < share
        found += mcnemar(where & first, where & ~first) < 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.07)


def test_intervals_cover_at_the_stated_rate():
    """200 experiments with known accuracies; teacher and student are right on the same easy items."""
    random, items, covered = np.random.default_rng(1), 200, np.zeros(2)
    accuracy = {"teacher": (0.8, 0.7), "student": (0.76, 0.5)}
    true = [0.76 / 0.8, 100 * (0.76 / 0.8 - 0.5 / 0.7)]
    for trial in range(200):
        easy = random.random(items)
        models = {
            who: records(*(0.7 * easy + 0.3 * random.random(items) < _threshold(share) for share in shares))
            for who, shares in accuracy.items()
        }
        row = compare(models["teacher"], models["student"], seed=trial)["a"]
        for n, estimate in enumerate((row["ranking"]["retention"], row["gap"])):
            low, high = estimate["interval"]
            covered[n] += low <= true[n] <= high
    assert covered / 200 == pytest.approx([0.95, 0.95], abs=0.04)


@cache
def _threshold(share: float) -> float:
    """Below which 0.7 u + 0.3 v lies with this chance, for u and v uniform."""
    grid = np.linspace(0, 1, 1001)
    sums = np.sort(np.add.outer(0.7 * grid, 0.3 * grid).ravel())
    return sums[int(share * len(sums))]


def test_a_planted_rank_flip_is_found_and_no_other():
    talker = records(ones(700, 1000), ones(600, 1000))
    ranker = records(ones(760, 1000), ones(400, 1000))
    both = records(ones(800, 1000), ones(650, 1000))
    (flip,) = rank_flips({"talker": talker, "ranker": ranker, "both": both})
    assert flip["models"] == ("ranker", "talker")
    assert (flip["ranking"], flip["generation"]) == pytest.approx((6.0, -20.0), abs=1e-4)
    assert flip["p"]["ranking"] < 0.01 and flip["p"]["generation"] < 0.01
    noise = rank_flips({"one": records([1, 0, 1, 0], [1, 1, 0, 0]), "two": records([0, 1, 0, 0], [1, 1, 1, 0])})
    assert noise and noise[0]["p"]["ranking"] > 0.3  # a flip, and nothing to build on


def test_means_are_over_tasks():
    teacher = records(ones(10, 10), ones(10, 10)) | records(ones(500, 1000), ones(500, 1000), task="b")
    student = records(ones(5, 10), ones(5, 10)) | records(ones(500, 1000), ones(500, 1000), task="b")
    row = compare(teacher, student)["mean"]
    assert row["ranking"]["retention"]["value"] == pytest.approx((0.5 + 0.5) / (1.0 + 0.5))
    low, high = row["ranking"]["retention"]["interval"]
    assert low < 2 / 3 < high and high - low > 0.2  # ten items leave much open


def test_several_right_answers_make_guessing_easier():
    def two_right(right):
        return {"a": [record | {"gold": [0, 2]} for record in records(right, right)["a"]]}

    row = compare(two_right(ones(80, 100)), two_right(ones(65, 100)))["a"]
    assert row["ranking"]["corrected_retention"] == pytest.approx(0.15 / 0.3)


def test_a_task_that_is_not_ranked_changes_no_pair():
    teacher = records(ones(80, 100), ones(60, 100)) | records(ones(9, 10), ones(7, 10), task="b")
    student = records(ones(60, 100), ones(40, 100)) | records(ones(8, 10), ones(3, 10), task="b")
    programs = {"teacher": unranked(ones(30, 40), "code"), "student": unranked(ones(6, 40), "code")}
    rows, more = compare(teacher, student), compare(teacher | programs["teacher"], student | programs["student"])
    assert {name: more[name] for name in rows} == rows
    assert list(more) == ["a", "b", "code", "mean", "mean of all"]
    for name in ("code", "mean of all"):
        assert more[name]["ranking"]["retention"] == more[name]["gap"] == {"value": None, "interval": None}
    assert more["code"]["ranking"]["p"] is None
    assert more["code"]["generation"]["retention"]["value"] == pytest.approx(0.2)
    assert more["mean of all"]["generation"]["retention"]["value"] == pytest.approx(
        (0.4 + 0.3 + 0.15) / (0.6 + 0.7 + 0.75)
    )
    assert more["mean"]["items"] == 110 and more["mean of all"]["items"] == 150


def test_flips_are_of_ranked_tasks():
    """The ranker writes far better programs; that makes its lead by ranking no less of a flip."""
    talker, ranker = records(ones(700, 1000), ones(600, 1000)), records(ones(760, 1000), ones(400, 1000))
    (flip,) = rank_flips({"talker": talker, "ranker": ranker})
    programs = unranked(ones(0, 40), "code"), unranked(ones(40, 40), "code")
    assert rank_flips({"talker": talker | programs[0], "ranker": ranker | programs[1]}) == [flip]
    assert rank_flips({"talker": programs[0], "ranker": programs[1]}) == []


def test_other_items_are_refused():
    with pytest.raises(UserError, match="task 'a': the two models were not evaluated on the same items"):
        compare(records([1, 0], [1, 0]), records([1, 0, 0], [1, 0, 0]))


def test_an_effect_that_cannot_be_is_none():
    """Of few items even a model that is right everywhere and one that is wrong everywhere may not be told apart."""
    few = np.array([True, False, True])
    assert minimum_detectable_effect(few, ~few) is None
    found = compare(records([1, 0, 1], [1, 0, 1]), records([0, 1, 0], [0, 1, 0]))
    assert found["a"]["generation"]["minimum_detectable_effect"] is None
    (row,) = significance_cells({"a": found["a"]})
    assert row[-1] == NOTHING
