"""Students with windows train as all others do; windows are dropped by the sequence's number and nothing else."""

import pytest
import torch
from test_engine import Alone, assert_same_to_the_bit, stopped_in_micro_batch

from gendistill.distill.batches import Loader
from gendistill.models.mixers.layer import LOGIT_SCALE

ALONE = dict(mixer="window", window=3, sinks=1)
BESIDE = dict(mixer="kda", window=3, sinks=1)
STUDENTS = {"window": ALONE, "beside": BESIDE, "by token": BESIDE | dict(window_share="token")}
STAGES = {
    "mixer": dict(objective="mixer_l2", train=["mixer"]),
    "block": dict(objective="block_l2", train=["mixer"]),
    "end_to_end": dict(objective="forward_kl", train=["mixer", "mlp", "norm"]),
}
SHORT = dict(steps=3, learning_rate=1e-3)


@pytest.fixture
def short(shrink):
    """Models of two layers."""
    shrink(num_hidden_layers=2)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("student", STUDENTS)
def test_packing_and_the_cut_do_not_matter(make_stage, run, rows, short, stage, student):
    """Losses of three steps, whose gradients must be the same for that, and what was trained in the end."""
    settings = SHORT | STAGES[stage]
    reference = run(make_stage(**settings), options=STUDENTS[student], folder="reference")
    cut = run(make_stage(**settings, micro_batch=1), options=STUDENTS[student], folder="cut")
    twice = dict(sequences_per_step=16, micro_batch=16, tokens=3 * 16 * 12)
    alone = run(make_stage(**settings, **twice), options=STUDENTS[student], folder="alone", dataset=Alone(rows(3 * 8)))
    for other in (cut, alone):
        assert other.losses == pytest.approx(reference.losses, rel=1e-5)
        norms = [[m.gradient_norm for m in outcome.history] for outcome in (other, reference)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_projections_of_a_window_train_by_their_roles(make_stage, run, short, stage):
    roles = ["mixer_qk", "mixer_value"]
    same = {name: 1e-3 for name in roles}
    settings = STAGES[stage] | dict(train=roles, learning_rate=same)
    outcome = run(make_stage(steps=12, **settings), options=ALONE)
    changed = {name.split(".")[4] for name, p in outcome.after.items() if not torch.equal(p, outcome.before[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
    assert all(".layers.0." in name for name, p in outcome.after.items() if not torch.equal(p, outcome.before[name]))
    assert min(outcome.losses[-4:]) < outcome.losses[0]


def dropped(dataset, stage, **how):
    """[sequences]: which ones do without windows, in the order of the data set."""
    loader = Loader(dataset, stage, **how)
    return [batch.without_window for index in range(stage.steps) for batch in loader.step(index).batches]


def test_windows_are_dropped_by_the_number_of_the_sequence(make_stage, rows):
    dataset, settings = rows(400), dict(steps=50, window_dropout=0.25)
    whole = torch.cat(dropped(dataset, make_stage(**settings)))
    assert 70 <= whole.sum() <= 130 and whole.shape == (400,)
    for cut in (1, 2, 3):
        assert torch.equal(torch.cat(dropped(dataset, make_stage(**settings, micro_batch=cut))), whole)
    halves = [dropped(dataset, make_stage(**settings), rank=rank, processes=2) for rank in (0, 1)]
    dealt = [half for step in zip(*halves, strict=True) for half in step]
    assert torch.equal(torch.cat(dealt), whole)
    assert all(torch.cat(dropped(dataset, make_stage(steps=50, window_dropout=1.0))))
    assert dropped(dataset, make_stage(steps=1)) == [None]


@pytest.mark.parametrize("stage", STAGES)
def test_dropped_windows_are_the_same_in_any_cut_and_after_a_stop(make_stage, run, short, stage):
    settings = STAGES[stage] | dict(steps=5, window_dropout=0.5, checkpoint_every=2)
    reference = run(make_stage(**settings), options=BESIDE, folder="reference")
    for cut in (1, 2):
        again = run(make_stage(**settings, micro_batch=cut), options=BESIDE, folder=f"cut {cut}")
        assert again.losses == pytest.approx(reference.losses, rel=1e-5)
    with stopped_in_micro_batch(4):  # behind the checkpoint of step 2
        run(make_stage(**settings), options=BESIDE, folder="stopped")
    assert_same_to_the_bit(run(make_stage(**settings), options=BESIDE, folder="stopped"), reference)
    never = run(make_stage(**settings | dict(window_dropout=0.0)), options=BESIDE, folder="never")
    assert never.losses[0] != pytest.approx(reference.losses[0], rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_the_recurrence_learns_without_its_window(make_stage, run, rows, short, stage):
    """Nothing else trains. All windows dropped, the mixture has no gradient; with windows its logit has one, too."""
    same = {"mixer_conv": 3e-3, "mixer_gate": 3e-3}
    settings = STAGES[stage] | dict(train=["mixer_conv", "mixer_gate"], learning_rate=same, steps=30)
    alone = run(make_stage(**settings, window_dropout=1.0), options=BESIDE, folder="alone")
    assert sum(alone.losses[-5:]) < 0.97 * sum(alone.losses[:5])
    logit = "model.layers.0.linear_attn.window_logit"
    beside = run(make_stage(**settings | dict(steps=10)), options=BESIDE, folder="beside")
    logits = [LOGIT_SCALE * of[logit] for of in (beside.before, beside.after)]
    assert (logits[1] - logits[0]).abs().max() > 1  # at a usual rate a short stage shifts shares, and does not only try
    by_token = run(make_stage(**settings | dict(steps=10)), options=STUDENTS["by token"], folder="by token")
    share = "model.layers.0.linear_attn.share_proj.weight"
    assert (by_token.after[share] != by_token.before[share]).all()
    gates = "model.layers.0.linear_attn.g_b_proj.bias"
    assert all(not torch.equal(outcome.after[gates], outcome.before[gates]) for outcome in (alone, beside))
