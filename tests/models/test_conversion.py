"""Conversion accounts for every tensor and fails loudly; its conversion report says what the untrained student is."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, Qwen2Config

from gendistill.errors import UserError
from gendistill.models.calibration import match_scale
from gendistill.models.conversion import (
    ConversionReport,
    LayerReport,
    ParameterAccounting,
    check_conversions,
    convert,
    mean_loss,
    measure_conversion,
    weights_sha256,
)
from gendistill.models.families import student_config
from small_models import FAMILIES, make_teacher


def batch(rows=3, length=60, seed=0):
    ids = torch.randint(2, 97, (rows, length), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(25), torch.arange(length - 25)]).repeat(rows, 1)
    mask = (positions > 0).long()
    return {"input_ids": ids, "position_ids": positions, "loss_mask": mask}


def test_every_tensor_is_accounted_for(family):
    teacher = make_teacher(family)
    student, accounting = convert(teacher, student_config(teacher.config, [1, 3]), seed=0)
    names = {name for name, _ in student.named_parameters()}
    assert names == set(accounting.copied) | set(accounting.new)
    assert not set(accounting.copied) & set(accounting.new)
    taken = {name.replace("linear_attn", "self_attn") for name in accounting.copied}
    assert taken | set(accounting.dropped) == {name for name, _ in teacher.named_parameters()}
    assert bool(accounting.dropped) == (family == "qwen3")
    weights, original = dict(student.named_parameters()), dict(teacher.named_parameters())
    for name in accounting.copied:
        assert torch.equal(weights[name], original[name.replace("linear_attn", "self_attn")]), name


def test_initialisation_follows_the_seed():
    teacher = make_teacher("qwen3")
    config = student_config(teacher.config, [1])
    first, second, other = (convert(teacher, config, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["model.layers.0.linear_attn.A_log"], other["model.layers.0.linear_attn.A_log"])


@torch.no_grad()
def test_new_parts_start_as_the_identity():
    teacher = make_teacher("qwen3")
    student, _ = convert(teacher, student_config(teacher.config, [1]), seed=0)
    mixer = student.model.layers[0].linear_attn
    x = torch.randn(2, 9, mixer.queries + 2 * mixer.keys)
    given = x.unflatten(-1, (-1, mixer.head_dim)).split([4, 2, 2], dim=2)
    q, k, v = mixer._convolve(x, None, None, None)
    torch.testing.assert_close(q, F.normalize(given[0], dim=-1))
    torch.testing.assert_close(k, F.normalize(given[1], dim=-1).repeat_interleave(2, dim=2))
    torch.testing.assert_close(v, given[2].repeat_interleave(2, dim=2))
    gate = F.silu(mixer._gates(torch.randn(2, 9, 48))[2] + mixer.g_b_proj.bias)
    torch.testing.assert_close(gate, torch.ones_like(gate), atol=1e-3, rtol=0)
    half_life = math.log(2) / -mixer._gates(torch.zeros(1, 1, 48))[0].log_decay()
    assert half_life.min() > 0.3 and half_life.max() < 1000


def test_lost_tensor_is_an_error():
    teacher = make_teacher("qwen2")
    teacher.model.layers[0].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(UserError, match="no place for the teacher's model.layers.0.self_attn.sinks"):
        convert(teacher, student_config(teacher.config, [1]), seed=0)


def test_missing_tensor_is_an_error():
    teacher = make_teacher("qwen3")
    config = student_config(teacher.config, [1])
    config.attention_bias = True
    with pytest.raises(UserError, match="bias has no counterpart"):
        convert(teacher, config, seed=0)


def test_shape_mismatch_is_an_error():
    teacher = make_teacher("qwen3")
    config = student_config(teacher.config, [1])
    config.num_key_value_heads = 4
    with pytest.raises(UserError, match=r"k_proj.weight is \(64, 48\) in the student, \(32, 48\)"):
        convert(teacher, config, seed=0)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([4], "layer.*4.*counted 0 to 3"),
        ([-1], "counted 0 to 3"),
        ([1, 1], "more than once"),
        ([0, 0], "more than once"),
    ],
)
def test_wrong_layers_are_errors(keep, message):
    with pytest.raises(UserError, match=message):
        student_config(FAMILIES["qwen3"], keep)


def test_unsupported_teachers_are_errors():
    with pytest.raises(UserError, match="model type 'gpt2': supported are qwen3, qwen2, llama, mistral"):
        student_config(GPT2Config(), [0])
    sliding = Qwen2Config(num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    with pytest.raises(UserError, match="sliding-window"):
        student_config(sliding, [0])


def test_conversion_report_measures_losses_and_cosines():
    teacher = make_teacher("qwen3")
    student, accounting = convert(teacher, student_config(teacher.config, [1]), seed=0)
    data = [batch(seed=0), batch(seed=1)]
    conversion_report = measure_conversion(
        teacher,
        student,
        accounting,
        data,
        name="test",
        seed=0,
        teacher_loss=mean_loss(teacher, data).mean,
    )
    assert conversion_report.tokens == 2 * 3 * (60 - 2)
    assert conversion_report.uniform_loss == math.log(97)
    assert [report.layer for report in conversion_report.layers] == [0, 2, 3]
    expected = 0.0
    with torch.no_grad():
        for piece in data:
            logits = teacher(piece["input_ids"], position_ids=piece["position_ids"], use_cache=False).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), piece["input_ids"][:, 1:].flatten(), reduction="none"
            )
            expected += (losses * piece["loss_mask"][:, 1:].flatten()).sum().item()
    assert conversion_report.teacher_loss == pytest.approx(expected / conversion_report.tokens, rel=1e-5)


@torch.no_grad()
def test_mean_squares_are_mean_squares_of_what_the_teachers_layers_say():
    """The last layer's hidden state is the one before the final norm, as in every other layer."""
    teacher = make_teacher("qwen3")
    student, accounting = convert(teacher, student_config(teacher.config, [1]), seed=0)
    reports = measure_conversion(teacher, student, accounting, [batch()], name="t", seed=0, teacher_loss=0.0).layers
    seen = {}
    for i, layer in enumerate(teacher.model.layers):
        layer.register_forward_hook(lambda _, args, out, i=i: seen.update({i: (args[0], out)}))
        layer.self_attn.register_forward_hook(lambda _, __, out, i=i: seen.update({f"attention {i}": out[0]}))
    teacher(batch()["input_ids"], position_ids=batch()["position_ids"], use_cache=False)
    for report in reports:
        before, after = seen[report.layer]
        powers = [x.square().mean().item() for x in (seen[f"attention {report.layer}"], after - before, after)]
        assert [report.attention_mean_square, report.update_mean_square, report.hidden_mean_square] == pytest.approx(
            powers, rel=1e-4
        )


@pytest.mark.parametrize("output_norm", [True, False])
def test_matched_scale_is_the_least_squares_one(output_norm):
    teacher = make_teacher("qwen3")
    student, accounting = convert(teacher, student_config(teacher.config, [1], output_norm=output_norm), seed=0)
    data = [batch(seed=0), batch(seed=1)]
    factors = match_scale(teacher, student, data)
    again = match_scale(teacher, student, data)  # already matched: nothing left to scale
    for layer, factor in factors.items():
        assert again[layer] == pytest.approx(1.0, abs=1e-3) or factor <= 0


def report(loss, cosine=0.4, error=0.01, layer=5):
    """What a conversion of two layers came to; a uniform guess has a loss of 3."""
    return ConversionReport(
        teacher="t",
        seed=0,
        tokens=8192,
        teacher_loss=1.0,
        student_loss=loss,
        student_loss_error=error,
        uniform_loss=3.0,
        layers=[LayerReport(0, 0.4, 1.0, 1.0, 1.0), LayerReport(layer, cosine, 1.0, 1.0, 1.0)],
        parameters=1,
        parameter_accounting=ParameterAccounting([], [], [], []),
    )


def test_a_student_that_is_none_says_why():
    assert report(2.0).problem() is None
    assert report(3.1, error=0.05).problem() is None  # on so few tokens it may as well be below
    assert re.search(r"layer\(s\) 5 \(cosine -0.100\)", report(2.0, cosine=-0.1).problem())
    assert "cosine nan" in report(2.0, cosine=math.nan).problem()
    assert "loss 3.100 on 8,192 tokens is not below a uniform guess's, 3.000" in report(3.1).problem()
    assert report(3.1).problem(max_loss=4.0) is None
    assert "is not below conversion.max_loss, 3.050" in report(3.1).problem(max_loss=3.05)
    assert "loss nan" in report(math.nan).problem()


def test_a_conversion_is_refused_only_if_every_initialisation_fails():
    assert check_conversions({"teacher": report(9.0), "standard": report(2.0)}, "standard") is None
    warning = check_conversions({"teacher": report(2.5), "standard": report(3.5)}, "standard")
    assert warning.startswith("with initialisation 'standard' the untrained student's loss 3.500 on ")
    assert warning.endswith("with 'teacher' the loss is 2.500. Set conversion.initialisation: teacher")
    for worse in (report(4.0), report(math.nan)):
        with pytest.raises(UserError) as caught:
            check_conversions({"standard": worse, "teacher": report(3.2)}, "standard")
        message = str(caught.value)
        assert "(standard, teacher). The best is conversion.initialisation: teacher, with a loss of 3.200; " in message
        assert "student.keep_attention" in message
    with pytest.raises(UserError, match=r"\(standard\)\. The best is conversion.initialisation: standard, with"):
        check_conversions({"standard": report(4.0)}, "standard")


def test_the_error_of_a_mean_loss_is_what_other_tokens_show():
    """Of many disjoint texts, means vary as the error of each of them says."""
    teacher = make_teacher("qwen3")
    losses = [mean_loss(teacher, [batch(seed=seed)]) for seed in range(12)]
    spread = np.std([loss.mean for loss in losses], ddof=1)
    assert np.mean([loss.error for loss in losses]) == pytest.approx(spread, rel=0.6)


def test_weights_hash_sees_a_changed_weight(tmp_path):
    teacher = make_teacher("qwen3")
    student, _ = convert(teacher, student_config(teacher.config, [1]), seed=0)
    student.save_pretrained(tmp_path)
    before = weights_sha256(tmp_path)
    with torch.no_grad():
        student.model.norm.weight[0] += 1e-3
    student.save_pretrained(tmp_path)
    assert weights_sha256(tmp_path) != before
