"""Rows of an ablation compared over seeds and items, against cases whose answer is known."""

import numpy as np
import pytest

from gendistill.analysis.ablation import compare_rows, holm
from gendistill.errors import UserError

ITEMS, SEEDS = 300, (0, 1)


def records(ranking, generation):
    """One task's records, of which items are right."""
    return {
        "a": [
            dict(id=n, question=f"q{n}", candidates=list("wxyz"), choices=list("wxyz"), gold=[0])
            | dict(ranking_correct=bool(r), generation_correct=bool(g))
            for n, (r, g) in enumerate(zip(ranking, generation, strict=True))
        ]
    }


def row(ranking, generation, random):
    """A model's records of each seed: right with these chances, item by item."""
    return {seed: records(random.random(ITEMS) < ranking, random.random(ITEMS) < generation) for seed in SEEDS}


def planted(seed=0):
    """Rows of which one is better by ranking and worse by generation, and one differs from the base by chance only."""
    random = np.random.default_rng(seed)
    return {
        "base": row(0.6, 0.6, random),
        "teacher": row(0.9, 0.9, random),
        "flip": row(0.75, 0.4, random),
        "null": row(0.6, 0.6, random),
    }


@pytest.fixture(scope="module")
def found():
    return compare_rows(planted(), "base", "teacher")


def test_a_planted_flip_is_found(found):
    (flip,) = [flip for flip in found["flips"] if flip["p_corrected"] < 0.05 and "base" in flip["rows"]]
    assert flip["rows"] == ["flip", "base"]  # the one that ranking prefers first
    assert flip["ranking"] == pytest.approx(15, abs=6) and flip["generation"] == pytest.approx(-20, abs=6)
    assert found["orders"]["ranking"].index("flip") < found["orders"]["ranking"].index("base")
    assert found["orders"]["generation"].index("flip") > found["orders"]["generation"].index("base")
    assert found["rows"]["flip"]["generation"]["p_corrected"] < 0.05
    assert (found["comparisons"], found["pairs"]) == (6, 6)


def test_a_planted_null_is_not_found(found):
    for protocol in ("ranking", "generation"):
        assert found["rows"]["null"][protocol]["p_corrected"] > 0.05
        low, high = found["rows"]["null"][protocol]["difference"]["interval"]
        assert low < 0 < high
    assert all(flip["p_corrected"] > 0.05 for flip in found["flips"] if set(flip["rows"]) == {"null", "base"})


def test_figures_by_hand():
    base = {seed: records([1] * 60 + [0] * 40, [1] * 50 + [0] * 50) for seed in SEEDS}
    teacher = {seed: records([1] * 80 + [0] * 20, [1] * 100) for seed in SEEDS}
    better = {0: records([1] * 70 + [0] * 30, [1] * 50 + [0] * 50), 1: records([1] * 60 + [0] * 40, [0] * 100)}
    rows = compare_rows({"base": base, "teacher": teacher, "better": better}, "base", "teacher")["rows"]
    assert rows["base"]["ranking"]["accuracy"]["value"] == pytest.approx(0.6)
    assert rows["base"]["ranking"]["retention"]["value"] == pytest.approx(0.75)
    assert "p" not in rows["base"]["ranking"] and rows["base"]["items"] == 200
    # Means over the seeds: 10 points in one of two by ranking, -50 by generation.
    assert rows["better"]["ranking"]["difference"]["value"] == pytest.approx(5)
    assert rows["better"]["generation"]["difference"]["value"] == pytest.approx(-25)
    assert rows["teacher"]["generation"]["retention"] == {"value": 1.0, "interval": (1.0, 1.0)}


def test_seeds_that_disagree_make_the_interval_wide():
    """As many items right in all, but all of the gain in one seed: that may be the seed's, not the value's."""
    base = {seed: records([1] * 50 + [0] * 50, [1] * 50 + [0] * 50) for seed in SEEDS}
    rows = {"base": base, "teacher": base}
    rows["agree"] = {seed: records([1] * 70 + [0] * 30, [1] * 70 + [0] * 30) for seed in SEEDS}
    rows["disagree"] = {0: records([1] * 90 + [0] * 10, [1] * 90 + [0] * 10), 1: base[1]}
    found = compare_rows(rows, "base", "teacher")["rows"]
    widths = {}
    for name in ("agree", "disagree"):
        estimate = found[name]["generation"]["difference"]
        assert estimate["value"] == pytest.approx(20)
        widths[name] = estimate["interval"][1] - estimate["interval"][0]
    assert widths["disagree"] > 2 * widths["agree"]
    assert found["agree"]["generation"]["p"] < 0.001 < 0.05 < found["disagree"]["generation"]["p"]


def test_a_row_that_lacks_a_seed_is_compared_on_the_others():
    rows = planted()
    alone = dict(rows, null={1: rows["null"][1]})
    found = compare_rows(alone, "base", "teacher")["rows"]
    assert (found["null"]["seeds"], found["base"]["seeds"]) == ([1], [0, 1])
    expected = compare_rows({name: {1: seeds[1]} for name, seeds in rows.items()}, "base", "teacher")["rows"]
    assert found["null"]["generation"]["difference"] == expected["null"]["generation"]["difference"]


def test_a_task_that_nobody_ranks_has_generation_alone():
    rows = planted()
    for seeds in rows.values():
        for task in seeds.values():
            for record in task["a"]:
                record |= dict(ranking_correct=None, candidates=[])
    found = compare_rows(rows, "base", "teacher")
    assert found["rows"]["flip"]["ranking"] is None and found["flips"] == [] and found["comparisons"] == 3
    assert found["rows"]["flip"]["generation"]["difference"]["value"] < 0


def test_holm_by_hand():
    # The smallest times 3, the next times 2, the last once, and never below the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_no_more_nulls_are_found_than_the_level_allows():
    """Of ten families of six comparisons in which nothing differs, hardly any has one that looks as if it did."""
    wrong = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        rows = {name: row(0.6, 0.5, random) for name in ("base", "teacher", "one", "two")}
        found = compare_rows(rows, "base", "teacher")["rows"]
        wrong += any(
            found[name][by]["p_corrected"] < 0.05 for name in list(rows)[1:] for by in ("ranking", "generation")
        )
    assert wrong <= 2  # with a chance of at most 0.05 each: more in 1 of 100 series


def test_other_items_are_refused():
    rows = planted()
    rows["null"][1] = {"a": rows["null"][1]["a"][:-1]}
    with pytest.raises(UserError, match="base and null, seed 1: task 'a': the two models were not"):
        compare_rows(rows, "base", "teacher")
