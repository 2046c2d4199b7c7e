"""The loop: one trajectory however the step is cut, exactly the named roles change, and a stop leaves no trace."""

import json
import math

import pytest
import torch
from rich.console import Console

from gendistill.distill.engine import train
from gendistill.distill.objectives import build_objective
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distill.roles import MIXER_ROLES, role_of, set_trainable
from gendistill.distill.schedule import learning_rate_share
from gendistill.errors import UserError
from gendistill.recipe import Schedule
from small_models import make_student, make_teacher

CERTIFICATE = {"layers": [{"layer": i, "attention_power": 1.0, "update_power": 1.0} for i in (0, 2, 3)]}


def run(stage, rows, folder, dtype=torch.float32, fingerprint="x"):
    student = make_student("qwen3").train()
    teacher = make_teacher("qwen3").to(dtype).requires_grad_(False)
    set_trainable(student, stage.train)
    optimizer = MasterOptimizer(student, stage, dtype)
    history = train(
        stage,
        build_objective(stage.objective, teacher, student, CERTIFICATE),
        optimizer,
        rows(stage.steps * stage.sequences_per_step),
        folder=folder,
        fingerprint=fingerprint,
        device="cpu",
        title="test",
        console=Console(quiet=True),
    )
    return history, optimizer.weights()


@pytest.mark.parametrize(
    ("objective", "roles"),
    [("mixer_l2", ["mixer_qk"]), ("block_l2", ["mixer"]), ("forward_kl", ["mixer", "mlp", "norm"])],
)
def test_the_cut_into_micro_batches_does_not_matter(make_stage, rows, tmp_path, objective, roles):
    losses = {}
    for micro_batch in (8, 3, 1):
        stage = make_stage(objective=objective, train=roles, micro_batch=micro_batch)
        history, _ = run(stage, rows, tmp_path / str(micro_batch))
        losses[micro_batch] = [(m.loss, m.gradient_norm) for m in history]
    assert len(losses[8]) == 4
    for micro_batch in (3, 1):
        assert losses[micro_batch][0] == pytest.approx(losses[8][0], rel=1e-5)  # the same gradient
        # Adam divides tiny gradients by their own size, so rounding grows; the trajectory stays.
        assert [loss for loss, _ in losses[micro_batch]] == pytest.approx([loss for loss, _ in losses[8]], rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "roles"),
    [
        ("mixer_l2", ["mixer_qk", "mixer_conv", "mixer_gate"]),
        ("block_l2", ["mixer"]),
        ("forward_kl", ["mixer", "mlp", "norm"]),
        ("forward_kl", ["attention"]),
        ("forward_kl", ["embedding"]),
    ],
)
def test_exactly_the_named_roles_change(make_stage, rows, tmp_path, objective, roles):
    stage = make_stage(objective=objective, train=roles)
    before = {name: p.detach().clone() for name, p in make_student("qwen3").named_parameters()}
    _, after = run(stage, rows, tmp_path)
    named = set(roles) | (set(MIXER_ROLES) if "mixer" in roles else set())
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (role_of(name) not in named), name


def test_ledger_counts_every_parameter():
    student = make_student("qwen3")
    ledger = set_trainable(student, ["mixer", "norm"])
    assert sum(count for count, _ in ledger.values()) == sum(p.numel() for p in student.parameters())
    assert {role for role, (_, trains) in ledger.items() if trains} == {*MIXER_ROLES, "norm"}
    with pytest.raises(UserError, match="head: this student has no such parameters"):
        set_trainable(student, ["head"])  # tied


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stopped_run_resumes_exactly(make_stage, rows, tmp_path, stop, monkeypatch):
    stage = make_stage(tokens=24 * 8 * 7, checkpoint_every=2, micro_batch=3)
    unbroken, weights = run(stage, rows, tmp_path / "unbroken")
    calls = 0
    original = MasterOptimizer.step

    def stopping(self, share):
        nonlocal calls
        calls += 1
        if calls == stop + 1:
            raise KeyboardInterrupt
        return original(self, share)

    monkeypatch.setattr(MasterOptimizer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(stage, rows, tmp_path / "stopped")
    monkeypatch.setattr(MasterOptimizer, "step", original)
    resumed, resumed_weights = run(stage, rows, tmp_path / "stopped")
    assert [(m.step, m.loss, m.gradient_norm) for m in resumed] == [(m.step, m.loss, m.gradient_norm) for m in unbroken]
    assert all(torch.equal(weights[name], value) for name, value in resumed_weights.items())
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 8))


def test_resume_in_bf16_restores_the_masters(make_stage, rows, tmp_path):
    stage = make_stage(tokens=24 * 8 * 4, checkpoint_every=2)
    _, weights = run(stage, rows, tmp_path / "a", torch.bfloat16)
    _, again = run(stage, rows, tmp_path / "a", torch.bfloat16)  # from the checkpoint at the last step
    assert all(torch.equal(weights[name], value) for name, value in again.items())


def test_checkpoint_of_other_settings_is_refused(make_stage, rows, tmp_path):
    stage = make_stage(checkpoint_every=2)
    run(stage, rows, tmp_path)
    with pytest.raises(UserError, match="other settings, data or weights"):
        run(stage, rows, tmp_path, fingerprint="y")


def test_small_updates_reach_a_norm_weight_in_bf16(make_stage):
    """bf16 cannot hold 1 + 1e-5; the float32 master can."""
    student = make_student("qwen3")
    with torch.no_grad():
        student.model.norm.weight.fill_(1.0)
    stage = make_stage(train=["norm"], learning_rate=1e-5)
    set_trainable(student, stage.train)
    optimizer = MasterOptimizer(student, stage, torch.bfloat16)
    assert student.model.norm.weight.dtype == torch.bfloat16
    for _ in range(100):
        student.model.norm.weight.grad = torch.ones_like(student.model.norm.weight)
        optimizer.collect_gradients()
        optimizer.step(1.0)
    moved = optimizer.weights()["model.norm.weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 100 * 1e-5), atol=1e-4, rtol=0)
    assert (moved < 1.0).all()


def test_a_diverged_loss_stops_the_run(make_stage, rows, tmp_path):
    stage = make_stage(learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(UserError, match="Lower the learning rate"):
        run(stage, rows, tmp_path)


def test_schedules():
    wsd = [learning_rate_share(Schedule(), step, 100) for step in range(100)]
    assert wsd[0] == pytest.approx(0.1) and wsd[9] == 1.0 and wsd[50] == 1.0 and wsd[89] == 1.0
    assert wsd[90] < 1.0 and wsd[99] == pytest.approx(0.02)
    cosine = [learning_rate_share(Schedule(shape="cosine", warmup=0.1, final=0.01), step, 100) for step in range(100)]
    assert cosine[9] == 1.0 and cosine[99] == pytest.approx(0.01)
    assert cosine[54] == pytest.approx(0.505, abs=1e-3)
    assert all(a >= b for a, b in zip(cosine[9:], cosine[10:], strict=False))
    assert math.isclose(learning_rate_share(Schedule(warmup=0.0, decay=0.0), 0, 1), 1.0)
