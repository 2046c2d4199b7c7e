"""Where replies end: tokens that close a turn, and stop strings, whatever batch a reply is in."""

import pytest
import torch

from gendistill.data.chat import ends_of_turns, render_prompt
from gendistill.inference import generation
from gendistill.inference.generation import generate
from gendistill.inference.stopping import StopStrings, end_ids
from gendistill.models.loading import load_model, load_tokenizer

QUESTIONS = ["What is 4 + 5?", "What is 13 + 28?", "What is 7 - 2?", "Name a colour.", "What is 31 - 8?"]
# Ends of turns that templates of base models have, each other than the tokenizer's end of sequence.
TEMPLATES = {
    "a line break behind it": "{{ '<|x|>' + m.role + '\n' + m.content + '<|y|>\n' }}",
    "text before it": "{{ '<|x|>' + m.role + m.content + ' .<|y|>' }}",
    "the opening of the next turn": "{{ '<|y|>' + m.role + m.content }}",
}


@pytest.fixture(scope="module")
def teacher():
    return load_model("embedded", torch.float32, torch.device("cpu"))


@pytest.fixture
def embedded(teacher):
    return load_tokenizer("embedded", teacher.config.vocab_size)


@pytest.fixture
def prompts(embedded):
    return [render_prompt(embedded, [{"role": "user", "content": question}]) for question in QUESTIONS]


@pytest.mark.parametrize("closing", TEMPLATES)
def test_a_turn_ends_with_what_the_template_closes_it_with(teacher, embedded, closing):
    embedded.add_special_tokens({"additional_special_tokens": ["<|x|>", "<|y|>"]})
    embedded.chat_template = f"{{% for m in messages %}}{TEMPLATES[closing]}{{% endfor %}}"
    closings = {embedded.eos_token_id, embedded.convert_tokens_to_ids("<|y|>")}
    assert set(end_ids(teacher, embedded)) == closings | {teacher.generation_config.eos_token_id}


def test_it_is_what_training_ends_turns_with(teacher, embedded):
    assert ends_of_turns(embedded) <= set(end_ids(teacher, embedded))


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no such roles') }}", "{{ messages[0].content }}"])
def test_a_template_that_says_nothing_of_it_leaves_the_end_of_sequence(teacher, embedded, template):
    embedded.chat_template = template
    assert end_ids(teacher, embedded) == [embedded.eos_token_id]


def test_a_stop_string_that_is_an_added_token_is_an_end(teacher, embedded):
    embedded.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    assert embedded.convert_tokens_to_ids("<|turn|>") in end_ids(teacher, embedded, ["<|turn|>", "no token"])


def cut_before(text, stops):
    """The text before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        if places := [place for stop in stops if (place := text[:end].find(stop)) >= 0]:
            return text[: min(places)]
    return text


@pytest.mark.parametrize("stops", [["9"], [" is", "1"], ["nowhere"], ["e", "The"], ["."], ["13 + 28", "28"]])
def test_replies_end_before_the_first_stop_string(teacher, embedded, prompts, stops, monkeypatch):
    whole = generate(teacher, embedded, prompts, 24)
    expected = [cut_before(embedded.decode(reply.ids, skip_special_tokens=True), stops).strip() for reply in whole]
    together = generate(teacher, embedded, prompts, 24, stop=stops)
    assert [reply.text for reply in together] == expected
    for reply, unstopped in zip(together, whole, strict=True):
        assert reply.ids == unstopped.ids[: len(reply.ids)] and reply.tokens == len(reply.ids)
        assert reply.truncated is (unstopped.truncated and reply.text == unstopped.text)
    for size in (1, 2):
        again = generate(teacher, embedded, prompts, 24, size, stop=stops)
        assert again == together and [reply.ids for reply in again] == [reply.ids for reply in together]
    # By transformers' generate() as by our loop.
    monkeypatch.setattr(generation, "can_decode", lambda model: False)
    assert generate(teacher, embedded, prompts, 24, stop=stops) == together


@pytest.mark.parametrize("ours", [True, False])
def test_generation_ends_at_a_stop_string(teacher, embedded, prompts, monkeypatch, ours):
    """Not after the whole budget: a base model would go on asking itself questions."""
    monkeypatch.setattr(generation, "can_decode", lambda model: ours)
    monkeypatch.setattr(generation, "end_ids", lambda *_: [embedded.vocab_size + 10**6])  # none is ever said
    passes = []
    forward = teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda *args, **kwargs: (passes.append(1), forward(*args, **kwargs))[1])
    first = generate(teacher, embedded, prompts[:1], 4)[0].text
    passes.clear()
    assert generate(teacher, embedded, prompts[:1], 200, stop=[first[:3]])[0].text == ""
    assert len(passes) < 16


def test_a_stop_string_in_many_tokens_is_found(embedded):
    text = "One.\n\nQuestion: two? é"
    ids = embedded(text, add_special_tokens=False)["input_ids"]
    text = embedded.decode(ids)
    stops = StopStrings(embedded, ["\n\nQuestion:", "é"])
    reached = [stops.is_reached(ids[:count], 1) for count in range(1, len(ids) + 1)]
    assert any(reached)
    said, before = stops.cut(ids)
    assert before == "One." and embedded.decode(said) == "One."
    # Every number of tokens behind it gives the same.
    first = reached.index(True) + 1
    assert {stops.cut(ids[:count])[1] for count in range(first, len(ids) + 1)} == {"One."}
