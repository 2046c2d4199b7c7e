"""A checkpoint is whole or not there, also on a full disk, and belongs to one trajectory."""

import resource
import shutil
import signal
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed.checkpoint as dcp

from gendistill.distill.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distill.roles import set_trainable
from gendistill.errors import UserError
from gendistill.files import seal
from small_models import make_student

FINGERPRINT = {"learning_rate": "0.001", "data": '"abc"', "initial weights": '"def"'}


@pytest.fixture
def optimizer_at(make_stage):
    """An optimizer after some steps: everything it holds differs from one number of them to the next."""

    def make(steps, dtype=torch.float32):
        stage = make_stage(train=["mixer_gate", "norm"])
        student = make_student("qwen3")
        set_trainable(student, stage.train)
        optimizer = MasterOptimizer(student, stage, dtype)
        for step in range(steps):
            for master in optimizer.masters.values():
                master.grad.fill_(0.01 * (step + 1))
            optimizer.step(1.0)
        return optimizer

    return make


def state(optimizer):
    return {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}


def assert_loaded(optimizer, reference):
    """Masters, AdamW's state, and the model's own weights."""
    got, wanted = state(optimizer), state(reference)
    assert got.keys() == wanted.keys() and len(got) == 4 * len(optimizer.masters)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in got.items())
    for name, parameter in optimizer.parameters.items():
        assert torch.equal(parameter, reference.parameters[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_newest_is_loaded_and_old_ones_go(tmp_path, optimizer_at, dtype):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, optimizer_at(step, dtype), FINGERPRINT)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert len(list(tmp_path.iterdir())) == 2
    fresh = optimizer_at(0, dtype)
    assert load_checkpoint(tmp_path, fresh, FINGERPRINT) == (3, [])
    assert_loaded(fresh, optimizer_at(3, dtype))


def test_without_a_checkpoint_nothing_changes(tmp_path, optimizer_at):
    fresh = optimizer_at(0)
    assert load_checkpoint(tmp_path / "not there", fresh, FINGERPRINT) == (0, [])
    assert not fresh.adamw.state
    reference = optimizer_at(0)
    assert all(torch.equal(p, reference.parameters[name]) for name, p in fresh.parameters.items())


def flip(name, place=-1):
    def damage(folder):
        path = next(folder.glob(name))
        data = bytearray(path.read_bytes())
        data[place if place >= 0 else len(data) // 2] ^= 1
        path.write_bytes(data)

    return damage


def cut(folder):
    data = next(folder.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-100])


DAMAGES = {
    "data cut": cut,
    "data gone": lambda folder: next(folder.glob("*.distcp")).unlink(),
    "metadata gone": lambda folder: (folder / ".metadata").unlink(),
    "manifest is no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "manifest lacks an entry": lambda folder: (folder / "manifest.json").write_text('{"step": 2}'),
    "a bit of the data": flip("*.distcp"),
    "a bit of the metadata": flip(".metadata"),
    "a bit of the manifest": flip("manifest.json"),
    "a bit of the hashes": flip("SHA256SUMS"),
    "hashes gone": lambda folder: (folder / "SHA256SUMS").unlink(),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over(tmp_path, optimizer_at, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, optimizer_at(step), FINGERPRINT)
    DAMAGES[damage](tmp_path / "step-00000002")
    fresh = optimizer_at(0)
    step, notes = load_checkpoint(tmp_path, fresh, FINGERPRINT)
    assert step == 1 and len(notes) == 1
    assert "step-00000002 is damaged" in notes[0] and "going back to the one before" in notes[0]
    assert_loaded(fresh, optimizer_at(1))


def test_all_damaged_is_a_fresh_start_with_notes(tmp_path, optimizer_at):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, optimizer_at(step), FINGERPRINT)
        cut(tmp_path / f"step-{step:08d}")
    step, notes = load_checkpoint(tmp_path, optimizer_at(0), FINGERPRINT)
    assert step == 0 and len(notes) == 2


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_sealed_files_that_cannot_be_read_are_one_clear_error(tmp_path, optimizer_at, name):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, optimizer_at(step), FINGERPRINT)
    newest = tmp_path / "step-00000002"
    (newest / name).write_bytes(bytes((newest / name).stat().st_size))
    seal(newest)  # as if another version had written it
    with pytest.raises(UserError, match=r"step-00000002: the checkpoint's files cannot be read\. Delete it and run"):
        load_checkpoint(tmp_path, optimizer_at(0), FINGERPRINT)
    shutil.rmtree(newest)
    assert load_checkpoint(tmp_path, optimizer_at(0), FINGERPRINT) == (1, [])


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"learning_rate": "0.002"}, "learning_rate"),
        ({"data": '"other"', "initial weights": '"other"'}, "data, initial weights"),
        ({"new setting": "1"}, "new setting"),
    ],
)
def test_another_trajectory_is_refused_by_name(tmp_path, optimizer_at, change, names):
    save_checkpoint(tmp_path, 1, optimizer_at(1), FINGERPRINT)
    fresh = optimizer_at(0)
    with pytest.raises(UserError, match=rf"different: {names}\. Undo the change, delete .* or use another output"):
        load_checkpoint(tmp_path, fresh, FINGERPRINT | change)
    assert not fresh.adamw.state


@contextmanager
def full_disk(room=8192):
    """The kernel refuses the write in its middle, as it does when the disk is full."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, optimizer_at):
    save_checkpoint(tmp_path, 1, optimizer_at(1), FINGERPRINT)
    message = r"step-00000002: the checkpoint could not be written \(.*(File too large|write).*Free some space.*resumes"
    with full_disk(), pytest.raises(UserError, match=message) as caught:
        save_checkpoint(tmp_path, 2, optimizer_at(2), FINGERPRINT)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    fresh = optimizer_at(0)
    assert load_checkpoint(tmp_path, fresh, FINGERPRINT) == (1, [])
    assert_loaded(fresh, optimizer_at(1))


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(make_stage, run, shrink):
    """Through the loop: the first checkpoint fits, the second does not."""
    shrink(num_hidden_layers=2)
    stage = make_stage(checkpoint_every=2, micro_batch=2, sequences_per_step=2)
    unbroken = run(stage, folder="unbroken")
    with pytest.MonkeyPatch.context() as patch:
        saves = []

        def save(*arguments, original=dcp.save, **options):
            saves.append(1)
            with full_disk() if len(saves) == 2 else nullcontext():
                return original(*arguments, **options)

        patch.setattr(dcp, "save", save)
        with pytest.raises(UserError, match="step-00000004: the checkpoint could not be written"):
            run(stage, folder="full")
    resumed = run(stage, folder="full")
    assert resumed.numbers == unbroken.numbers
    assert all(torch.equal(resumed.after[name], value) for name, value in unbroken.after.items())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
@pytest.mark.parametrize("room", [0, 600])
def test_a_disk_too_full_for_metrics_is_one_clear_error(make_stage, run, shrink, room):
    shrink(num_hidden_layers=2)
    stage = make_stage(checkpoint_every=100, micro_batch=2, sequences_per_step=2)
    with full_disk(room), pytest.raises(UserError, match=r"metrics\.jsonl.*File too large.*Free some space") as caught:
        run(stage, folder="full")
    assert "\n" not in str(caught.value)
    assert run(stage, folder="full").numbers == run(stage, folder="unbroken").numbers


def test_a_save_that_is_interrupted_leaves_no_checkpoint(tmp_path, optimizer_at, monkeypatch):
    """Nor does what it leaves get in the way of the next try."""
    save_checkpoint(tmp_path, 1, optimizer_at(1), FINGERPRINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(state, checkpoint_id, **_):
            (checkpoint_id / "half.distcp").write_bytes(b"half")
            raise KeyboardInterrupt

        patch.setattr(dcp, "save", interrupted)
        save_checkpoint(tmp_path, 2, optimizer_at(2), FINGERPRINT)
    assert load_checkpoint(tmp_path, optimizer_at(0), FINGERPRINT) == (1, [])
    save_checkpoint(tmp_path, 2, optimizer_at(2), FINGERPRINT)
    assert not list(tmp_path.rglob("half.distcp")) and not list(tmp_path.glob("partial-*"))
    assert load_checkpoint(tmp_path, optimizer_at(0), FINGERPRINT) == (2, [])
