"""A student whose other layers hold a window is its teacher with masks; a window beside a recurrence starts as that."""

import copy
import itertools
import json

import pytest
import torch

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.loading import load_model
from small_models import FAMILIES, make_student, make_teacher, pad_left, tokens

KEEP, WINDOW, SINKS = [1], 6, 3
every_share = pytest.mark.parametrize("share", ["head", "token"])


def masked_teacher(teacher, ids: torch.Tensor, window: int = WINDOW, sinks: int = SINKS) -> torch.Tensor:
    """Logits of the teacher, layer by layer, with a plain [T, T] mask in all layers but the kept ones."""
    model, length = teacher.model, ids.shape[1]
    index = torch.arange(length)
    age = index[:, None] - index
    full = (age >= 0)[None, None]
    near = full & ((age < window) | (index < sinks))
    hidden = model.embed_tokens(ids)
    position_embeddings = model.rotary_emb(hidden, index[None])
    for i, layer in enumerate(model.layers):
        mask = full if i in KEEP else near
        hidden = layer(hidden, attention_mask=mask, position_embeddings=position_embeddings)
    return teacher.lm_head(model.norm(hidden))


def window_student(teacher, **options):
    options = dict(mixer="window", window=WINDOW, sinks=SINKS) | options
    return convert(teacher, student_config(teacher.config, KEEP, **options), seed=0)[0]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_is_the_teacher_with_masks(family):
    teacher = make_teacher(family)
    ids = tokens(2, 50)
    expected = masked_teacher(teacher, ids)
    assert (expected - teacher(ids).logits).abs().max() > 1e-2  # the window hides something
    torch.testing.assert_close(window_student(teacher)(ids).logits, expected, rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_teacher_with_masks():
    teacher = make_teacher("qwen3").double()
    student = window_student(teacher)
    ids = tokens(2, 40)
    weights = torch.randn(2, 40, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for logits in (masked_teacher(teacher, ids), student(ids).logits):
        (logits * weights).sum().backward()
    expected = {name: p.grad for name, p in teacher.named_parameters()}
    for name, parameter in student.named_parameters():
        wanted = expected[name.replace("linear_attn", "self_attn")]
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-6, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("beside", ["window", "kda"])
def test_1500_cached_tokens_are_one_uncached_pass(beside):
    """Three times a window of 500 tokens, one by one behind a prompt of unequal length."""
    sizes = dict(num_hidden_layers=2, max_position_embeddings=2048)  # one layer with a window, one that keeps attention
    student = make_student("qwen3", keep=KEEP, sizes=sizes, mixer=beside, window=500, sinks=4)
    ids = tokens(1, 1540)
    expected = student(ids, use_cache=False).logits
    padded, mask, positions = pad_left(ids, 7)
    out = student(padded[:, :47], attention_mask=mask[:, :47], position_ids=positions[:, :47], use_cache=True)
    logits = [out.logits[:, 7:]]
    for i in range(47, padded.shape[1]):
        out = student(
            padded[:, i : i + 1],
            attention_mask=mask[:, : i + 1],
            position_ids=positions[:, i : i + 1],
            past_key_values=out.past_key_values,
        )
        logits.append(out.logits)
    # In float32 logits of a size of about 1; rounding differs between one token and many.
    torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=0, atol=2e-3 if beside == "kda" else 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 2, 20])
def test_a_window_as_long_as_the_text_is_full_attention_to_the_last_bit(family, length):
    teacher = make_teacher(family)
    ids = tokens(2, length)
    student = window_student(teacher, window=20)
    assert torch.equal(student(ids, use_cache=False).logits, teacher(ids, use_cache=False).logits)
    assert torch.equal(student(ids, use_cache=True).logits, teacher(ids, use_cache=True).logits)


@torch.no_grad()
@pytest.mark.parametrize("length", [20, 50])
def test_eager_attention_sees_no_later_token(length):
    """It is causal by a mask alone, and a text that fits the window needs none."""
    teacher = make_teacher("qwen3")
    ids, student = tokens(2, length), window_student(teacher, window=20)
    expected = masked_teacher(teacher, ids, window=20)
    student.set_attn_implementation("eager")
    torch.testing.assert_close(student(ids).logits, expected, rtol=0, atol=1e-5)


@every_share
def test_in_bfloat16_an_untrained_recurrence_has_gradients(share):
    """Its share is 0.0003; the window's, 0.9997, would be 1 in bfloat16."""
    student = window_student(make_teacher("qwen3"), mixer="kda", window_share=share).to(torch.bfloat16)
    student(tokens(2, 40)).logits.float().square().sum().backward()
    gradients = {name: p.grad for name, p in student.named_parameters()}
    parts = ["b_proj.weight", "g_b_proj.bias", "v_conv1d.weight", "window_logit"]
    parts += ["share_proj.weight"] * (share == "token")
    for name, part in itertools.product((0, 2, 3), parts):
        assert gradients[f"model.layers.{name}.linear_attn.{part}"].abs().sum() > 0


@torch.no_grad()
def test_beside_a_recurrence_the_untrained_student_is_the_window_alone():
    teacher = make_teacher("qwen3")
    ids = tokens(2, 50)
    alone, beside = window_student(teacher), window_student(teacher, mixer="kda")
    error = (beside(ids).logits - alone(ids).logits).norm() / alone(ids).logits.norm()
    assert 0 < error < 2e-3  # of bfloat16's rounding


@torch.no_grad()
def test_an_untrained_share_by_token_is_the_heads_to_the_last_bit():
    teacher = make_teacher("qwen3")
    by_head, by_token = (window_student(teacher, mixer="kda", window_share=share) for share in ("head", "token"))
    ids = tokens(2, 50)
    assert torch.equal(by_token(ids).logits, by_head(ids).logits)
    heads = dict(by_head.named_parameters())
    new = {name: p for name, p in by_token.named_parameters() if name not in heads}
    assert list(new) == [f"model.layers.{i}.linear_attn.share_proj.weight" for i in (0, 2, 3)]
    assert all(p.shape == (4, 48) and not p.any() for p in new.values())


@torch.no_grad()
def test_a_token_adds_a_tenth_of_its_projection_to_the_logit():
    student = make_student("qwen3", keep=KEEP, mixer="kda", window=WINDOW, sinks=SINKS, window_share="token").double()
    layer = student.model.layers[0].linear_attn
    x = torch.randn(1, 30, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    how = dict(position_embeddings=student.model.rotary_emb(x, torch.arange(30)[None]))
    layer.o_proj = torch.nn.Identity()  # [1, 30, 64], as the two are mixed
    recurrent, _ = layer(x, without_window=torch.tensor([True]), **how)
    mixed, _ = layer(x, **how)
    share = (-100 * layer.window_logit + 0.1 * x @ layer.share_proj.weight.T).sigmoid()  # [1, 30, 4]
    assert share.std(dim=1).min() > 0.05
    share[:, : WINDOW + SINKS] = 0
    share = share.repeat_interleave(16, dim=-1)
    layer.window_logit.fill_(1.0)  # of a share of exp(-100) no token's addition makes more than exp(-90)
    window, _ = layer(x, **how)
    torch.testing.assert_close(mixed, share * recurrent + (1 - share) * window, rtol=0, atol=1e-6)


@torch.no_grad()
@every_share
@pytest.mark.parametrize("packed", [False, True])
def test_whatever_a_recurrence_has_learnt_a_text_that_its_window_sees_whole_is_the_teachers(packed, share):
    """To the token at which the window begins to forget, in each document; behind it the recurrence is heard."""
    student = make_student("qwen3", keep=KEEP, mixer="kda", window=WINDOW, sinks=SINKS, window_share=share)
    teacher = make_teacher("qwen3")
    whole, lengths = WINDOW + SINKS, (20, 4, 26)
    ids = tokens(1, sum(lengths))
    texts = ids.split(lengths, dim=1)
    if packed:
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        found = student(ids, position_ids=positions).logits.split(lengths, dim=1)
    else:
        found = [student(text).logits for text in texts]
    for logits, text in zip(found, texts, strict=True):
        expected = teacher(text).logits
        torch.testing.assert_close(logits[:, :whole], expected[:, :whole], rtol=0, atol=1e-5)
        assert text.shape[1] < whole or (logits - expected)[:, whole:].abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_a_trained_student_takes_a_longer_window_from_its_configuration(tmp_path):
    """docs/window.md: `window` in the folder's config.json; what it now sees whole is the teacher's."""
    student = make_student("qwen3", keep=KEEP, mixer="kda", window=WINDOW, sinks=SINKS)
    student.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"window": 40}))
    longer = load_model(str(tmp_path), torch.float32, "cpu")
    ids = tokens(2, 40)
    expected = make_teacher("qwen3")(ids).logits
    torch.testing.assert_close(longer(ids).logits, expected, rtol=0, atol=1e-5)
    assert (student(ids).logits - expected).abs().max() > 1e-3
    how = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert longer.generate(ids[:, :20], **how).equal(make_teacher("qwen3").generate(ids[:, :20], **how))


@torch.no_grad()
@every_share
def test_the_window_can_be_switched_off_for_all_and_dropped_for_some(share):
    student = make_student("qwen3", keep=KEEP, mixer="kda", window=WINDOW, sinks=SINKS, window_share=share)
    ids = tokens(2, 30)
    with_window = student(ids).logits
    drop = torch.tensor([True, False])
    mixed = student(ids, without_window=drop).logits
    student.config.window_is_on = False
    without = student(ids).logits
    torch.testing.assert_close(mixed[0], without[0])
    torch.testing.assert_close(mixed[1], with_window[1])
    assert not torch.allclose(without, with_window, atol=1e-2)
    # The recurrence alone is what it is in a student that has no window.
    bare = make_student("qwen3", keep=KEEP, mixer="kda")
    own = dict(bare.named_parameters())
    for name, parameter in student.named_parameters():
        if name in own:
            own[name].copy_(parameter)
    torch.testing.assert_close(bare(ids).logits, without)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window=0), "window is 0; it must be at least 1"),
        (dict(window=513), "at most the model's 512 positions"),
        (dict(window=4, sinks=5), "sinks are 5; they must be at least 0 and at most the window's 4"),
        (dict(window=4, expand_kv=True), "expand_kv is for linear mixers"),
        (dict(mixer="kda", sinks=2), "there is no window that could see them"),
        (dict(mixer="kda", window_share="token"), "window_share is token, but there is no window"),
    ],
)
def test_windows_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        student_config(FAMILIES["qwen3"], KEEP, **dict(mixer="window") | options)


def test_defaults():
    config = copy.deepcopy(FAMILIES["qwen3"])
    config.max_position_embeddings = 4096
    alone, beside = (student_config(config, KEEP, **how) for how in (dict(mixer="window"), dict(window=64)))
    assert (alone.window, alone.sinks) == (512, 4)
    assert (beside.window, beside.sinks, beside.mixers[0]) == (64, 0, "kda")
    with pytest.raises(UserError, match="needs `window`"):
        GendistillConfig(
            num_hidden_layers=2, layer_types=["full_attention", "linear_attention"], mixers=[None, "window"]
        )
