"""The student as a Hugging Face model: padding, packing, caching and saving change nothing they should not."""

import copy

import pytest
import torch
from figures import student_parameters
from transformers import AutoConfig, AutoModelForCausalLM

from gendistill.models import GendistillConfig, GendistillForCausalLM
from gendistill.models.conversion import convert
from gendistill.models.families import FAMILIES as SUPPORTED
from gendistill.models.families import student_config
from small_models import CLOSE, FAMILIES, MIXERS, VARIANTS, make_student, make_teacher, pad_left, tokens


def in_pieces(student, ids, pieces, mask=None, positions=None):
    """Logits of ids run piece by piece through one cache."""
    cache, logits, start = None, [], 0
    for size in pieces:
        piece = slice(start, start + size)
        inputs = {}
        if mask is not None:
            inputs = {"attention_mask": mask[:, : piece.stop], "position_ids": positions[:, piece]}
        out = student(ids[:, piece], past_key_values=cache, use_cache=True, **inputs)
        logits.append(out.logits)
        cache, start = out.past_key_values, piece.stop
    assert start == ids.shape[1]
    return torch.cat(logits, dim=1)


def test_every_mixer_is_tried_in_every_placement_and_family():
    names = [name.split("-", 2) for name in VARIANTS]
    assert {name[0] for name in names} == set(FAMILIES) == set(SUPPORTED)
    assert {tuple(name[1:]) for name in names} >= {(m, p) for m in MIXERS for p in ("hybrid", "pure", "mixed")}


@torch.no_grad()
def test_all_attention_is_the_teacher_bit_for_bit(family):
    teacher = make_teacher(family)
    student, _ = convert(teacher, student_config(teacher.config, [0, 1, 2, 3]), seed=0)
    ids = tokens(2, 70)
    assert torch.equal(student(ids).logits, teacher(ids).logits)


@torch.no_grad()
def test_amount_and_content_of_left_padding_do_not_matter(student):
    ids = tokens(2, 40)
    expected = student(ids, use_cache=False).logits
    for amount in (1, 7, 70):
        for use_cache in (True, False):
            padded, mask, positions = pad_left(ids, amount, seed=amount)
            got = student(padded, attention_mask=mask, position_ids=positions, use_cache=use_cache).logits[:, amount:]
            torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def test_padding_after_tokens_leaves_the_states_as_they_are(student):
    cache = student(tokens(2, 10), use_cache=True).past_key_values
    layers = [cache.layers[i] for i in student.config.layers_of_type("linear_attention")]

    def states() -> list[torch.Tensor]:
        kept = [x for layer in layers for x in (*layer.conv_states.values(), *layer.recurrent_states.values())]
        # The last place of a ring buffer is for padding, and nobody reads it.
        return [(x[:, :, :-1] if x.dim() == 4 and x.shape[2] == ring else x).clone() for x in kept if x is not None]

    ring = (student.config.window or 0) + student.config.sinks + 1
    before = states()
    mask = torch.cat([torch.ones(2, 10), torch.zeros(2, 3)], dim=1).long()
    student(tokens(2, 3), attention_mask=mask, past_key_values=cache, use_cache=True)
    torch.testing.assert_close(states(), before)


@torch.no_grad()
def test_prefill_in_pieces_equals_in_one(student):
    ids = tokens(2, 90)
    expected = student(ids, use_cache=False).logits
    torch.testing.assert_close(in_pieces(student, ids, [50, 1, 2, 27, *[1] * 10]), expected, **CLOSE)


@torch.no_grad()
def test_prefill_in_pieces_with_left_padding(student):
    ids = tokens(2, 20)
    expected = student(ids, use_cache=False).logits
    padded, mask, positions = pad_left(ids, 10)
    for pieces in ([7, 7, 7, 9], [12, 18], [1] * 30):  # pieces of padding alone, of both, and of one token
        got = in_pieces(student, padded, pieces, mask, positions)[:, 10:]
        torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def test_prompt_shorter_than_the_convolution(student):
    ids = tokens(2, 8)
    expected = student(ids, use_cache=False).logits
    for pieces in ([1] * 8, [2, 1, 5]):
        torch.testing.assert_close(in_pieces(student, ids, pieces), expected, **CLOSE)


@torch.no_grad()
def test_packed_documents_equal_separate_ones(student):
    lengths = [5, 1, 64, 30]
    documents = [tokens(1, n, seed=n) for n in lengths]
    ids = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = student(ids, position_ids=positions).logits.split(lengths, dim=1)
    for document, got in zip(documents, packed, strict=True):
        torch.testing.assert_close(got, student(document, use_cache=False).logits, **CLOSE)


@torch.no_grad()
def test_packed_rows_of_a_batch_do_not_meet(student):
    ids = tokens(2, 30)
    positions = torch.stack([torch.arange(30), torch.cat([torch.arange(11), torch.arange(19)])])
    both = student(ids, position_ids=positions).logits
    torch.testing.assert_close(both[:1], student(ids[:1], use_cache=False).logits, **CLOSE)
    torch.testing.assert_close(both[1:, 11:], student(ids[1:, 11:], use_cache=False).logits, **CLOSE)


@torch.no_grad()
def test_saved_and_loaded_equals_in_memory(student, tmp_path):
    student = copy.deepcopy(student).float()
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert isinstance(loaded, GendistillForCausalLM)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, GendistillConfig)
    assert (config.mixers, config.is_pure) == (student.config.mixers, student.config.is_pure)
    ids = tokens(2, 30)
    assert torch.equal(loaded(ids).logits, student(ids).logits)


def test_bf16_keeps_the_decay_in_float32(student, tmp_path):
    student = copy.deepcopy(student).float()
    student.save_pretrained(tmp_path / "float32")
    once = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    once.save_pretrained(tmp_path / "bfloat16")
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16", dtype=torch.bfloat16)
    weights = dict(student.named_parameters())
    for loaded in (once, twice):
        for name, parameter in loaded.named_parameters():
            if name.endswith(("A_log", "dt_bias", "window_logit")):
                assert parameter.dtype == torch.float32
                assert torch.equal(parameter, weights[name]), name
            else:
                assert parameter.dtype == torch.bfloat16, name


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_bf16_teacher_gives_a_student_with_float32_decay(mixer):
    teacher = make_teacher("qwen3").bfloat16()
    student, _ = convert(teacher, student_config(teacher.config, [1], mixer=mixer), seed=0)
    kinds = {name.split(".")[-1] for name, p in student.named_parameters() if p.dtype == torch.float32}
    assert kinds == (set() if mixer == "lightning" else {"A_log", "dt_bias"})
    assert student(tokens(1, 10)).logits.isfinite().all()


def test_qwen3_0_6b_student_has_the_published_size():
    valid_mask = student_parameters()
    assert valid_mask == {"parameters": 613_422_800, "layers_without_keys_and_values": 21, "layers": 28}


@torch.no_grad()
@pytest.mark.parametrize("keep", [(1,), ()])
def test_linear_layers_hold_no_keys_or_values(keep):
    student = make_student("qwen3", keep=keep)
    short, long = (student(tokens(1, n), use_cache=True).past_key_values for n in (10, 200))
    for i, (a, b) in enumerate(zip(short.layers, long.layers, strict=True)):
        if student.config.layer_types[i] == "linear_attention":
            assert not hasattr(a, "keys")
            assert a.recurrent_states[0].shape == b.recurrent_states[0].shape == (1, 4, 16, 16)
            assert a.conv_states[0].shape == b.conv_states[0].shape
        else:
            assert (a.keys.shape[-2], b.keys.shape[-2]) == (10, 200)
