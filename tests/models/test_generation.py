"""generate(): with and without a cache, padded, in pieces, by beams and by sampling, the tokens are the same."""

import copy

import pytest
import torch
from transformers import GenerationConfig, StaticCache

from gendistill.errors import UserError
from gendistill.models.cache import PureCache, new_cache
from small_models import CLOSE, VARIANTS, make_student, make_teacher, pad_left, tokens

GREEDY = dict(do_sample=False, eos_token_id=None)
PURE = [name for name in VARIANTS if "pure" in name]
LONG = [name for name in VARIANTS if name.startswith("qwen2") and not name.endswith("mixed")]
LONG += ["qwen3-gla-mixed", "llama-kda-pure-mixed"]

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def pure():
    return make_student("qwen2", keep=(), mixer="kda", mixer_in_layer={1: "mamba2"}).double()


@pytest.mark.parametrize("student", LONG, indirect=True)
def test_256_cached_tokens_equal_one_uncached_pass(student):
    ids, mask, _ = pad_left(tokens(2, 9), 3)
    mask[1] = 1  # the second row has no padding
    out = student.generate(
        ids, attention_mask=mask, max_new_tokens=256, **GREEDY, return_dict_in_generate=True, output_logits=True
    )
    mask = torch.cat([mask, torch.ones(2, 256, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    once = student(out.sequences, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 11:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1).double(), once, **CLOSE)  # generate keeps float32
    chosen = once.gather(-1, out.sequences[:, 12:, None]).squeeze(-1)
    assert (chosen > once.amax(-1) - 1e-4).all()  # the same argmax, but for ties
    assert out.sequences[:, 12:].unique().numel() > 5  # and not one token for ever


def test_greedy_generation_in_pieces_or_without_a_cache_is_the_same(student):
    ids, mask, _ = pad_left(tokens(3, 14), 5)
    how = dict(max_new_tokens=6, **GREEDY)  # more than a convolution or a window sees
    expected = student.generate(ids[:, 5:], use_cache=False, **how)[:, 14:]
    assert torch.equal(student.generate(ids, attention_mask=mask, use_cache=False, **how)[:, 19:], expected)
    assert torch.equal(student.generate(ids[:, 5:], prefill_chunk_size=6, **how)[:, 14:], expected)
    for size in (None, 1, 6):
        padded = student.generate(ids, attention_mask=mask, prefill_chunk_size=size, **how)
        assert torch.equal(padded[:, 19:], expected), size
        static = dict(cache_implementation="static", disable_compile=True)  # generate() makes the masks of this cache
        padded = student.generate(ids, attention_mask=mask, prefill_chunk_size=size, **static, **how)
        assert torch.equal(padded[:, 19:], expected), size


@pytest.mark.parametrize("how", [dict(num_beams=3, do_sample=False), dict(do_sample=True)], ids=["beams", "sampling"])
def test_several_sequences_of_a_prompt_are_the_same_without_a_cache(student, how):
    ids, mask, _ = pad_left(tokens(2, 10), 3)
    how = dict(attention_mask=mask, num_return_sequences=2, max_new_tokens=8, eos_token_id=None, **how)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        drawn.append(student.generate(ids, use_cache=use_cache, **how))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_batch_of_unequal_lengths_equals_one_by_one(student):
    rows = [tokens(1, n, seed=n) for n in (3, 17, 66)]
    padded = [pad_left(row, 66 - row.shape[1]) for row in rows]
    ids, mask = torch.cat([p[0] for p in padded]), torch.cat([p[1] for p in padded])
    together = student.generate(ids, attention_mask=mask, max_new_tokens=8, **GREEDY)
    for row, got in zip(rows, together, strict=True):
        alone = student.generate(row, max_new_tokens=8, **GREEDY)
        assert got[66:].tolist() == alone[0, row.shape[1] :].tolist()


def test_states_keep_their_address_and_size(student):
    """What CUDA graphs need: a step writes the states where they are."""
    pure = student.config.is_pure
    fixed = PureCache(student.config) if pure else StaticCache(config=student.config, max_cache_len=30)
    grown = new_cache(student.config)
    ids = tokens(2, 20)
    seen = set()
    for piece in (slice(0, 12), *(slice(i, i + 1) for i in range(12, 20))):
        got = student(ids[:, piece], past_key_values=fixed, use_cache=True).logits
        expected = student(ids[:, piece], past_key_values=grown, use_cache=True).logits
        torch.testing.assert_close(got, expected, **CLOSE)
        layers = [fixed.layers[i] for i in student.config.layers_of_type("linear_attention")]
        kept = [x for layer in layers for x in (*layer.conv_states.values(), *layer.recurrent_states.values())]
        states = [x for x in kept if x is not None]
        seen.add(tuple((x.data_ptr(), x.shape, x.dtype) for x in states))
    assert len(seen) == 1


def test_a_static_cache_generates_the_same(student):
    ids, mask, _ = pad_left(tokens(2, 10), 3)
    how = dict(attention_mask=mask, max_new_tokens=8, **GREEDY)
    assert torch.equal(student.generate(ids, cache_implementation="static", **how), student.generate(ids, **how))


@pytest.mark.parametrize("student", PURE, indirect=True)
def test_the_cache_of_a_pure_student_counts(student):
    cache = student(tokens(2, 10), use_cache=True).past_key_values
    assert cache.get_seq_length() == 10
    student(tokens(2, 1), past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 11
    first = student(tokens(2, 5), past_key_values=PureCache(student.config), use_cache=True).logits
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(student(tokens(2, 5), past_key_values=cache, use_cache=True).logits, first)


def test_a_pure_student_generates_without_a_mask(pure):
    ids = tokens(2, 10)
    how = dict(max_new_tokens=8, **GREEDY)
    expected = pure.generate(ids, attention_mask=torch.ones_like(ids), **how)
    assert torch.equal(pure.generate(ids, **how), expected)
    assert torch.equal(pure.generate(ids, use_cache=False, **how), expected)


def test_a_pure_student_can_do_without_a_cache_wherever_that_is_said(pure):
    """A cache that generate() does not know of would see the prompt again with each token."""
    ids = tokens(2, 10)
    expected = pure.generate(ids, max_new_tokens=8, **GREEDY)
    said = GenerationConfig(use_cache=False, max_new_tokens=8, **GREEDY)
    assert torch.equal(pure.generate(ids, generation_config=said), expected)
    assert torch.equal(pure.generate(ids, said), expected)
    changed = copy.deepcopy(pure)
    changed.generation_config.use_cache = False
    assert torch.equal(changed.generate(ids, max_new_tokens=8, **GREEDY), expected)
    changed = copy.deepcopy(pure)
    changed.config.use_cache = False
    assert torch.equal(changed.generate(ids, max_new_tokens=8, **GREEDY), expected)


@pytest.mark.parametrize("keep", [(1,), ()])
def test_a_conversation_goes_on_from_its_cache(keep):
    student = make_student("qwen2", keep=keep, mixer="gla").double()
    ids, mask, _ = pad_left(tokens(1, 10), 2)
    how = dict(max_new_tokens=6, **GREEDY)
    first = student.generate(ids, attention_mask=mask, return_dict_in_generate=True, **how)
    asked = torch.cat([first.sequences, tokens(1, 7, seed=9)], dim=1)
    mask = torch.cat([mask, torch.ones(1, 13, dtype=torch.long)], dim=1)
    again = student.generate(asked, attention_mask=mask, past_key_values=first.past_key_values, **how)
    assert torch.equal(again, student.generate(asked, attention_mask=mask, **how))


@pytest.mark.parametrize("name", ["qwen3-kda-hybrid", "qwen2-gla-pure", "llama-gated_deltanet-hybrid"])
def test_a_student_drafts_for_its_teacher(name):
    """Assisted generation says what the teacher says alone; a second call on a recorded cache is one pass."""
    teacher, student = make_teacher("qwen3"), make_student(**VARIANTS[name])
    ids = tokens(1, 10)
    how = dict(attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=96, pad_token_id=0)
    expected = teacher.generate(ids, **how)
    assert torch.equal(teacher.generate(ids, assistant_model=student, **how), expected)
    cache = new_cache(student.config)
    cache.activate_past_recording()
    student(ids[:, :6], past_key_values=cache)
    again = student(ids[:, 6:], past_key_values=cache, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(again, student(ids).logits[:, 6:], rtol=1e-3, atol=1e-3)


def test_a_student_with_windows_is_no_draft_model():
    ids = tokens(1, 10)
    student = make_student(**VARIANTS["qwen3-window-hybrid"])
    with pytest.raises(UserError, match="with windows cannot be a draft model"):
        make_teacher("qwen3").generate(ids, assistant_model=student, max_new_tokens=4, pad_token_id=0)
