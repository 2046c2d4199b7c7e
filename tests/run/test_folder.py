"""A run folder: one process at a time, of one recipe as far as it has begun, with one teacher."""

import os
import signal
import subprocess
import sys
from copy import deepcopy

import pytest
import yaml

from cli_tools import RECIPE, environment
from gendistill.errors import UserError
from gendistill.recipe.loading import load_recipe, parse_recipe
from gendistill.run.folder import RunFolder, stage_key
from gendistill.run.lock import holder_of, lock_folder

HOLD = """
import os, sys, time
from pathlib import Path
from gendistill.run.lock import lock_folder
lock_folder(Path(sys.argv[1]))
if os.fork() == 0:  # a child that outlives its parent, as one of a sandbox might
    time.sleep(20)
    os._exit(0)
print("held", flush=True)
time.sleep(20)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path, and has a child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=environment(), start_new_session=True
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)  # the child too
    process.wait()


def test_the_lock_names_its_process_and_dies_with_it(tmp_path, holder):
    with pytest.raises(UserError, match=f"another process works there: process {holder.pid} on .*, since .*"):
        lock_folder(tmp_path)
    assert f"process {holder.pid} " in holder_of(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)  # and not the child, which must not hold it on
    holder.wait()
    assert holder_of(tmp_path) is None
    lock_folder(tmp_path)
    assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()
    lock_folder(tmp_path)  # its own is no hindrance


def test_a_damaged_lock_is_no_bug(tmp_path, holder):
    data = bytearray((tmp_path / "lock").read_bytes())
    data[3] = 0xFF
    with open(tmp_path / "lock", "r+b") as file:  # the holder's own file, not another of that name
        file.write(data)
    assert f"ess {holder.pid} " in holder_of(tmp_path)
    with pytest.raises(UserError, match="another process works there"):
        lock_folder(tmp_path)


def test_a_folder_that_is_made_anew_is_locked_anew(tmp_path):
    root = tmp_path / "run"
    for _ in range(2):
        root.mkdir()
        lock_folder(root)
        assert (root / "lock").read_text().startswith(f"process {os.getpid()} ")
        (root / "lock").unlink()
        root.rmdir()


def recipe(*changes):
    settings = deepcopy(RECIPE)
    for *place, name, value in changes:
        section = settings
        for part in place:
            section = section.setdefault(part, {})
        section[name] = value
    return parse_recipe(settings, "test")


@pytest.fixture
def begun(tmp_path):
    """A folder whose conversion is done and whose first stage has a checkpoint."""
    folder = RunFolder(tmp_path / "run", recipe())
    folder.create()
    folder.student("conversion").mkdir(parents=True)
    (folder.stage("qk_alignment") / "checkpoints/step-00000004").mkdir(parents=True)
    return folder.root


NEW_STAGE = RECIPE["stages"]["block_alignment"]
MAY_CHANGE = {
    "evaluation": ("evaluation", "tasks", "more", dict(kind="last_number", path="embedded:arithmetic")),
    "sampling": ("evaluation", "temperature", 1.0),
    "a later stage": ("stages", "logit_distillation", "tokens", 999),
    "a stage at the end": ("stages", "another", NEW_STAGE),
    "data of later stages": ("data", "instructions", [dict(path="embedded:text", text="text")]),
    "a new mixture": ("data", "more", [dict(path="embedded:text")]),
    "speed of a stage that has begun": ("stages", "qk_alignment", "micro_batch", 1),
}
MAY_NOT = {
    "seed": ("seed", 1),
    "teacher": ("teacher", "other/teacher"),
    "student.keep_attention": ("student", "keep_attention", [1]),
    "conversion.tokens": ("conversion", "tokens", 1024),
    "stages.qk_alignment.tokens": ("stages", "qk_alignment", "tokens", 999),
    "data.text": ("data", "text", [dict(path="embedded:text", weight=2)]),
}


@pytest.mark.parametrize("change", MAY_CHANGE)
def test_what_has_not_begun_may_change_and_is_kept(begun, change):
    settings = [MAY_CHANGE[change]]
    if change == "data of later stages":
        settings.append(("stages", "instruction_distillation", "loss_on", "all"))
    changed = recipe(*settings)
    RunFolder(begun, changed).create()
    assert parse_recipe(yaml.safe_load((begun / "recipe.yaml").read_text()), "run") == changed


@pytest.mark.parametrize("change", MAY_NOT)
def test_what_has_begun_may_not(begun, change):
    before = (begun / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=f"another recipe; different: {change}"):
        RunFolder(begun, recipe(MAY_NOT[change]))
    assert (begun / "recipe.yaml").read_text() == before


def test_the_stage_that_places_layers_is_behind_the_conversion(tmp_path):
    """It has not begun itself, and yet the layers were chosen by short trainings in it."""
    place = dict(method="kl", layers=2, student="aligned", stage="logit_distillation", tokens=256)
    before = recipe(("student", "keep_attention", place))
    folder = RunFolder(tmp_path / "run", before)
    folder.create()
    folder.student("conversion").mkdir(parents=True)
    changed, other = (
        recipe(("student", "keep_attention", place), ("stages", stage, "learning_rate", 1e-5))
        for stage in ("logit_distillation", "block_alignment")
    )
    with pytest.raises(UserError, match=r"different: stages\.logit_distillation\.learning_rate\."):
        RunFolder(folder.root, changed)
    RunFolder(folder.root, other)
    assert stage_key(changed, "conversion") != stage_key(before, "conversion") == stage_key(other, "conversion")


def test_a_stage_that_has_begun_keeps_its_place(begun):
    stages = deepcopy(RECIPE["stages"])
    for order in (["block_alignment", "qk_alignment"], ["block_alignment"]):
        changed = parse_recipe(RECIPE | {"stages": {name: stages[name] for name in order}}, "test")
        with pytest.raises(UserError, match=r"different: stages\.qk_alignment"):
            RunFolder(begun, changed)


def test_before_anything_has_begun_all_may_change(tmp_path):
    RunFolder(tmp_path / "run", recipe()).create()
    changed = recipe(*MAY_NOT.values())
    RunFolder(tmp_path / "run", changed).create()
    assert load_recipe(tmp_path / "run/recipe.yaml") == changed


def test_writing_of_the_teacher_is_a_beginning(tmp_path):
    prompts = {"prompts": [dict(kind="continuation", path="embedded:text")]}
    folder = RunFolder(tmp_path / "run", recipe(("synthesis", "written", prompts)))
    folder.create()
    folder.synthesis("written").mkdir(parents=True)
    for change in [("synthesis", "written", prompts | {"max_new_tokens": 9}), ("seed", 3)]:
        with pytest.raises(UserError, match="different: s"):
            RunFolder(folder.root, recipe(("synthesis", "written", prompts), change))


@pytest.mark.parametrize("damage", [b"", b"- a list", b"name: [", b"\xff\xfe", b"name: tiny\nname: tiny\n"])
def test_a_damaged_recipe_in_the_folder_is_one_clear_error(begun, damage):
    (begun / "recipe.yaml").write_bytes(damage)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        RunFolder(begun, recipe())


def test_folders_that_cannot_hold_a_run(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file/run", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"no run can be kept there|holds no run"):
            RunFolder(place, recipe()).create()
