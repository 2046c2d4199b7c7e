"""The layer that the five mixers share: what sets them apart, its options, its half-lives."""

import pytest
import torch

from gendistill.models.cache import new_cache
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from small_models import CLOSE, MIXERS, make_student, make_teacher, pad_left, tokens

OPTIONS = [
    dict(gate_activation="sigmoid"),
    dict(output_norm=False),
    dict(conv_activation="silu"),
    dict(log_decay_bound=-5.0),
    dict(log_decay_bound=-2.0),
    dict(expand_kv=True),
    dict(gate_activation="sigmoid", output_norm=False, conv_activation="silu", log_decay_bound=-5.0, expand_kv=True),
]


def layer(mixer, family="qwen3", **options):
    """The first layer's mixer, with its initialisation."""
    teacher = make_teacher(family)
    return convert(teacher, student_config(teacher.config, [], mixer=mixer, **options), seed=0)[0].model.layers[0]


def test_mixers_differ_only_by_what_their_state_update_needs():
    """48 wide, 4 heads of 16 channels."""
    shapes = {mixer: {n: tuple(p.shape) for n, p in layer(mixer).linear_attn.named_parameters()} for mixer in MIXERS}
    channel = {"f_a_proj.weight": (16, 48), "f_b_proj.weight": (64, 16), "A_log": (4,), "dt_bias": (64,)}
    head = {"a_proj.weight": (4, 48), "A_log": (4,), "dt_bias": (4,)}
    delta_rule = {"b_proj.weight": (4, 48)}
    shared = shapes["lightning"]
    assert shapes["kda"] == shared | channel | delta_rule
    assert shapes["gated_deltanet"] == shared | head | delta_rule
    assert shapes["gla"] == shared | channel
    assert shapes["mamba2"] == shared | head
    assert not set(shared) & (set(channel) | set(head) | set(delta_rule))


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize(("mixer", "keep"), [("kda", (1,)), ("gated_deltanet", ()), ("gla", ()), ("mamba2", (1,))])
def test_options_keep_the_invariants(options, mixer, keep):
    student = make_student("qwen2", keep=keep, mixer=mixer, **options).double()
    ids = tokens(2, 40)
    expected = student(ids, use_cache=False).logits
    plain = make_student("qwen2", keep=keep, mixer=mixer).double()
    assert options == dict(expand_kv=True) or not torch.allclose(expected, plain(ids).logits, atol=1e-2)
    padded, mask, positions = pad_left(ids, 7)
    got = student(padded, attention_mask=mask, position_ids=positions).logits[:, 7:]
    torch.testing.assert_close(got, expected, **CLOSE)
    out = student(ids[:, :35], use_cache=True)
    for i in range(35, 40):
        step = student(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
        torch.testing.assert_close(step.logits[:, 0], expected[:, i], **CLOSE)
    positions = torch.cat([torch.arange(11), torch.arange(29)]).expand(2, -1)
    alone = student(ids[:, 11:], use_cache=False).logits
    torch.testing.assert_close(student(ids, position_ids=positions).logits[:, 11:], alone, **CLOSE)


@pytest.mark.parametrize(
    "option, allowed", [("gate_activation", "sigmoid"), ("conv_activation", "none"), ("window_share", "token")]
)
def test_an_unknown_choice_is_refused_with_those_there_are(option, allowed):
    with pytest.raises(Exception, match=f"{option}(.|\n)*{allowed}(.|\n)*gelu"):
        make_student("qwen3", keep=(), **{option: "gelu"})


@torch.no_grad()
@pytest.mark.parametrize("bound", [-5.0, -2.0])
@pytest.mark.parametrize("mixer", ["kda", "gated_deltanet", "gla", "mamba2"])
def test_no_decay_is_below_the_bound(mixer, bound):
    student = make_student("qwen3", keep=(), mixer=mixer, log_decay_bound=bound)
    wild = 1e3 * torch.randn(4, 50, 48, generator=torch.Generator().manual_seed(0))
    log_decay = student.model.layers[0].linear_attn._gates(wild)[0].log_decay()
    assert log_decay.min() >= bound
    assert log_decay.min() < 0.99 * bound and log_decay.max() > 0.01 * bound  # the whole range is used
    assert log_decay.max() <= 0


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_expanded_keys_and_values_start_as_the_grouped_ones(family, mixer):
    """What is drawn has the same shapes either way, so one seed gives the same initialisation."""
    teacher = make_teacher(family)
    configs = [student_config(teacher.config, [1], mixer=mixer, expand_kv=expand) for expand in (False, True)]
    (grouped, _), (expanded, accounting) = (convert(teacher, config, seed=0) for config in configs)
    assert len(accounting.repeated) == (6 if family == "qwen3" else 12)  # keys and values of three layers, with biases
    torch.testing.assert_close(expanded(tokens(2, 70)).logits, grouped(tokens(2, 70)).logits, rtol=1e-5, atol=1e-5)
    extra = sum(p.numel() for p in expanded.parameters()) - sum(p.numel() for p in grouped.parameters())
    per_channel = 48 + 4 + 1 + (family == "qwen2")  # projection, convolution with its bias, bias
    assert extra == 3 * 2 * 2 * grouped.config.head_dim * per_channel  # layers, keys and values, heads


@torch.no_grad()
@pytest.mark.parametrize("bound", [None, -5.0, -2.0])
@pytest.mark.parametrize("mixer", ["kda", "gated_deltanet", "gla", "mamba2"])
def test_half_lives_are_what_was_asked_for(mixer, bound):
    mixing = layer(mixer, log_decay_bound=bound).linear_attn
    half_lives = torch.tensor([1.0, 4.0, 30.0, 500.0])
    mixing.set_half_lives(half_lives)
    cache = new_cache(mixing.config)
    mixing(torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(0)), past_key_values=cache)
    start = cache.layers[0].recurrent_states[0].clone()
    mixing(torch.zeros(1, 12, 48), past_key_values=cache)  # tokens that say nothing and write nothing
    expected = start * (0.5 ** (12 / half_lives))[:, None, None]
    assert start.abs().amax((0, 2, 3)).min() > 1e-3
    torch.testing.assert_close(cache.layers[0].recurrent_states[0], expected, rtol=1e-3, atol=1e-7)


def test_half_lives_leave_fixed_decays_alone():
    mixing = layer("lightning").linear_attn
    before = mixing._gates(torch.zeros(1, 1, 48))[0]
    mixing.set_half_lives(torch.tensor([1.0, 4.0, 30.0, 500.0]))
    assert torch.equal(mixing._gates(torch.zeros(1, 1, 48))[0], before)
    assert (before[0, 0] == -torch.tensor([2**-2, 2**-4, 2**-6, 2**-8])).all()
