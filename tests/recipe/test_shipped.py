"""Shipped recipes are called by their names, wherever the program is started."""

from pathlib import Path

import pytest

from gendistill.ablation.file import read_ablation_file
from gendistill.errors import UserError
from gendistill.recipe.loading import load_recipe
from gendistill.recipe.shipped import shipped_ablations, shipped_recipes

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_a_name_is_the_repositorys_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = shipped_recipes() | shipped_ablations()
    assert {name: path.read_bytes() for name, path in shipped.items()} == {
        path.stem: path.read_bytes() for path in RECIPES.glob("*.yaml")
    }
    assert load_recipe("demo") == load_recipe(RECIPES / "demo.yaml")
    # An ablation is no recipe, but a file of recipes to try.
    assert read_ablation_file(Path("ablation")) == read_ablation_file(RECIPES / "ablation.yaml")
    assert not shipped_recipes().keys() & shipped_ablations().keys() and "ablation" in shipped_ablations()


def test_overrides_of_a_name_are_relative_to_the_current_folder(tmp_path, monkeypatch):
    """A user does not know where the package lies, and nothing of theirs does."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("window", ["teacher=./model", "data.text=[{path: a.txt}]"])
    assert (recipe.teacher, recipe.data["text"][0].path) == (str(tmp_path / "model"), str(tmp_path / "a.txt"))


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text((RECIPES / "demo.yaml").read_text().replace("name: demo", "name: mine"))
    assert load_recipe("demo").name == "mine"


def test_another_name_lists_those_there_are():
    with pytest.raises(UserError, match="demmo: no such recipe.* shipped recipe: demo, .*window"):
        load_recipe("demmo")
