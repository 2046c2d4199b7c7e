"""One row adds a mixer inside the grid; a name that is no row is refused wherever it comes from."""

import pytest
import torch

from gendistill.compute import Compute
from gendistill.doctor.checks import all_checks
from gendistill.doctor.machine import examine
from gendistill.doctor.recurrence import Sizes
from gendistill.errors import UserError
from gendistill.models import GendistillConfig
from gendistill.models.calibration import calibrate
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.names import MIXERS, LinearMixer
from gendistill.ops import set_backend
from gendistill.plan.price import Planner
from gendistill.recipe.loading import load_recipe
from gendistill.recipe.stage import Stage
from gendistill.recipe.student import Student
from small_models import CLOSE, FAMILIES, make_student, make_teacher, pad_left, tokens

STAGE = Stage(
    objective="forward_kl",
    train=["mixer"],
    data="text",
    tokens=1000,
    sequence_length=64,
    sequences_per_step=2,
    micro_batch=1,
    learning_rate=1e-3,
)


@pytest.fixture
def delta_fixed(monkeypatch):
    """The delta rule with lightning attention's fixed decays: nobody's mixer, and a place in the grid."""
    monkeypatch.setitem(MIXERS, "delta_fixed", LinearMixer("Delta rule, fixed decay", delta_rule=True, decay="fixed"))


@pytest.fixture
def backend():
    yield set_backend
    set_backend("auto")


@torch.no_grad()
@pytest.mark.usefixtures("delta_fixed")
@pytest.mark.parametrize("keep", [(1,), ()])
def test_a_row_is_a_mixer(keep, backend):
    """Chunked as token by token, cached as uncached, padded as not."""
    student = make_student("qwen2", keep=keep, mixer="delta_fixed").double()
    assert not hasattr(student.model.layers[0].linear_attn, "A_log")
    ids = tokens(2, 70)
    expected = student(ids, use_cache=False).logits
    backend("reference")
    torch.testing.assert_close(student(ids, use_cache=False).logits, expected, **CLOSE)
    backend("auto")
    cache, logits = None, []
    for piece in ids.split([60, *[1] * 10], dim=1):
        out = student(piece, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, [*logits, out.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
    padded, mask, positions = pad_left(ids, 7)
    got = student(padded, attention_mask=mask, position_ids=positions).logits[:, 7:]
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.usefixtures("delta_fixed")
def test_a_row_is_known_to_recipe_calibration_plan_and_doctor():
    assert Student(keep_attention=[1], mixer="delta_fixed").mixer == "delta_fixed"
    teacher = make_teacher("qwen3")
    config = student_config(teacher.config, [1], mixer="delta_fixed")
    student, accounting = convert(teacher, config, seed=0)
    batch = {"input_ids": tokens(2, 20), "position_ids": torch.arange(20).expand(2, -1)}
    calibrate(teacher, student, [batch], "teacher")
    assert any(name.endswith("b_proj.weight") for name in accounting.new)

    on_cpu = Compute("cpu", torch.float32, compiled=False, kernels=False)
    plain = student_config(FAMILIES["qwen3"], [1], mixer="lightning")
    prices = [Planner(FAMILIES["qwen3"], c, on_cpu).price(STAGE) for c in (plain, config)]
    assert prices[1].flops_per_token > prices[0].flops_per_token  # the delta rule reads before it writes

    checks = all_checks(examine("cpu"), Sizes(length=20), head_sizes=(16,))
    mine = [check for check in checks if check.row == "delta_fixed 16"]
    assert [check.column for check in mine] == ["usual gates", "packed", "steps"]
    mine += [check for check in checks if check.column == "logits"]  # of a student that has one layer of each mixer
    assert all(check.run().passed for check in mine)


def test_unknown_mixers_are_refused_with_those_there_are():
    known = "known: kda, gated_deltanet, gla, mamba2, lightning"
    with pytest.raises(UserError, match=f"unknown mixer 'retnet'; {known}"):
        student_config(FAMILIES["qwen3"], [1], mixer="retnet")
    with pytest.raises(UserError, match=f"unknown mixer 'retnet'; {known}"):
        GendistillConfig(num_hidden_layers=1, layer_types=["linear_attention"], mixers=["retnet"])
    with pytest.raises(UserError, match="student.mixer: unknown mixer 'kdaa'; did you mean 'kda'?"):
        load_recipe("recipes/demo.yaml", ["student.mixer=kdaa"])
    with pytest.raises(UserError, match="unknown initialisation 'zeros'"):
        load_recipe("recipes/demo.yaml", ["conversion.initialisation=zeros"])
    with pytest.raises(UserError, match="unknown initialisation 'zeros'; known: standard, centred, teacher"):
        calibrate(None, None, [], "zeros")


@pytest.mark.parametrize(
    ("layer_types", "mixers", "message"),
    [
        (["sliding_attention"], [None], "unknown layer type 'sliding_attention'; known: full_attention, linear"),
        (["linear_attention"], [None], "layer 0 is of type linear_attention, and its mixer is None"),
        (["full_attention"], ["kda"], "layer 0 is of type full_attention, and its mixer is kda"),
    ],
)
def test_layer_types_and_mixers_belong_together(layer_types, mixers, message):
    with pytest.raises(ValueError, match=message):
        GendistillConfig(num_hidden_layers=1, layer_types=layer_types, mixers=mixers)
