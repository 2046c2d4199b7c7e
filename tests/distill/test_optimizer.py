"""Float32 masters, a learning rate per role, and what the optimizer reports of its own step."""

import math
import sys

import pytest
import torch

from gendistill.distill.optimizer import BETAS, MasterOptimizer
from gendistill.distill.roles import set_trainable
from gendistill.errors import UserError
from gendistill.models.modeling import describe
from small_models import make_student

EVERYTHING = ["mixer", "attention", "mlp", "norm", "embedding"]


@pytest.fixture
def prepared(make_stage):
    """A student, and its optimizer with a random gradient in every master."""

    def make(dtype=torch.float32, gradient=1e-3, **settings):
        stage = make_stage(**({"train": EVERYTHING} | settings))
        student = make_student("qwen3").train()
        set_trainable(student, stage.train)
        optimizer = MasterOptimizer(student, stage, dtype)
        torch.manual_seed(3)
        for master in optimizer.masters.values():
            master.grad.copy_(torch.randn_like(master).sign() * gradient)
        return student, optimizer

    return make


def copies(optimizer):
    return {name: master.detach().clone() for name, master in optimizer.masters.items()}


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_each_role_moves_at_its_own_rate(prepared, kind):
    """AdamW's first step without decay moves every weight by the learning rate, whatever the gradient's size."""
    rates = {"mixer": 1e-3, "mixer_gate": 3e-3, "attention": 2e-4, "mlp": 5e-5, "norm": 7e-4, "embedding": 1e-4}
    if kind == "adamw_8bit":
        pytest.importorskip("torchao")
    _, optimizer = prepared(learning_rate=rates, weight_decay=0.0, optimizer=kind)
    before = copies(optimizer)
    with torch.compiler.set_stance("force_eager"):  # torchao would compile its step
        optimizer.step(0.5)
    moved: dict[str, list] = {}
    for name, master in optimizer.masters.items():
        moved.setdefault(describe(name).role, []).append((master - before[name]).abs().flatten())
    assert moved.keys() == {*rates, "mixer_qk", "mixer_value", "mixer_conv"} - {"mixer"}
    for role, steps in moved.items():
        rate = 0.5 * rates.get(role, rates["mixer"])
        # What the rounding of a weight leaves of so small a step.
        torch.testing.assert_close(torch.cat(steps), torch.full_like(torch.cat(steps), rate), rtol=0.01, atol=1e-6)
    assert max(optimizer.peaks) == 3e-3


def test_only_matrices_decay(prepared):
    _, optimizer = prepared(learning_rate=1e-2, weight_decay=0.5, gradient=0.0)
    before = copies(optimizer)
    optimizer.step(1.0)
    for name, master in optimizer.masters.items():
        kept = 1.0 if master.ndim == 1 or name.endswith(("A_log", "dt_bias")) else 1 - 1e-2 * 0.5
        torch.testing.assert_close(master.detach(), before[name] * kept, msg=name)


def test_gradients_are_clipped_by_their_norm_over_all_masters(prepared):
    """Seen in AdamW's first moment, since its step forgets the gradient's size."""
    _, optimizer = prepared(gradient_clip=0.25, gradient=1e-2)
    norm = math.sqrt(sum(master.numel() for master in optimizer.masters.values())) * 1e-2
    assert norm > 0.25
    assert optimizer.step(1.0)[0].item() == pytest.approx(norm, rel=1e-5)
    moments = [optimizer.adamw.state[master]["exp_avg"].norm() / (1 - BETAS[0]) for master in optimizer.whole]
    assert torch.stack(moments).norm().item() == pytest.approx(0.25, rel=1e-4)
    assert not any(master.grad.any() for master in optimizer.masters.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_ratios_are_those_of_each_roles_weights(prepared, dtype):
    _, optimizer = prepared(dtype, learning_rate={"mixer": 1e-3, "mlp": 1e-4}, train=["mixer", "mlp"])
    before = copies(optimizer)
    ratios = optimizer.step(1.0)[1:].tolist()
    assert optimizer.roles == ["mixer_conv", "mixer_gate", "mixer_qk", "mixer_value", "mlp"]
    for role, ratio in zip(optimizer.roles, ratios, strict=True):
        names = [name for name in before if describe(name).role == role]
        change = torch.cat([(optimizer.masters[name] - before[name]).flatten() for name in names]).double()
        weights = torch.cat([before[name].flatten() for name in names]).double()
        assert ratio == pytest.approx((change.norm() / weights.norm()).item(), rel=1e-4)
    assert len({round(ratio, 9) for ratio in ratios}) == 5


def test_the_model_is_its_masters_rounded(prepared):
    student, optimizer = prepared(torch.bfloat16, train=["mixer", "norm"])
    optimizer.step(1.0)
    for name, parameter in student.named_parameters():
        in_float32 = name.endswith(("A_log", "dt_bias"))
        assert parameter.dtype == (torch.float32 if in_float32 else torch.bfloat16), name
        if name in optimizer.masters:
            assert optimizer.masters[name].dtype == torch.float32
            assert torch.equal(parameter, optimizer.masters[name].to(parameter.dtype)), name
    assert any((optimizer.masters[name] != parameter).any() for name, parameter in optimizer.parameters.items())


def test_gradients_of_micro_batches_add_up_in_float32(prepared):
    """In bf16 a sum of 1 and many small ones stays 1."""
    student, optimizer = prepared(torch.bfloat16, train=["norm"], gradient=0.0)
    weight = student.model.norm.weight
    for gradient in [1.0] + [1e-3] * 10:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.collect_gradients()
        assert weight.grad is None
    summed = optimizer.masters["model.norm.weight"].grad
    torch.testing.assert_close(summed, torch.full_like(summed, 1.01), rtol=1e-4, atol=0)


def test_a_stage_must_have_something_to_train(make_stage):
    student = make_student("qwen3").requires_grad_(False)
    with pytest.raises(UserError, match="nothing trains in this stage; name at least one role"):
        MasterOptimizer(student, make_stage(), torch.float32)


def test_small_state_needs_its_library(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r'adamw_8bit needs torchao, .*: pip install "gendistill\[lowmem\]"'):
        prepared(optimizer="adamw_8bit")
