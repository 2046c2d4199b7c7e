"""A run is held to the teacher it began with, by content; what is unchanged is not read twice."""

import os
import shutil

import pytest
from rich.console import Console

from cli_tools import RECIPE
from gendistill import files
from gendistill.embedded import teacher_folder
from gendistill.errors import UserError
from gendistill.recipe.loading import parse_recipe
from gendistill.run import teacher as teacher_module
from gendistill.run.run import Run


@pytest.fixture
def teacher(tmp_path):
    return shutil.copytree(teacher_folder(), tmp_path / "teacher")


@pytest.fixture
def start(teacher, tmp_path):
    def start(**how):
        recipe = parse_recipe(RECIPE | {"teacher": str(teacher)}, "test")
        return Run(recipe, tmp_path / "run", Console(quiet=True), **how)

    return start


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are hashed."""
    names = []
    monkeypatch.setattr(
        teacher_module, "file_sha256", lambda path: names.append(path.name) or files.file_sha256(path), raising=True
    )
    return names


def flip(path, offset, keep_times=False):
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    if keep_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
def test_changed_weights_are_refused_by_name(start, teacher, tmp_path, keep_times):
    """One bit, the same size, and even the same time: the system's own time of the change cannot be set back."""
    assert start().teacher is not None
    flip(teacher / "model.safetensors", -1, keep_times)
    with pytest.raises(UserError, match=r"not the one that the run in .* began with; different: .*model\.safetensors"):
        start().load_teacher()
    shutil.copy(teacher_folder() / "model.safetensors", teacher)  # undone
    assert start().teacher is not None


def test_a_changed_configuration_is_refused(start, teacher):
    start().load_teacher()
    config = teacher / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(UserError, match=r"different: .*config\.json"):
        start().load_teacher()


@pytest.mark.parametrize("change", [("5.", "6."), None])
def test_a_changed_generation_configuration_is_refused(start, teacher, change):
    """It names tokens that end replies."""
    start().load_teacher()
    path = teacher / "generation_config.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=r"different: .*generation_config\.json"):
        start().load_teacher()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("chat_template.jinja", lambda text: text + " "),
        ("tokenizer_config.json", lambda text: text.replace('spaces": false', 'spaces": true')),
    ],
)
def test_a_changed_tokenizer_is_refused(start, teacher, file, change):
    assert start().tokenizer is not None
    assert start().tokenizer is not None
    path = teacher / file
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match="different: its tokenizer"):
        _ = start().tokenizer


def test_weights_are_read_once_while_they_are_unchanged(start, teacher, reads):
    start().load_teacher()
    assert sorted(reads) == ["config.json", "generation_config.json", "model.safetensors"]
    start().load_teacher()
    assert len(reads) == 3
    shutil.copytree(teacher, teacher.with_name("moved"))
    shutil.rmtree(teacher)
    teacher.with_name("moved").rename(teacher)  # other files of the same content
    start().load_teacher()
    assert len(reads) == 6


def test_who_only_looks_is_not_shown_another_teacher(start, teacher):
    start().load_teacher()
    assert start().tokenizer is not None
    path = teacher / "tokenizer.json"
    path.write_text(path.read_text().replace('"e": 71', '"e": 72').replace('"f": 72', '"f": 71'))
    with pytest.raises(UserError, match="different: its tokenizer"):
        _ = start(makes_results=False).tokenizer
    flip(teacher / "model.safetensors", -1)
    with pytest.raises(UserError, match=r"different: .*model\.safetensors"):
        start(makes_results=False).load_teacher()


def test_who_only_looks_records_nothing(start, tmp_path):
    run = start(makes_results=False)
    run.load_teacher()
    assert run.tokenizer is not None and not (tmp_path / "run/teacher.json").exists()
