import subprocess

import pytest
import yaml

from cli_tools import RECIPE, command, environment


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


@pytest.fixture
def gendistill():
    """Runs the command in a process of its own; returns (exit code, output)."""

    def call(*arguments):
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, env=environment(), timeout=300, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return call
