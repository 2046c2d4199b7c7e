"""The JSON schema of recipes takes every recipe that loads, and marks what an editor should mark."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from cli_tools import RECIPE, in_process
from gendistill.evaluate.kinds import KINDS
from gendistill.recipe.loading import Recipe
from gendistill.recipe.reading import read_yaml
from gendistill.recipe.schema import recipe_schema
from gendistill.recipe.shipped import shipped_recipes

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [*shipped_recipes().values(), *sorted((ROOT / "benchmarks").glob("*.yaml"))]


@pytest.fixture(scope="module")
def validator():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def errors(validator, recipe):
    return [error.message for error in validator.iter_errors(json.loads(json.dumps(recipe)))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_taken(validator, path):
    assert errors(validator, read_yaml(path, "recipe")) == []


def changed(**at):
    """The tiny recipe with settings by dotted key; `__` stands for the dot."""
    recipe = copy.deepcopy(RECIPE)
    for key, value in at.items():
        *parents, last = key.split("__")
        node = recipe
        for parent in parents:
            node = node[parent]
        node[last] = value
    return recipe


@pytest.mark.parametrize(
    "at",
    [
        {"student__keep_attention": {"method": "beam", "layers": 2, "width": 2}},
        {"student__keep_attention": {"from": "placement.json"}},
        {"stages__block_alignment__learning_rate": {"mixer": 1e-3}},
        {"stages__block_alignment__objective": {"block_l2": 1, "block_cosine": 0.5}},
        {"stages__instruction_distillation__data": {"on_policy": "instructions", "new_tokens": [8, 16]}},
        {"evaluation__tasks__gsm": {"task": "gsm8k", "items": 20, "stop": "\n\n"}},
        {"evaluation__tasks__facts__question": "question"},
        {"evaluation__tasks__facts__question": ["question", "prompt"]},
        {"compile": False},
    ],
    ids=str,
)
def test_all_forms_of_a_setting_are_taken(validator, at):
    Recipe.model_validate(changed(**at))  # the loader takes them
    assert errors(validator, changed(**at)) == []


@pytest.mark.parametrize(
    "at",
    [
        {"techer": "embedded"},
        {"stages__block_alignment__lerning_rate": 1e-3},
        {"stages__block_alignment__objective": "block_l3"},
        {"student__mixer": "kdaa"},
        {"student__keep_attention": {"method": "beam", "layer": 2}},
        {"data__text": [{"pth": "embedded:text"}]},
        {"evaluation__tasks__facts__itms": 3},
        {"evaluation__tasks__facts__kind": "fcts"},
        {"evaluation__tasks__facts__options": 3},
    ],
    ids=str,
)
def test_a_mistake_is_marked(validator, at):
    assert errors(validator, changed(**at)) != []


def test_settings_are_explained_and_kinds_are_those_of_the_table(validator):
    definitions = validator.schema["$defs"]
    assert definitions["Source"]["properties"]["weight"]["description"].startswith("share of the mixture's tokens")
    assert definitions["Schedule"]["description"].startswith("Learning rate over a stage")
    kinds = [kind["properties"]["kind"] for kind in definitions["TaskSettings"]["anyOf"][1:]]
    assert [kind["const"] for kind in kinds] == list(KINDS)


def test_the_command_prints_it():
    code, output = in_process("init", "--schema")
    assert code == 0 and json.loads(output) == json.loads(json.dumps(recipe_schema()))
    assert in_process("init", "--schema", "embedded")[0] == 2
