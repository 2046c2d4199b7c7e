"""The loss on sequences that are never trained on: what training would call it, measured without a trace."""

import io

import pytest
import torch
from rich.console import Console

from gendistill.distill import engine

STAGES = {
    "mixer": dict(objective={"mixer_l2": 1.0, "mixer_cosine": 0.5}, train=["mixer"]),
    "block": dict(objective="block_l2", train=["mixer"]),
    "end_to_end": dict(objective={"forward_kl": 1.0, "hidden_l2": 0.3}, train=["mixer", "mlp", "norm"]),
}
SHORT = dict(steps=7, sequences_per_step=4, micro_batch=2, held_out_every=3, checkpoint_every=2)


@pytest.fixture(autouse=True)
def short(shrink):
    """Models of two layers."""
    shrink(num_hidden_layers=2)


@pytest.fixture
def held_out(rows):
    return rows(5, seed=1)


def measured(outcome):
    """Before the first step, and after each."""
    return [outcome.history[0].held_out_loss_before, *(metrics.held_out_loss for metrics in outcome.history)]


def known(losses):
    return [loss for loss in losses if loss is not None]


def trajectory(outcome):
    return [{name: x for name, x in step.items() if "held_out" not in name} for step in outcome.numbers]


@pytest.mark.parametrize("kind", STAGES)
def test_it_is_what_training_calls_the_loss_and_leaves_no_trace(make_stage, run, held_out, kind):
    stage = make_stage(**SHORT, **STAGES[kind])
    with_it, without = run(stage, folder="with", held_out=held_out), run(stage, folder="without")
    assert [loss is not None for loss in measured(with_it)] == [True, False, False, True, False, False, True, True]
    assert known(measured(without)) == []
    assert trajectory(with_it) == trajectory(without)
    assert all(torch.equal(with_it.after[name], weight) for name, weight in without.after.items())
    # As the loss of a step that trains on those very sequences.
    on_them = run(
        make_stage(**STAGES[kind], steps=1, sequences_per_step=5, micro_batch=5), folder="on them", dataset=held_out
    )
    assert measured(with_it)[0] == pytest.approx(on_them.losses[0], rel=1e-6)
    assert len(set(known(measured(with_it)))) == 4


@pytest.mark.parametrize("kind", STAGES)
def test_the_cut_into_micro_batches_does_not_matter(make_stage, run, held_out, kind):
    settings = SHORT | STAGES[kind]
    whole, cut = (
        run(make_stage(**settings | dict(micro_batch=size)), folder=str(size), held_out=held_out) for size in (4, 1)
    )
    assert known(measured(cut)) == pytest.approx(known(measured(whole)), rel=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_killed_run_resumes_with_the_same_numbers(make_stage, run, held_out, monkeypatch, step):
    """Before, at, and behind a measurement; the checkpoint is of the second step, the fourth, the sixth."""
    stage = make_stage(**SHORT)
    unbroken = run(stage, folder="unbroken", held_out=held_out)
    start = engine.Trainer._start

    def dying(self, at):
        if at.index + 1 == step:
            raise Killed
        return start(self, at)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(engine.Trainer, "_start", dying)
        run(stage, folder="killed", held_out=held_out)
    resumed = run(stage, folder="killed", held_out=held_out)
    assert resumed.numbers == unbroken.numbers
    assert all(torch.equal(resumed.after[name], weight) for name, weight in unbroken.after.items())


def test_windows_and_attention_drop_nothing(make_stage, run, held_out):
    """Of a stage in which every window is dropped, and of one whose attention drops a half."""
    settings, options = SHORT | dict(steps=1), dict(window=3, sinks=1)
    plain = run(make_stage(**settings), folder="plain", held_out=held_out, options=options)
    dropped = run(make_stage(**settings, window_dropout=1.0), folder="dropped", held_out=held_out, options=options)
    assert plain.losses[0] != dropped.losses[0]
    assert measured(plain)[0] == measured(dropped)[0]

    def drop(student):
        student.config.attention_dropout = 0.5

    attention = run(make_stage(**settings), folder="attention", held_out=held_out, options=options, change=drop)
    assert attention.losses[0] != plain.losses[0] and measured(attention)[0] == measured(plain)[0]


def test_a_gradient_that_is_not_finite_goes_no_further(make_stage, run, held_out, monkeypatch):
    """Zero times infinity is no number: it must not stay behind in the gradients of the step that follows."""
    measure = engine.Trainer._micro_batch

    def spoil(self, batch, scale):
        sums = measure(self, batch, scale)
        if scale == 0:
            next(iter(self.optimizer.masters.values())).grad.fill_(torch.nan)
        return sums

    stage = make_stage(**SHORT)
    plain = run(stage, folder="plain", held_out=held_out)
    monkeypatch.setattr(engine.Trainer, "_micro_batch", spoil)
    assert run(stage, folder="spoilt", held_out=held_out).numbers == plain.numbers


def test_progress_says_it(make_stage, run, held_out):
    file = io.StringIO()
    outcome = run(make_stage(**SHORT), held_out=held_out, console=Console(file=file))
    first, last = measured(outcome)[0], measured(outcome)[-1]
    lines = file.getvalue().splitlines()
    assert f"held out {first:.4f}, " in lines[0] and f"held out {last:.4f}, " in lines[-1]


def test_how_many_and_how_often(make_stage):
    long, short = make_stage(steps=1000), make_stage(steps=3)
    assert (long.held_out_sequences, long.held_out_measurements) == (16, 11)
    assert (short.held_out_sequences, short.held_out_measurements) == (1, 2)
    assert make_stage(steps=250, held_out_every=100).held_out_measurements == 4


@pytest.mark.parametrize("every", [1, 60, 1000])
@pytest.mark.parametrize(("steps", "rows"), [(20, 1), (245, 1), (62, 4), (1000, 8)])
def test_measuring_takes_a_small_part_of_training(make_stage, steps, rows, every):
    stage = make_stage(steps=steps, sequences_per_step=rows, micro_batch=1, held_out_every=every)
    assert 1 <= stage.held_out_sequences <= 16
    if stage.held_out_sequences > 1:
        assert 16 * stage.held_out_sequences * stage.held_out_measurements <= steps * rows
