"""A conversation: replies with all that was said before, as far as the context reaches."""

from contextlib import closing

import pytest

from gendistill.chat.conversation import Conversation, Settings
from gendistill.data.chat import render_prompt
from gendistill.errors import UserError
from gendistill.inference.generation import generate


@pytest.fixture
def conversation(model, tokenizer):
    return Conversation("student", model, tokenizer, Settings(max_new_tokens=20))


def test_a_reply_depends_on_all_that_was_said(conversation, model, tokenizer):
    messages = []
    for question in ("Which one?", "And then?"):
        messages.append({"role": "user", "content": question})
        expected = generate(model, tokenizer, [render_prompt(tokenizer, messages)], 20)[0]
        assert "".join(conversation.ask(question)) == expected.text
        messages.append({"role": "assistant", "content": expected.text})
        assert conversation.messages == messages
        assert conversation.usage.tokens == expected.tokens
        assert conversation.usage.context == len(render_prompt(tokenizer, messages[:-1])) + expected.tokens
    conversation.reset()
    alone = generate(model, tokenizer, [render_prompt(tokenizer, messages[2:3])], 20)[0]
    assert "".join(conversation.ask("And then?")) == alone.text != messages[-1]["content"]


def test_a_reply_that_is_stopped_stands_in_the_history(conversation):
    with closing(conversation.ask("Which one?")) as pieces:
        said = next(pieces)
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    assert conversation.usage.tokens < 20


def test_a_question_asked_twice_is_sampled_twice(model, tokenizer):
    conversation = Conversation("student", model, tokenizer, Settings(max_new_tokens=20, temperature=3.0))
    first = "".join(conversation.ask("Which one?"))
    conversation.reset()
    assert "".join(conversation.ask("Which one?")) == first  # by the seed
    other = Conversation("student", model, tokenizer, Settings(max_new_tokens=20, temperature=3.0, seed=1))
    assert "".join(other.ask("Which one?")) != first


def test_the_end_of_the_context_is_said(model, tokenizer):
    conversation = Conversation("student", model, tokenizer, Settings(max_new_tokens=5000))
    conversation.ends = []  # so that it talks until nothing is left
    question = "?" * (conversation.limit - len(render_prompt(tokenizer, [{"role": "user", "content": ""}])) - 3)
    "".join(conversation.ask(question))
    assert conversation.usage.context == conversation.limit and conversation.usage.tokens == 3
    assert conversation.usage.cut == "the context of 1,024 tokens is full; /reset begins a new conversation"
    before = list(conversation.messages)
    with pytest.raises(UserError, match=r"student: the conversation has 1,\d+ tokens .* the context ends at 1,024"):
        next(conversation.ask("And then?"))
    assert conversation.messages == before
