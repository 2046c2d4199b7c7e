"""What benchmarks/proof_runs.py trains."""

import json
from argparse import Namespace

import proof_runs
import pytest
import yaml
from ledger import ROOT
from proof_runs import PURE, STUDENTS, recipe_of, settings_of, sources

from gendistill.recipe.loading import load_recipe


@pytest.mark.parametrize("name", STUDENTS)
def test_students_are_the_recipe_with_their_layers_and_what_they_train(tmp_path, name):
    settings = ["teacher=embedded", "evaluation.stages=[]", *sources(name, tmp_path), *settings_of(name)]
    recipe = load_recipe(recipe_of(name), settings)
    stage = list(recipe.stages.values())[-1]
    kept = {"7": [6, 14, 16, 19, 21, 22, 23], "4": [6, 14, 16, 23], "2": [14, 23]}
    assert recipe.student.keep_attention == kept[name.split("-")[0][-1]]
    policy = stage.on_policy
    mixture = stage.data if policy is None else policy.on_policy
    (distant,) = (source for source in recipe.data[mixture] if source.made == "distant")
    assert distant.distances[1] < stage.sequence_length
    assert (recipe_of(name) == PURE) == name.startswith("P") == (recipe.student.window is None)
    others = {"K7-policy": 2, "K4-policy": 2, "P7": 9, "P7-broad": 5, "P4-broad": 5}
    assert stage.tokens == 1_000_000 * others.get(name, 4)
    assert ("logit_distillation" in recipe.stages) == (name == "P7")
    by_token = "-token" in name or name.endswith("-policy")  # the recipe
    settled = by_token or name.endswith("-settled")
    assert ("settling" in recipe.stages) == settled
    if settled:  # so that no row of distant answers stands alone in a step
        assert (mixture, stage.sequences_per_step, stage.window_dropout) == ("settled", 4, 0.0)
        talk = [source.weight for source in recipe.data["settled"] if source.made is None]
        assert (distant.weight, sum(talk)) == (1, 1 if by_token else 2)
    assert recipe.student.window_share == ("token" if by_token else "head")
    assert (policy is not None) == name.endswith("-policy") == (list(recipe.stages)[-1] == "on_policy")
    if name.startswith("WT"):
        stages = ["far_distillation", "settling"] if settled else ["far_distillation"]
        assert (recipe.student.mixer, stage.train, list(recipe.stages)) == ("window", ["mixer"], stages)
    written = {source.synthesis for source in recipe.data[mixture]} - {None}
    has_replies = name.startswith("P") or "-replies" in name
    centred = name.endswith(("-centred", "-broad"))
    assert recipe.conversion.initialisation == ("centred" if centred else "standard")
    asked = {"sums", "programs"} if name.startswith("P") else {"sums"}  # the window sees programs whole
    asked |= {"shown"} if name.endswith("-broad") else set()
    assert written == set(recipe.synthesis) == (asked if has_replies else set())
    shots = {prompts.shots for each in recipe.synthesis.values() for prompts in each.prompts}
    assert shots == ({0, 5} if name.endswith("-broad") else {0} if name.startswith("P") else {5} if written else set())
    if name.startswith("K"):
        assert (recipe.student.mixer, recipe.student.window) == ("kda", 1024 if name.endswith("-wide") else 512)
        whole = ["mixer"] if "-mixers" in name else ["mixer_conv", "mixer_gate"]
        assert (stage.train, recipe.stages["qk_alignment"].train) == (whole, ["mixer_conv", "mixer_gate"])


@pytest.mark.parametrize("name", ["K7-token-replies", "K4-token-replies", "P7-broad", "P7"])
def test_students_are_what_their_records_were_trained_as(tmp_path, name):
    ran = yaml.safe_load((ROOT / "results/proof/runs" / name / "recipe.yaml").read_text())
    recipe = load_recipe(recipe_of(name), ["teacher=embedded", *sources(name, tmp_path), *settings_of(name)])
    now = recipe.model_dump(mode="json")
    for part in ("stages", "student", "conversion"):
        # Settings that are newer than a run are at their defaults.
        assert json.dumps(ran[part]) == json.dumps(of_same_keys(now[part], ran[part]))
    weights = {mixture: [source["weight"] for source in each] for mixture, each in now["data"].items()}
    assert weights == {mixture: [source["weight"] for source in each] for mixture, each in ran["data"].items()}


def of_same_keys(now, ran):
    """Without keys that are not there; in the order that is there."""
    if isinstance(ran, dict) and isinstance(now, dict):
        return {key: of_same_keys(now[key], value) for key, value in ran.items() if key in now}
    return now


def test_students_of_stages_are_asked_what_is_short_before_the_next_is_trained(tmp_path, monkeypatch):
    called = []

    def call(*command):
        if command[2] == "distill":
            (tmp_path / "K7-token" / f"{len(called)}-{command[-1]}/student").mkdir(parents=True)
        called.append(command)

    monkeypatch.setattr(proof_runs, "call", call)
    monkeypatch.setattr(proof_runs, "keep", lambda run, into: None)
    asked = Namespace(teacher="embedded", device="cpu", data=tmp_path, work=tmp_path, out=tmp_path / "out", set=[])
    asked.questions, asked.tasks, asked.stages = "questions", ["gsm8k", "needle_single_8192"], ["far_distillation"]
    run = proof_runs.train("K7-token", asked)
    convert, first, second, asks, rest = called
    assert [command[2] for command in (convert, first, second, rest)] == ["convert", "distill", "distill", "run"]
    assert (first[-1], second[-1]) == ("qk_alignment", "far_distillation")
    assert f"K7-token-far_distillation={run}/2-far_distillation/student" in asks
    assert asks[-2:] == ("--tasks", "gsm8k")  # of what was to be asked, what is short
    assert set(json.loads((tmp_path / "out/runs/seconds.json").read_text())) == {"K7-token"}
