"""Searches over sets of layers: on a model in which two known layers recall, and against plainly written ones."""

import io
import json
import time

import pytest
from recall_model import LAYERS, MATCH, PREVIOUS, recall_model, recall_prompts
from rich.console import Console

from gendistill.errors import UserError
from gendistill.placement.layerwise import Layerwise, Others
from gendistill.placement.measurement import Measurement
from gendistill.placement.methods import METHODS
from gendistill.placement.prompts import Answered
from gendistill.placement.scoring import Score, Scorer
from gendistill.placement.search import beam, fixed, ranked_by_leaving_out
from gendistill.placement.store import Store
from gendistill.recipe.placement import Beam, LeaveOneOut


def measurement(path, kind="silenced", digest="same"):
    model = Layerwise(recall_model(), Others(kind, window=4, sinks=1))
    scorer = Scorer(model, Answered.batch(recall_prompts(4), {24}, "cpu"))
    return Measurement(scorer, None, Store(path, digest, time.perf_counter()), Console(file=io.StringIO()))


def beam_settings(**settings):
    return Beam(**{"method": "beam", "layers": 2, "width": LAYERS} | settings)


@pytest.mark.parametrize("score", ["likelihood", "exact_match", "kl"])
def test_beam_finds_the_two_layers_that_recall(tmp_path, score):
    measured = measurement(tmp_path / "store")
    found = METHODS["beam"](measured, beam_settings(score=score))
    assert found["layers"] == [PREVIOUS, MATCH]
    assert measured.scores[(PREVIOUS, MATCH)].exact_match == 1 > measured.scores[(MATCH,)].exact_match
    assert [len(step["layers"]) for step in found["steps"]] == [0, 1, 2]


def test_behind_a_window_only_the_far_reaching_layer_is_needed(tmp_path):
    found = METHODS["beam"](measurement(tmp_path / "store", "window"), beam_settings(layers=1, width=1))
    assert found["layers"] == [MATCH]


def test_leaving_out_finds_both_and_can_choose_the_beams_candidates(tmp_path):
    measured = measurement(tmp_path / "store")
    found = METHODS["leave_one_out"](measured, LeaveOneOut(method="leave_one_out", layers=2))
    assert sorted(found["layers"]) == [PREVIOUS, MATCH]
    assert sorted(found["by_layer"]["values"])[-2] > 2 > sorted(found["by_layer"]["values"])[-3]
    few = METHODS["beam"](measured, beam_settings(candidates=3, width=3))
    assert few["layers"] == [PREVIOUS, MATCH]
    assert sum(value is not None for value in few["by_layer"]["values"]) == 3


def random_scores(seed):
    """A score for every set, from nowhere; equal for some."""
    import random

    def evaluate(sets):
        evaluate.asked += sets
        return {
            kept: Score(likelihood=random.Random(f"{seed} {kept}").randrange(12), exact_match=0, kl=0) for kept in sets
        }

    evaluate.asked = []
    return evaluate


@pytest.mark.parametrize("seed", range(20))
def test_width_1_is_greedy_growth(seed):
    evaluate = random_scores(seed)
    kept = ()
    for _ in range(4):
        best = None
        for layer in range(7):
            if layer in kept:
                continue
            grown = tuple(sorted((*kept, layer)))
            value = evaluate([grown])[grown].likelihood
            if best is None or (value, grown) < best:
                best = (value, grown)
        kept = best[1]
    assert beam(evaluate, 4, range(7), width=1, score="likelihood")[-1] == kept


def test_a_wide_beam_is_exhaustive_and_scores_no_set_twice():
    evaluate = random_scores(0)
    found = beam(evaluate, 3, range(6), width=99, score="likelihood")[-1]
    assert len(evaluate.asked) == len(set(evaluate.asked)) == 1 + 6 + 15 + 20
    triples = [kept for kept in evaluate.asked if len(kept) == 3]
    assert found == min(triples, key=lambda kept: (evaluate([kept])[kept].likelihood, kept))


def test_layers_that_hurt_most_come_first():
    hurt = {0: 1.0, 1: 3.0, 2: 0.5, 3: 3.0}

    def evaluate(sets):
        return {kept: Score(hurt[({*range(4)} - {*kept}).pop()], 0, 0) for kept in sets}

    assert ranked_by_leaving_out(evaluate, 4, "likelihood") == [1, 3, 0, 2]


def test_fixed_places():
    assert fixed("uniform", 7, 28) == [3, 7, 11, 15, 19, 23, 27]
    assert fixed("uniform", 4, 28) == [6, 13, 20, 27]
    assert fixed("uniform", 5, 8) == [0, 2, 3, 5, 7]
    assert fixed("first", 3, 8) == [0, 1, 2]
    assert fixed("last", 3, 8) == [5, 6, 7]
    with pytest.raises(UserError, match="layers is 9; the teacher has 8"):
        fixed("last", 9, 8)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("pieces", [0, 1, 3, 5])
def test_a_killed_search_resumes_and_ends_the_same(tmp_path, pieces, monkeypatch):
    # So little memory that a step of the search is scored in several pieces.
    monkeypatch.setattr(Layerwise, "sets_at_once", lambda self, ids: 4)
    unbroken = measurement(tmp_path / "unbroken")
    expected = METHODS["beam"](unbroken, beam_settings())

    first = measurement(tmp_path / "killed")
    score, done = first.scorer.score, []

    def score_some(sets):
        if len(done) == pieces:
            raise Killed
        done.append(sets)
        return score(sets)

    first.scorer.score = score_some
    with pytest.raises(Killed):
        METHODS["beam"](first, beam_settings())
    with open(tmp_path / "killed", "a") as file:
        file.write('{"key": "half a li')

    second = measurement(tmp_path / "killed")
    before = second.scorer.model.evaluations
    assert METHODS["beam"](second, beam_settings()) == expected
    assert list(second.scores.items()) == list(unbroken.scores.items())
    assert second.store.total("layer_tokens") == unbroken.store.total("layer_tokens")
    again = [json.loads(line)["key"] for line in (tmp_path / "killed").read_text().splitlines()[1:]]
    assert again == list(unbroken.store.lines)
    # What was scored before the kill is not scored again.
    tokens = second.scorer.prompts.tokens
    saved = sum(second.store.lines[key]["layer_tokens"] for key in again[:pieces])
    assert (second.scorer.model.evaluations - before) * tokens == second.store.total("layer_tokens") - saved


@pytest.mark.parametrize("damage", [b"\xff", b"9", b"{"])
def test_a_damaged_line_is_measured_again_and_no_other(tmp_path, damage):
    store = Store(tmp_path / "store", "one", 0.0)
    for key in ("a", "b", "c"):
        store.add(key, [{"likelihood": 1.5}], 5)
    path = tmp_path / "store"
    lines = path.read_bytes().splitlines(keepends=True)  # the first says of what they are
    lines[2] = lines[2].replace(b'"likelihood": 1.5', b'"likelihood": ' + damage + b".5")
    path.write_bytes(b"".join(lines))
    assert list(Store(path, "one", 0.0).lines) == ["a", "c"]


def test_what_was_measured_of_something_else_is_not_used(tmp_path):
    Store(tmp_path / "store", "one", 0.0).add("[[0]]", [{"likelihood": 0, "exact_match": 1, "kl": 0}], 5)
    assert "[[0]]" in Store(tmp_path / "store", "one", 0.0)
    assert "[[0]]" not in Store(tmp_path / "store", "another", 0.0)
