"""What an export refuses and keeps, what its card says, and how it gets to the hub."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from cli_tools import in_process
from gendistill.embedded import teacher_folder
from gendistill.export import push as hub
from gendistill.export.code import ENTRY, file_name
from gendistill.export.folder import export_student
from gendistill.files import damage_of, seal

CARD = "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://example.org/licence\n---\n# A teacher\n"


@pytest.fixture(scope="module")
def saved_student(tmp_path_factory, save_student):
    folder = tmp_path_factory.mktemp("students") / "student"
    save_student("qwen3-window-pure", folder)
    return folder


@pytest.fixture
def run(tmp_path_factory, saved_student):
    """A run folder with an untrained student and one of a stage, and what steps of a run write beside them."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    teacher = root.parent / "teachers" / "Qwen-tiny"
    teacher.mkdir(parents=True)
    (teacher / "README.md").write_text(CARD)
    (teacher / "LICENSE").write_text("Do as you like.\n")
    report = dict(teacher=str(teacher), teacher_loss=1.0, student_loss=2.0, uniform_loss=4.5)
    for place, stage in enumerate(("conversion", "alignment", "distillation")):
        student = root / f"{place}-{stage}" / "student"
        shutil.copytree(saved_student, student)
        text = report if stage == "conversion" else {"stage": stage}
        name = "conversion_report.json" if stage == "conversion" else "stage_report.json"
        (student / name).write_text(json.dumps(text))
        seal(student)
    stage = dict(objective={"forward_kl": 1, "cross_entropy": 0.01}, train=["mixer"], data="text", tokens=4096)
    stages = {"alignment": stage | {"objective": "mixer_l2"}, "distillation": stage}
    recipe = dict(name="tiny", teacher=str(teacher), stages=stages, data=dict(text=[dict(path=str(root / "a.jsonl"))]))
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (root / "scores.json").write_text(json.dumps(_scores()))
    return root


def _scores():
    """scores.json of one task."""

    def row(task, student):
        accuracy = dict(teacher=0.8, student=student, retention=student / 0.8)
        return dict(task=task, ranking=accuracy, generation=accuracy, flexible=accuracy, gap=0.0, unparsed=0.25)

    estimate = dict(value=0.5, interval=[0.375, 0.625])
    protocol = dict(retention=estimate, corrected_retention=0.4, p=0.03, minimum_detectable_effect=12.0)
    label = "2-distillation"
    diagnosis = dict(name="never stops", sentence="60% of the replies run out of their budget.")
    return dict(
        paired={
            "0-conversion": [row("facts", 0.1), row("mean", 0.1)],
            label: [row("facts", 0.4), row("mean", 0.4)],
        },
        significance={label: {"facts": dict(items=50, ranking=protocol, generation=protocol, gap=estimate)}},
        diagnostics={"facts": {"teacher": dict(diagnoses=[]), label: dict(diagnoses=[diagnosis])}},
    )


def test_the_card_says_what_the_run_folder_knows(run, tmp_path):
    folder = export_student(run / "2-distillation" / "student", tmp_path / "exported")
    _, metadata, card = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert metadata["license_name"] == "qwen-research" and "base_model" not in metadata  # a folder is no base model
    assert (folder / "LICENSE").read_text() == "Do as you like.\n"
    for said in (
        "# A pure student of Qwen-tiny",
        "- 4: sliding-window attention over the last 5 tokens and the first 2.",
        "| facts | 80.0 | 40.0 | 50.0 |",
        "50.0 (37.5 to 62.5)",
        "| control: the same student, untrained | 80.0 | 10.0 |",
        "- facts: **never stops.** 60% of the replies",
        "teacher 1.000, untrained student 2.000",
        "| alignment | mixer_l2 | mixer | text | 4,096 |",
        "| distillation | 1 forward_kl + 0.01 cross_entropy |",
        "whose licence they are under: qwen-research (https://example.org/licence)",
    ):
        assert said in card
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            assert str(run.parent) not in path.read_text(), path  # nobody else has these folders
    assert {"recipe.yaml", "scores.json", "conversion_report.json", "stage_report.json"} <= set(_names(folder))


def test_an_export_of_an_export_knows_as_much(run, tmp_path):
    once = export_student(run / "2-distillation" / "student", tmp_path / "once")
    shutil.rmtree(run.parent / "teachers")  # as on another machine
    twice = export_student(once, tmp_path / "twice")
    assert _names(once) == _names(twice)
    assert all((once / name).read_bytes() == (twice / name).read_bytes() for name in _names(once))


def test_the_card_does_not_praise_what_nobody_looked_at(run, tmp_path):
    """An untrained student; one that was evaluated without being the last; one taken out of its run."""
    untrained = export_student(run / "0-conversion" / "student", tmp_path / "untrained")
    card = (untrained / "README.md").read_text()
    assert "never trained" in card and "not diagnosed" in card and "| stage |" not in card
    assert "stage_report.json" not in _names(untrained)
    middle = (export_student(run / "1-alignment" / "student", tmp_path / "middle") / "README.md").read_text()
    assert "was not evaluated" in middle and "| alignment |" in middle and "| distillation |" not in middle
    shutil.copytree(run / "2-distillation" / "student", tmp_path / "student")
    alone = (export_student(tmp_path / "student", tmp_path / "alone") / "README.md").read_text()
    assert "an unnamed teacher" in alone and "was not evaluated" in alone and "No licence was found" in alone


def test_weights_keep_their_dtypes(run, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(run / "2-distillation" / "student", student)
    stored = load_file(student / "model.safetensors")
    stored = {name: x if "norm" in name else x.bfloat16() for name, x in stored.items()}
    save_file(stored, student / "model.safetensors", metadata={"format": "pt"})
    seal(student)
    written = load_file(export_student(student, tmp_path / "exported") / "model.safetensors")
    assert {x.dtype for x in written.values()} == {torch.float32, torch.bfloat16}
    assert written.keys() == stored.keys()
    assert all(torch.equal(x, stored[name]) and x.dtype == stored[name].dtype for name, x in written.items())


def test_what_is_no_whole_student_is_refused(run, tmp_path):
    target = tmp_path / "exported"
    good = run / "2-distillation" / "student"

    def refusal(student):
        code, output = in_process("export", student, target)
        assert code == 2 and not target.exists(), output
        return output

    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert f"Students in it: {run}/0-conversion/student" in refusal(run)
    assert "model of type 'qwen3', no student" in refusal(teacher_folder())
    damaged = shutil.copytree(good, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:-1] + b"!")
    assert "model.safetensors changed since written" in refusal(damaged)
    stored = load_file(good / "model.safetensors")
    stored.pop("model.layers.2.mlp.up_proj.weight")
    save_file(stored, damaged / "model.safetensors", metadata={"format": "pt"})
    seal(damaged)
    assert "missing: model.layers.2.mlp.up_proj.weight" in refusal(damaged)


def test_only_an_earlier_export_is_replaced(run, tmp_path):
    student, target = run / "2-distillation" / "student", tmp_path / "exported"
    target.mkdir()  # an empty folder is as good as none
    assert in_process("export", student, target)[0] == 0
    (target / file_name(ENTRY)).write_text("# of an older version\n")
    seal(target)
    code, output = in_process("export", student, target)
    assert code == 0 and damage_of(target) is None, output
    assert "older version" not in (target / file_name(ENTRY)).read_text()

    def refusal(folder):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        code, output = in_process("export", student, folder)
        assert code == 2 and before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return output

    card = (target / "README.md").read_text()
    (target / "README.md").write_text(card + "What I found.\n")
    assert "would be lost: README.md changed since written" in refusal(target)
    (target / "README.md").write_text(card)
    (target / "notes.txt").write_text("mine")
    assert "would be lost: notes.txt added since written" in refusal(target)
    assert "lie in each other" in refusal(student)
    assert "lie in each other" in refusal(run)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert "holds no earlier export" in refusal(other)


def test_what_was_there_stays_if_the_new_one_cannot_be_written(run, tmp_path, monkeypatch):
    student, target = run / "2-distillation" / "student", tmp_path / "exported"
    export_student(student, target)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("gendistill.export.folder.write_atomically", full)
    code, output = in_process("export", student, target)
    assert code == 2 and "could not be written (No space left on device)" in output
    assert damage_of(target) is None and [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_push(run, tmp_path, monkeypatch):
    student, target, calls = run / "2-distillation" / "student", tmp_path / "exported", []

    class Hub:
        def create_repo(self, name, private, exist_ok):
            calls.append((name, private, exist_ok))
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, folder_path, repo_id, commit_message):
            calls.append((folder_path, repo_id, damage_of(folder_path)))

    monkeypatch.setattr(hub, "get_token", lambda: None)
    monkeypatch.setattr(hub, "HfApi", Hub)
    code, output = in_process("export", student, target, "--push", "my student")
    assert code == 2 and "no name of a repository" in output
    code, output = in_process("export", student, target, "--push", "student")
    assert code == 2 and "hf auth login" in output
    assert not target.exists() and not calls  # both told before anything is written
    monkeypatch.setattr(hub, "get_token", lambda: "hf_secret")
    code, output = in_process("export", student, target, "--push", "student")
    assert code == 0 and calls == [("student", True, True), (target, "me/student", None)], output

    def refuse(*_, **__):
        raise HfHubHTTPError("403 Forbidden", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(Hub, "upload_folder", refuse)
    code, output = in_process("export", student, target, "--push", "student")
    assert code == 2 and "403 Forbidden" in output and "is whole; the same command tries again" in output
    assert damage_of(target) is None and "hf_secret" not in output


def _names(folder):
    return sorted(path.name for path in folder.iterdir())
