"""Initialisation read off the teacher are what they claim to be, and touch only tensors the teacher does not have."""

import math

import pytest
import torch

from gendistill.models.calibration import _gate_bias, calibrate, centre_keys, match_heads, mean_attention_distance
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.hooks import side_by_side
from gendistill.names import INITIALISATIONS
from small_models import MIXERS, make_teacher, tokens

LENGTHS = [25, 1, 34]


def batches():
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).repeat(2, 1)
    return [{"input_ids": tokens(2, sum(LENGTHS), seed), "position_ids": positions} for seed in (0, 1)]


@torch.no_grad()
def test_attention_distance_is_that_of_each_document(family):
    """Against weights computed document by document, apart; the softmax implementation is put back."""
    teacher = make_teacher(family)
    before = teacher.config._attn_implementation
    measured = mean_attention_distance(teacher, batches(), [0, 3])
    assert teacher.config._attn_implementation == before
    teacher.set_attn_implementation("eager")
    sums, seen = {0: 0.0, 3: 0.0}, 0
    for batch in batches():
        for row in batch["input_ids"]:
            for document in row.split(LENGTHS):
                attentions = teacher(document[None], output_attentions=True).attentions
                index = torch.arange(len(document))
                for layer in sums:
                    sums[layer] += (attentions[layer][0] * (index[:, None] - index)).sum((1, 2)).double()
                seen += len(document)
    for layer, total in sums.items():
        torch.testing.assert_close(measured[layer], total / seen, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, dict(gate_activation="sigmoid"), dict(output_norm=False)])
def test_matched_heads_are_the_least_squares_ones(options):
    teacher = make_teacher("qwen3")
    student, _ = convert(teacher, student_config(teacher.config, [1], **options), seed=0)
    calibrate(teacher, student, batches(), "standard")
    match_heads(teacher, student, batches())
    for i in student.config.layers_of_type("linear_attention"):
        pairs = list(side_by_side(teacher, student, batches(), [i]))
        mixed = torch.cat([pair.mixer_heads for pair in pairs]).unflatten(-1, (4, -1))
        target = torch.cat([pair.teacher.attention_heads for pair in pairs]).unflatten(-1, (4, -1))
        factors = (mixed * target).sum((0, 1, 3)) / mixed.square().sum((0, 1, 3))
        smallest = student.model.layers[i].linear_attn.g_b_proj.bias.unflatten(0, (4, -1))[:, 0]
        away = smallest <= _gate_bias(torch.tensor(0.02), student.config.gate_activation) + 1e-4
        torch.testing.assert_close(factors[~away], torch.ones_like(factors[~away]), rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("expand_kv", [False, True])
def test_centred_keys_are_without_what_they_have_in_common(expand_kv):
    """As softmax attention without positions, the recurrence is the same whatever is added to all keys."""
    read = []
    for std in (0.0, 3.0):
        teacher = make_teacher("qwen2")
        for layer in teacher.model.layers:
            layer.self_attn.k_proj.bias.normal_(std=std, generator=torch.Generator().manual_seed(0))
        config = student_config(teacher.config, [1], expand_kv=expand_kv)
        student, _ = convert(teacher, config, seed=0)
        before = next(side_by_side(teacher, student, batches(), [0])).mixer_heads
        centre_keys(teacher, student, batches())
        pairs = list(side_by_side(teacher, student, batches(), config.linear_layers))
        for i in config.linear_layers:
            mixer = student.model.layers[i].linear_attn
            inputs = torch.cat([pair.teacher.attention_input for pair in pairs if pair.layer == i])
            keys = mixer.k_proj(inputs) + mixer.k_conv1d.bias
            assert keys.mean((0, 1)).abs().max() < 1e-4
        # The first layer's input is the same whatever its keys are.
        read.append((before, next(pair.mixer_heads for pair in pairs if pair.layer == 0)))
    (plain, centred), (biased, centred_too) = read
    assert not torch.allclose(plain, biased, atol=0.1)
    torch.testing.assert_close(centred_too, centred, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("activation", "function"), [("silu", torch.nn.functional.silu), ("sigmoid", torch.sigmoid)])
def test_a_gate_can_start_at_any_size(activation, function):
    gate = torch.tensor([0.02, 0.3, 0.9]) if activation == "sigmoid" else torch.tensor([0.02, 0.3, 1.0, 40.0])
    torch.testing.assert_close(function(_gate_bias(gate, activation)), gate)


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_calibration_touches_new_tensors_only(mixer, initialisation):
    teacher = make_teacher("qwen2")
    student, accounting = convert(teacher, student_config(teacher.config, [1], mixer=mixer), seed=0)
    before = {name: x.clone() for name, x in student.state_dict().items()}
    calibrate(teacher, student, batches(), initialisation)
    changed = {name for name, x in student.state_dict().items() if not torch.equal(x, before[name])}
    assert changed and changed <= set(accounting.new)
    if initialisation == "teacher" and mixer != "lightning":
        layer = student.model.layers[0].linear_attn
        half_life = math.log(2) / torch.nn.functional.softplus(layer.dt_bias).unflatten(0, (4, -1)).mean(1)
        expected = mean_attention_distance(teacher, batches(), [0])[0].clamp(min=1.0)
        torch.testing.assert_close(half_life.double(), expected, rtol=1e-3, atol=1e-3)
