"""The student as a Hugging Face model: padding, packing, caching and saving change nothing they should not."""

import pytest
import torch
from figures import student_parameters
from transformers import AutoConfig, AutoModelForCausalLM

from gendistill.models import GendistillConfig, GendistillForCausalLM
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from small_models import FAMILIES, make_student, make_teacher

CLOSE = dict(rtol=1e-4, atol=1e-5)


def tokens(batch, length, seed=0):
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def pad_left(ids, amount, seed=5):
    """Random tokens as padding: their content must not matter."""
    batch = ids.shape[0]
    mask = torch.cat([torch.zeros(batch, amount), torch.ones_like(ids)], dim=1).long()
    return torch.cat([tokens(batch, amount, seed), ids], dim=1), mask, (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def test_all_attention_is_the_teacher_bit_for_bit(family):
    teacher = make_teacher(family)
    student, _ = convert(teacher, student_config(teacher.config, [0, 1, 2, 3]), seed=0)
    ids = tokens(2, 70)
    assert torch.equal(student(ids).logits, teacher(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("amount", [1, 7, 70])
def test_left_padding_does_not_matter(student, amount):
    ids = tokens(2, 40)
    padded, mask, positions = pad_left(ids, amount)
    expected = student(ids, use_cache=False).logits
    got = student(padded, attention_mask=mask, position_ids=positions).logits[:, amount:]
    torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def test_batch_of_unequal_lengths_equals_one_by_one(student):
    rows = [tokens(1, n, seed=n) for n in (3, 17, 66)]
    padded = [pad_left(row, 66 - row.shape[1]) for row in rows]
    ids, mask = torch.cat([p[0] for p in padded]), torch.cat([p[1] for p in padded])
    together = student.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=None)
    for row, got in zip(rows, together, strict=True):
        alone = student.generate(row, max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert got[66:].tolist() == alone[0, row.shape[1] :].tolist()


@torch.no_grad()
def test_cached_equals_uncached(student):
    ids = tokens(2, 100)
    expected = student(ids, use_cache=False).logits
    out = student(ids[:, :50], use_cache=True)
    logits = [out.logits]
    for piece in (slice(50, 51), slice(51, 53), slice(53, 80), *(slice(i, i + 1) for i in range(80, 100))):
        logits.append(student(ids[:, piece], past_key_values=out.past_key_values, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)


@torch.no_grad()
def test_prompt_shorter_than_the_convolution(student):
    ids = tokens(2, 12)
    expected = student(ids, use_cache=False).logits
    out = student(ids[:, :1], use_cache=True)
    logits = [out.logits]
    for i in range(1, 12):
        logits.append(student(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)


@torch.no_grad()
def test_cached_generation_equals_uncached(student):
    ids, mask, _ = pad_left(tokens(3, 20), 9)
    how = dict(attention_mask=mask, max_new_tokens=60, do_sample=False, eos_token_id=None)
    assert torch.equal(student.generate(ids, use_cache=True, **how), student.generate(ids, use_cache=False, **how))


@torch.no_grad()
def test_beam_search_runs_through_the_cache(student):
    ids = tokens(2, 10)
    how = dict(num_beams=3, num_return_sequences=2, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(student.generate(ids, use_cache=True, **how), student.generate(ids, use_cache=False, **how))


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
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert isinstance(loaded, GendistillForCausalLM)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), GendistillConfig)
    ids = tokens(2, 30)
    assert torch.equal(loaded(ids).logits, student(ids).logits)


def test_bf16_keeps_the_decay_in_float32(student, tmp_path):
    student.save_pretrained(tmp_path)
    mixer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).model.layers[0].linear_attn
    assert mixer.A_log.dtype == mixer.dt_bias.dtype == torch.float32
    assert mixer.q_proj.weight.dtype == torch.bfloat16
    original = student.model.layers[0].linear_attn
    assert torch.equal(mixer.A_log, original.A_log)
    assert torch.equal(mixer.dt_bias, original.dt_bias)


def test_gradient_checkpointing_gives_the_same_gradients(student):
    ids, positions = tokens(2, 30), torch.cat([torch.arange(11), torch.arange(19)]).repeat(2, 1)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            student.gradient_checkpointing_enable()
        student.train().zero_grad()
        student(ids, position_ids=positions, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in student.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("options", [dict(gate_activation="sigmoid"), dict(output_norm=False)])
@torch.no_grad()
def test_layer_options_keep_the_invariants(options):
    student = make_student("qwen2", **options)
    ids = tokens(2, 40)
    expected = student(ids, use_cache=False).logits
    padded, mask, positions = pad_left(ids, 7)
    torch.testing.assert_close(
        student(padded, attention_mask=mask, position_ids=positions).logits[:, 7:], expected, **CLOSE
    )
    out = student(ids[:, :39], use_cache=True)
    step = student(ids[:, 39:], past_key_values=out.past_key_values, use_cache=True)
    torch.testing.assert_close(step.logits[:, 0], expected[:, 39], **CLOSE)


def test_qwen3_0_6b_student_has_the_published_size():
    counted = student_parameters()
    assert counted == {"parameters": 613_422_800, "layers_without_keys_and_values": 21, "layers": 28}


@torch.no_grad()
def test_linear_layers_hold_no_keys_or_values():
    student = make_student("qwen3", keep=(1,))
    short, long = (student(tokens(1, n), use_cache=True).past_key_values for n in (10, 200))
    for i, (a, b) in enumerate(zip(short.layers, long.layers, strict=True)):
        if student.config.layer_types[i] == "linear_attention":
            assert not hasattr(a, "keys")
            assert a.recurrent_states[0].shape == b.recurrent_states[0].shape == (1, 4, 16, 16)
            assert a.conv_states[0].shape == b.conv_states[0].shape
        else:
            assert (a.keys.shape[-2], b.keys.shape[-2]) == (10, 200)


def test_every_family_is_tried():
    assert set(FAMILIES) == {"qwen3", "qwen2", "llama"}
