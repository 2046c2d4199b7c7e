"""What the student declares to transformers holds: flex attention, whole graphs, cuts of its cache."""

import pytest
import torch
from transformers import StaticCache

from small_models import VARIANTS, WINDOW, make_student, make_teacher, pad_left, tokens

GREEDY = dict(do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("length", [4, 20], ids=["within a window", "beyond it"])
@pytest.mark.parametrize("name", ["qwen3-kda-hybrid", "qwen3-window-hybrid", "qwen2-mamba2-pure"])
def test_flex_attention_says_what_eager_attention_says(name, length):
    student = make_student(**VARIANTS[name])
    ids, mask, _ = pad_left(tokens(2, length), 3)
    mask[1] = 1  # the second row has no padding
    said = {}
    for how in ("eager", "flex_attention"):
        student.set_attn_implementation(how)
        with torch.compiler.set_stance("force_eager"):  # compiling the mask takes seconds
            padded = student(ids, attention_mask=mask).logits[mask.bool()]
            alone = student(ids[:, 3:]).logits.flatten(0, 1)
        said[how] = torch.cat([padded, alone])
    torch.testing.assert_close(said["flex_attention"], said["eager"], rtol=0, atol=5e-6)


def test_a_hybrid_is_one_graph():
    """Prompt and step with padding on a static cache, as generate() compiles them."""
    student = make_student("qwen3", keep=(0, 1), mixer="kda", mixer_in_layer={3: "window"}, **WINDOW)
    assert student._can_compile_fullgraph
    ids, mask, _ = pad_left(tokens(2, 20), 3)
    longer = torch.nn.functional.pad(mask, (0, 1), value=1)
    said = []
    torch.compiler.reset()
    for forward in (student, torch.compile(student, backend="eager", fullgraph=True)):
        cache = StaticCache(config=student.config, max_cache_len=30)
        how = dict(past_key_values=cache, use_cache=True)
        prompt = forward(ids, attention_mask=mask, **how).logits[:, -1]
        step = forward(ids[:, :1], attention_mask=longer, **how).logits[:, -1]
        said.append(torch.stack([prompt, step]))
    torch.testing.assert_close(*said, rtol=0, atol=5e-6)


def test_a_pure_student_declares_no_whole_graph():
    assert not make_student(**VARIANTS["qwen2-mamba2-pure"])._can_compile_fullgraph


@pytest.mark.parametrize("how", ["prompt lookup", "draft by a teacher", "draft by a student"])
def test_a_student_with_attention_alone_takes_drafts(how):
    student = make_student("qwen3", keep=(0, 1, 2, 3))
    drafts = {
        "prompt lookup": dict(prompt_lookup_num_tokens=3),
        "draft by a teacher": dict(assistant_model=make_teacher("qwen3", seed=1)),
        "draft by a student": dict(assistant_model=make_student(**VARIANTS["qwen3-kda-hybrid"])),
    }
    ids = tokens(1, 10).repeat(1, 2)  # so that a lookup finds something
    assert torch.equal(student.generate(ids, **drafts[how], **GREEDY), student.generate(ids, **GREEDY))


@pytest.mark.parametrize("name", ["qwen3-kda-hybrid", "qwen3-window-hybrid", "qwen2-mamba2-pure"])
def test_a_student_with_states_refuses_drafts(name):
    with pytest.raises(ValueError, match="not supported with stateful models"):
        make_student(**VARIANTS[name]).generate(tokens(1, 10), prompt_lookup_num_tokens=3, **GREEDY)
