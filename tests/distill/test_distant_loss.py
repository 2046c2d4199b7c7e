"""The loss on distant answers, with the windows beside a recurrence on and off: measured without a trace."""

import pytest
import torch

WINDOW = dict(window=3, sinks=1)
SHORT = dict(steps=3, sequences_per_step=4, micro_batch=2, held_out_every=2, checkpoint_every=2)


@pytest.fixture(autouse=True)
def short(shrink):
    """Models of two layers."""
    shrink(num_hidden_layers=2)


@pytest.fixture
def distant(rows):
    return rows(5, seed=1)


def on_them(make_stage, run, distant, **settings):
    """The loss of a step that trains on those very sequences."""
    stage = make_stage(steps=1, sequences_per_step=5, micro_batch=5, **settings)
    return run(stage, folder=f"on them {settings}", dataset=distant, options=WINDOW).losses[0]


def test_with_and_without_windows(make_stage, run, distant):
    outcome = run(make_stage(**SHORT, window_dropout=0.5), folder="with", distant=distant, options=WINDOW)
    first, second, third = outcome.history
    assert first.distant_loss is None and first.distant_loss_before.keys() == {"as_is", "without_window"}
    assert first.distant_loss_before["as_is"] == pytest.approx(on_them(make_stage, run, distant), rel=1e-6)
    dropped = on_them(make_stage, run, distant, window_dropout=1.0)
    assert first.distant_loss_before["without_window"] == pytest.approx(dropped, rel=1e-6)
    assert dropped != pytest.approx(first.distant_loss_before["as_is"], rel=1e-3)
    assert second.distant_loss != third.distant_loss and third.distant_loss_before is None
    assert second.held_out_loss is None  # nothing else is held out here

    without = run(make_stage(**SHORT, window_dropout=0.5), folder="without", options=WINDOW)
    assert [step.loss for step in outcome.history] == [step.loss for step in without.history]
    assert all(torch.equal(outcome.after[name], weight) for name, weight in without.after.items())


def test_the_same_where_no_window_is_dropped_in_training(make_stage, run, distant):
    """Batches then say of each sequence that it keeps its windows: no number may change."""
    plain = run(make_stage(**SHORT), folder="plain", options=WINDOW)
    outcome = run(make_stage(**SHORT), folder="with", distant=distant, options=WINDOW)
    assert [step.loss for step in outcome.history] == pytest.approx([step.loss for step in plain.history], rel=1e-6)
    assert outcome.history[0].distant_loss_before.keys() == {"as_is", "without_window"}


def test_a_student_without_windows_has_one_loss(make_stage, run, distant):
    outcome = run(make_stage(**SHORT), distant=distant)
    assert outcome.history[-1].distant_loss.keys() == {"as_is"}
