"""Whatever gets its final name is on the disk itself by then, and so is the name before anything builds on it."""

import ast
import os
from pathlib import Path

import pytest
import yaml

import gendistill
from cli_tools import RECIPE, STAGE, in_process
from gendistill import files
from gendistill.files import folder_in_one_piece, make_folder, write_atomically

SMALL = RECIPE | dict(
    stages={"only": STAGE | dict(objective="mixer_l2", train=["mixer"], tokens=64 * 2 * 4)},
    evaluation=dict(tasks=dict(facts=RECIPE["evaluation"]["tasks"]["facts"] | dict(items=2))),
)


class Disk:
    """What has reached the disk by `os.fsync`, and what got a name before it had."""

    def __init__(self, monkeypatch):
        self.flushed, self.too_early, self.unnamed, self.names = set(), [], {}, []
        self.folders = set()
        self.fsync, self.replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.on_fsync)
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self.on_replace)

    @staticmethod
    def state(path):
        status = os.stat(path)  # by its inode, for names change
        return status.st_ino, status.st_mtime_ns, status.st_size

    def on_fsync(self, descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.flushed.add(self.state(path))
        self.folders.add(path)
        self.unnamed.pop(path, None)  # all names that were given in this folder are there for good
        return self.fsync(descriptor)

    def on_replace(self, old, new):
        old, new = os.path.abspath(old), os.path.abspath(new)
        inside = [str(path) for path in Path(old).rglob("*")] if os.path.isdir(old) else []
        self.too_early += [path for path in (old, *inside) if self.state(path) not in self.flushed]
        self.names.append(new)
        self.replace(old, new)
        self.unnamed[os.path.dirname(new)] = new


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_run_names_nothing_that_a_loss_of_power_could_take(disk, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SMALL))
    run = tmp_path / "run"
    code, output = in_process("run", tmp_path / "recipe.yaml", "--output", run)
    assert code == 0, output
    assert disk.too_early == []
    assert disk.unnamed == {}
    named = {Path(name).relative_to(run).as_posix() for name in disk.names if name.startswith(str(run))}
    for what in ("recipe.yaml", "0-conversion/student", "1-only/student", "1-only/checkpoints/step-00000004"):
        assert what in named
    assert {"evaluation/1-only/facts.jsonl", "evaluation/1-only/facts.meta.json", "scores.json"} <= named


def test_folders_that_are_made_are_there_for_good(disk, tmp_path):
    with folder_in_one_piece(tmp_path / "a" / "b" / "c") as partial:
        write_atomically(partial / "file", "text")
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= disk.folders
    assert disk.too_early == [] and disk.unnamed == {}
    make_folder(tmp_path / "a")  # it is there


def test_a_disk_that_cannot_be_flushed_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_names_are_given_in_one_place():
    """The sandbox's folders of programs need not outlive a loss of power."""
    source = Path(gendistill.__file__).parent
    found = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            # Path.replace takes one argument, as str.replace never does.
            names = called in ("os.replace", "os.rename", "shutil.move") or called.endswith(".rename")
            if names or (called.endswith(".replace") and len(node.args) == 1):
                found.add(path.relative_to(source).as_posix())
    assert found == {"files.py", "sandbox/folders.py"}
    assert files.__file__
