import shutil

import pytest
import yaml

from cli_tools import RECIPE, in_process


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


@pytest.fixture
def gendistill(monkeypatch):
    """Runs the command in this process; returns (exit code, output)."""
    monkeypatch.setenv("COLUMNS", "200")
    return in_process


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A run folder of `recipe` that holds the untrained student: for copies, since others read it."""
    folder = tmp_path_factory.mktemp("converted")
    code, output = in_process("convert", write_recipe(folder), "--output", folder / "run")
    assert code == 0, output
    return folder / "run"


@pytest.fixture
def converted_run(converted, tmp_path):
    """A converted run folder of the test's own."""
    return shutil.copytree(converted, tmp_path / "run")


def write_recipe(folder):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path
