"""The bytes of a cache by formula are those of a real one; rows and sizes of a cache are what was asked for."""

import pytest
import torch

from gendistill.inference.prefill import prefill
from gendistill.models.cache import cache_bytes, select_rows
from gendistill.models.cost import expected_cache_bytes
from small_models import CLOSE, make_student, make_teacher, tokens

STUDENTS = {
    "hybrid": dict(keep=(1,), mixer="kda"),
    "hybrid of three mixers": dict(keep=(1,), mixer_in_layer={0: "gla", 2: "lightning", 3: "mamba2"}),
    "pure": dict(keep=(), mixer="gated_deltanet"),
    "expanded": dict(keep=(0, 3), mixer="kda", expand_kv=True),
    "all kept": dict(keep=(0, 1, 2, 3)),
    "window": dict(keep=(1,), mixer="window", window=9, sinks=3),
    "windows only": dict(keep=(), mixer="window", window=9, sinks=3),
    "window beside a recurrence": dict(keep=(1,), window=9, sinks=3),
    "window beside every recurrence": dict(keep=(), mixer="mamba2", window=9),
    "window, and beside": dict(keep=(1,), mixer="window", mixer_in_layer={3: "kda"}, window=9, sinks=3),
    "expanded, with a window": dict(keep=(1,), window=9, expand_kv=True),
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STUDENTS)
def test_bytes_of_a_students_cache(name, dtype):
    student = make_student("qwen3", **STUDENTS[name]).to(dtype)
    for batch, length in ((1, 5), (3, 70)):
        cache = student(tokens(batch, length), use_cache=True).past_key_values
        assert cache_bytes(cache) == expected_cache_bytes(student.config, length, batch, dtype.itemsize)


@torch.no_grad()
def test_bytes_of_a_teachers_cache(family):
    """Nothing but keys and values, which grow with the context."""
    teacher = make_teacher(family)
    cache = teacher(tokens(2, 30), use_cache=True).past_key_values
    assert cache_bytes(cache) == expected_cache_bytes(teacher.config, 30, 2, 4)
    assert expected_cache_bytes(teacher.config, 300, 2, 4) == 10 * cache_bytes(cache)


@torch.no_grad()
@pytest.mark.parametrize("name", STUDENTS)
def test_a_cache_with_places_has_the_bytes_of_a_full_one(name):
    student = make_student("qwen3", **STUDENTS[name])
    cache = prefill(student, tokens(2, 30).tolist(), None, room=64).cache
    assert cache_bytes(cache) == expected_cache_bytes(student.config, 64, 2, 4)


@torch.no_grad()
@pytest.mark.parametrize("name", STUDENTS)
def test_selected_rows_leave_the_cache_as_it_was(name):
    student = make_student("qwen3", **STUDENTS[name])
    ids = tokens(3, 20)
    cache = student(ids, use_cache=True).past_key_values
    before = cache_bytes(cache)
    selected = select_rows(cache, [2, 0, 2, 2])
    assert cache_bytes(selected) == before // 3 * 4
    again = ids[[2, 0, 2, 2]]
    step = student(again[:, :1], past_key_values=selected, use_cache=True).logits
    expected = student(torch.cat([again, again[:, :1]], dim=1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-3)
    assert cache_bytes(cache) == before


@torch.no_grad()
@pytest.mark.parametrize("name", ["hybrid", "pure", "window"])
def test_a_cache_by_its_newer_name_is_used(name):
    """transformers from 5.24 on calls it `cache`; passed over, every step would see its own token alone."""
    student = make_student("qwen3", **STUDENTS[name]).double()
    ids = tokens(2, 20)
    expected = student(ids).logits[:, -1]
    for model in (student, student.model):
        cache = student(ids[:, :-1], use_cache=True).past_key_values
        out = model(ids[:, -1:], cache=cache, use_cache=True)
        logits = out.logits if model is student else student.lm_head(out.last_hidden_state)
        torch.testing.assert_close(logits[:, -1], expected, **CLOSE)
