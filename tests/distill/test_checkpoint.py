"""A checkpoint is whole or not there, also on a full disk."""

import resource
import signal

import pytest
import torch

from gendistill.distill.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from gendistill.errors import UserError


def state(step):
    return {"step": step, "weights": torch.full((5000,), float(step))}


def test_the_newest_whole_one_is_loaded_and_old_ones_go(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    loaded, notes = load_checkpoint(tmp_path)
    assert loaded["step"] == 3 and not notes


@pytest.mark.parametrize("damage", ["cut", "manifest", "empty"])
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    newest = checkpoints(tmp_path)[-1]
    if damage == "cut":
        data = (newest / "state.pt").read_bytes()
        (newest / "state.pt").write_bytes(data[: len(data) // 2])
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        (newest / "state.pt").unlink()
    loaded, notes = load_checkpoint(tmp_path)
    assert loaded["step"] == 1
    assert len(notes) == 1 and "step-00000002 is damaged" in notes[0]


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    """The kernel refuses the write in its middle, as it does when the disk is full."""
    save_checkpoint(tmp_path, 1, state(1))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError, match="could not be written.*Free some space.*last whole checkpoint"):
            save_checkpoint(tmp_path, 2, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path)[0]["step"] == 1


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path) == (None, [])
