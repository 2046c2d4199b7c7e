"""A recipe's file and overrides: what stands there counts, once and as it is meant, or one error says why not."""

import os

import pytest
import yaml

from cli_tools import RECIPE
from gendistill.errors import UserError
from gendistill.models.loading import load_config
from gendistill.recipe.loading import load_recipe, parse_recipe

WHOLE = yaml.safe_dump(RECIPE, sort_keys=False)


@pytest.fixture
def load(tmp_path):
    """Loads a recipe of this text from a folder of its own."""

    def load(text=WHOLE, *overrides):
        path = tmp_path / "tiny.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides)

    return load


def refused(load, *arguments):
    with pytest.raises(UserError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value).split("setting(s) to mend")[-1].strip(), caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("seed: 1\n" + WHOLE + "seed: 2\n", "'seed' stands twice, in lines 1 and "),
        (WHOLE.replace("student:\n", "student:\n  mixer_in_layer: {3: kda, '3': gla}\n"), "'3' stands twice, in lines"),
        (WHOLE.replace("student:\n", "student:\n  mixer_in_layer: {3: kda, 0x3: gla}\n"), "'3' stands twice, in lines"),
        (WHOLE.replace("  qk_alignment:", "  block_alignment: {}\n  qk_alignment:"), "'block_alignment' stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(load, text, needle):
    assert needle in refused(load, text)


def test_in_overrides_and_in_task_files_too(load, tmp_path):
    assert "'a' stands twice" in refused(load, WHOLE, "student.mixer_in_layer={a: kda, a: gla}")
    (tmp_path / "own.yaml").write_text("kind: last_number\npath: x.jsonl\npath: y.jsonl\n")
    assert "'path' stands twice, in lines 2 and 3" in refused(load, WHOLE, "evaluation.tasks.own={task: own.yaml}")


def test_what_is_merged_may_stand_in_the_section_as_well(load):
    """A merge key is a default, and the section's own setting wins, however often an anchor is merged."""
    settings = yaml.safe_load(WHOLE)
    anchor = "stages:\n  first: &base " + yaml.safe_dump(settings["stages"]["qk_alignment"], default_flow_style=True)
    more = "  second: &again {<<: *base, tokens: 256}\n  third: {<<: *again, tokens: 512}\n  fourth: {<<: *again}\n"
    del settings["stages"]
    stages = load(yaml.safe_dump(settings) + anchor + more).stages
    assert [stages[name].tokens for name in ("second", "third", "fourth")] == [256, 512, 256]


@pytest.mark.parametrize("number", ["1e6", "1E6", "1e+6", "1.0e6"])
def test_a_number_with_an_exponent_is_a_number(load, number):
    assert load(WHOLE, f"stages.qk_alignment.tokens={number}").stages["qk_alignment"].tokens == 1_000_000


def test_half_a_token_is_still_refused(load):
    assert "stages.qk_alignment.tokens" in refused(load, WHOLE, "stages.qk_alignment.tokens=1.5e0")


def test_files_that_are_no_text_or_no_recipe(load, tmp_path):
    assert "is not UTF-8" in refused(load, WHOLE.encode().replace(b"tiny", "tin\xff".encode("latin-1")))
    assert load("﻿" + WHOLE).name == "tiny"
    with pytest.raises(UserError, match="not valid YAML"):
        load("seed: 2026-13-45\n" + WHOLE)
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    "name", ["/../../other", "..", ".", "a b", "a/b", "", "-x", "x.partial", "x\n", "ä", "x" * 101]
)
@pytest.mark.parametrize("section", ["stages", "evaluation.tasks", "synthesis"])
def test_names_of_files_stay_in_their_folder(section, name):
    recipe = yaml.safe_load(WHOLE)
    entry = {
        "stages": recipe["stages"]["qk_alignment"],
        "evaluation.tasks": recipe["evaluation"]["tasks"]["facts"],
        "synthesis": {"prompts": [{"kind": "continuation", "path": "embedded:text"}]},
    }[section]
    place = recipe
    for part in section.split("."):
        place = place.setdefault(part, {})
    place[name] = entry
    with pytest.raises(UserError, match="names files") as caught:
        parse_recipe(recipe, "test")
    assert section in str(caught.value)
    with pytest.raises(UserError, match="names files"):
        parse_recipe(yaml.safe_load(WHOLE) | {"name": name}, "test")


def test_no_stage_is_called_as_the_conversion(load):
    assert "name of the conversion" in refused(load, WHOLE.replace("  qk_alignment:", "  conversion:"))


@pytest.mark.parametrize(
    ("override", "needle"),
    [
        ("stages.qk_alignmnt.tokens=5", "no 'qk_alignmnt'; did you mean 'qk_alignment'?"),
        ("evaluation.tasks.fact.items=5", "no 'fact'; did you mean 'facts'?"),
        ("synthesis.written.samples=2", "no 'written'"),
        ("data.text.1.weight=2", "'1' is no item of that list, which has 1"),
        ("data.text.first.weight=2", "'first' is no item of that list"),
        ("name.more=1", "'name' is not a section"),
    ],
)
def test_overrides_that_lead_nowhere(load, override, needle):
    assert needle in refused(load, WHOLE, override)


def test_overrides_reach_items_of_lists_and_sections_left_to_defaults(load):
    recipe = load(WHOLE, "data.text.0.weight=3", "stages.qk_alignment.schedule.warmup=0.5", "conversion.tokens=1e3")
    assert recipe.data["text"][0].weight == 3
    assert recipe.stages["qk_alignment"].schedule.warmup == 0.5
    assert recipe.conversion.tokens == 1000
    layers = WHOLE.replace("student:\n", "student:\n  mixer_in_layer: {3: kda}\n")
    assert load(layers, "student.mixer_in_layer.3=gla").student.mixer_in_layer == {3: "gla"}


def test_relative_paths_are_relative_to_the_recipe(load, tmp_path, monkeypatch):
    """Wherever it is called from; the recipe as loaded has them absolute, so that a run folder's own copy holds."""
    (tmp_path / "models/teacher").mkdir(parents=True)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/own.yaml").write_text("kind: last_number\npath: items.jsonl\n")
    monkeypatch.chdir("/")
    recipe = load(
        WHOLE,
        "teacher=models/teacher",
        "data.text.0.path=../text.jsonl",
        "evaluation.tasks.facts.path=facts.jsonl",
        "evaluation.tasks.own={task: tasks/own.yaml}",
        "evaluation.harness={tasks: [arc_easy, tasks/harness.yaml]}",
    )
    assert recipe.teacher == str(tmp_path / "models/teacher")
    assert recipe.data["text"][0].path == str(tmp_path.parent / "text.jsonl")
    tasks = recipe.evaluation.tasks
    assert (tasks["facts"].path, tasks["own"].path) == (
        str(tmp_path / "facts.jsonl"),
        str(tmp_path / "tasks/items.jsonl"),
    )
    assert recipe.evaluation.harness.tasks == ["arc_easy", str(tmp_path / "tasks/harness.yaml")]
    assert recipe.data["instructions"][0].path == "embedded:chat"
    assert os.path.isabs(recipe.teacher) and parse_recipe(recipe.model_dump(mode="json"), "copy") == recipe


@pytest.mark.parametrize("name", ["./models/teachr", "models/teachr", "models/deep/er", "~/nowhere", "/nowhere"])
def test_a_mistyped_folder_is_not_asked_of_the_hub(load, tmp_path, name):
    (tmp_path / "models/teacher").mkdir(parents=True)
    with pytest.raises(UserError, match="no such folder"):
        load_config(load(WHOLE, f"teacher={name}").teacher)


def test_hub_ids_stay(load):
    assert load(WHOLE, "teacher=Qwen/Qwen3-0.6B").teacher == "Qwen/Qwen3-0.6B"
