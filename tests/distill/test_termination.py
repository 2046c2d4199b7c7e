"""SIGTERM while a stage trains: the step is finished, kept, and resumed from with the numbers of an unbroken run."""

import os
import signal

import pytest
import torch

from gendistill.distill.checkpoint import checkpoints
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.errors import Stopped


@pytest.fixture
def signal_in_step(monkeypatch):
    """Sends the process signals while a step's optimizer is at work."""

    def arm(number, times=1):
        calls, step = [], MasterOptimizer.step

        def stepping(self, share):
            calls.append(1)
            if len(calls) == number:
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGTERM)
            return step(self, share)

        monkeypatch.setattr(MasterOptimizer, "step", stepping)

    return arm


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_the_step_is_kept_and_resumed_from(make_stage, run, shrink, monkeypatch, signal_in_step, number):
    """In any step: before a checkpoint that is due, in its step, and in the last one."""
    shrink(num_hidden_layers=2)
    stage = make_stage(steps=6, checkpoint_every=3, micro_batch=2, sequences_per_step=2)
    unbroken = run(stage, folder="unbroken")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context(), pytest.raises(Stopped, match=r"kept as of step \d, and the same command") as caught:
        signal_in_step(number)
        run(stage, folder="stopped")
    monkeypatch.undo()
    shrink(num_hidden_layers=2)
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    folder = unbroken.folder.parent / "stopped"
    kept = int(checkpoints(folder / "checkpoints")[-1].name.removeprefix("step-"))
    assert number <= kept <= number + 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == kept
    resumed = run(stage, folder="stopped")
    assert resumed.numbers == unbroken.numbers
    assert all(torch.equal(resumed.after[name], value) for name, value in unbroken.after.items())


def test_a_second_one_does_not_wait(make_stage, run, shrink, signal_in_step):
    shrink(num_hidden_layers=2)
    signal_in_step(2, times=2)
    with pytest.raises(Stopped, match="second SIGTERM"):
        run(make_stage(steps=6, micro_batch=2, sequences_per_step=2), folder="stopped")
