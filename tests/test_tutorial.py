"""The tutorial, followed: every command of the page, in its order, in one folder.

The page's recipe is a tiny one here, under the same name, so that a command takes a second where it takes minutes;
`make tutorial` follows the page with the real one, in a fresh clone.
"""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from tutorial import NOT_FOLLOWED, PAGE, blocks, script

from cli_tools import RECIPE, STAGE, in_process

TEXT = PAGE.read_text(encoding="utf-8")
SHORT = {"tokens": 2 * STAGE["sequence_length"]}  # one step
# Of which the test says nothing, since they are not this program's.
OTHERS = {". .venv/bin/activate"}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with the recipe that the page uses, made tiny."""
    monkeypatch.chdir(tmp_path)
    stages = {name: stage | SHORT for name, stage in RECIPE["stages"].items()}
    tasks = {name: RECIPE["evaluation"]["tasks"][name] | {"items": 4} for name in ("facts", "choice")}
    evaluation = {"batch_size": 8, "tasks": tasks, "stages": ["instruction_distillation"]}
    settings = RECIPE | {"name": "demo", "stages": stages, "evaluation": evaluation}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))  # stages have an order
    return tmp_path


def test_every_command_does_what_it_says(clone, capsys):
    said = {}
    for language, text in blocks(TEXT):
        if language == "python":
            exec(compile(text, "tutorial", "exec"), {"__name__": "tutorial"})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if line in OTHERS:
                continue
            words = shlex.split("gendistill run recipes/demo.yaml" if line == "make demo" else line)
            assert words[0] == "gendistill", f"what is this? {line}"
            code, said[line] = in_process(*words[1:])
            assert code == 0, f"{line}\n{said[line]}"
    # What the page says that a reader finds.
    for path in ("summary.md", "scores.json", "recipe.yaml", "0-conversion/student/conversion_report.json"):
        assert Path("runs/demo", path).is_file()
    assert said["gendistill status runs/demo"].count(": done") == 5
    assert len(yaml.safe_load(Path("runs/placed/placement.json").read_text())["layers"]) == 2
    assert "more" in said["gendistill inspect runs/demo --task more"]
    assert "Japan" in capsys.readouterr().out  # the chat, printed by the block in Python


def test_make_tutorial_runs_the_same_commands():
    """As one script that bash can read, without what waits for a person or wants a model."""
    whole = script(TEXT)
    assert subprocess.run(["bash", "-n"], input=whole, text=True, check=False).returncode == 0
    assert all(line in whole for _, text in blocks(TEXT) for line in text.replace("\\\n", " ").splitlines())
    assert whole.startswith("set -e\n") and not any(words in whole for words in NOT_FOLLOWED)
