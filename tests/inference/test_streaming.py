"""Streamed replies: the ids and the text that `generate` gives, in pieces that never split a character."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from gendistill.data.chat import render_prompt
from gendistill.errors import UserError
from gendistill.inference.decoding import Sampling
from gendistill.inference.generation import generate, pad_id
from gendistill.inference.stopping import end_ids
from gendistill.inference.streaming import TextStream, stream_ids


def stream(model, tokenizer, prompt, budget, sampling=None):
    ends = end_ids(model, tokenizer)
    ids = stream_ids(model, prompt, budget, ends=ends, pad=pad_id(tokenizer), sampling=sampling)
    return [id for id in ids if id not in ends]


@pytest.mark.parametrize("budget", [1, 2, 40])
@pytest.mark.parametrize("key", [None, "0/0", "0/1"])
def test_streamed_is_what_generate_says(model, tokenizer, budget, key):
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "Which one?"}])
    sampling = None if key is None else Sampling(1.5, 0.95, [key])
    reply = generate(model, tokenizer, [prompt], budget, sampling=sampling)[0]
    ids = stream(model, tokenizer, prompt, budget, sampling)
    text = TextStream(tokenizer)
    pieces = [text.add(id) for id in ids]
    assert tuple(ids) == reply.ids
    assert "".join([*pieces, text.finish()]) == reply.text


@pytest.mark.parametrize("said", ["Zürich 東京 🦎!", "  blanks  inside \n\n and at the ends  ", "é\n", "🦎🦎 a\tb"])
def test_characters_come_out_whole(tokenizer, said):
    """The tokenizer's tokens are bytes, so that every character of two bytes or more is split."""
    text = TextStream(tokenizer)
    pieces = [text.add(id) for id in tokenizer.encode(said)]
    assert "".join([*pieces, text.finish()]) == said.strip()
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > len(said.strip()) // 2  # and come as early as can be


def test_half_a_character_is_waited_for_and_shown_at_the_end(tokenizer):
    text = TextStream(tokenizer)
    assert [text.add(id) for id in tokenizer.encode("a東")[:-1]] == ["a", "", ""]
    assert text.finish() == "\ufffd"


def test_a_model_that_the_loop_does_not_know_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(UserError, match="replies are streamed of students, and of teachers of supported families"):
        next(stream_ids(model, [1], 2, ends=[0], pad=0))
