"""What a client gets: the replies of the decoding loop, whole or streamed, whoever else asks."""

import asyncio
import math

import openai
import pytest
import torch

from gendistill.data.chat import render_prompt
from gendistill.inference.generation import generate

ASK = [{"role": "user", "content": "What is the capital of Spain?"}]
WORDS = ["The", "A river in", "Paris is", "One and two", "Of all the", "She", "It was a", "In"]


def complete(client, prompt="The", **how):
    return client.completions.create(**dict(model="student", prompt=prompt, temperature=0, max_tokens=24) | how)


def chat(client, **how):
    settings = dict(model="student", messages=ASK, temperature=0, max_completion_tokens=24)
    return client.chat.completions.create(**settings | how)


def test_chat_says_what_the_decoding_loop_says(client, student, tokenizer):
    prompt = render_prompt(tokenizer, ASK)
    (expected,) = generate(student, tokenizer, [prompt], 24)
    got = chat(client)
    (choice,) = got.choices
    assert choice.message.role == "assistant"
    assert choice.message.content.strip() == expected.text != ""
    assert choice.finish_reason == ("length" if expected.truncated else "stop")
    assert got.usage.prompt_tokens == len(prompt)
    assert got.usage.completion_tokens == expected.tokens + (not expected.truncated)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.model == "student" and got.object == "chat.completion"


def test_content_in_parts_is_content(client):
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of Spain?"}]
    assert chat(client, messages=[{"role": "user", "content": parts}]).choices == chat(client).choices


def test_a_prompt_is_a_text_texts_or_token_ids(client, tokenizer):
    texts = WORDS[:3]
    alone = [complete(client, text).choices[0].text for text in texts]
    ids = [tokenizer(text).input_ids for text in texts]
    for prompt, expected in ((texts, alone), (ids, alone), (ids[1], alone[1:2])):
        got = complete(client, prompt)
        assert [choice.text for choice in got.choices] == expected
        assert [choice.index for choice in got.choices] == list(range(len(expected)))
    assert len(set(alone)) == 3


def test_a_completion_has_16_tokens_where_the_client_does_not_say(client):
    assert complete(client, max_tokens=openai.NOT_GIVEN).usage.completion_tokens == 16


def test_a_chat_has_all_that_the_context_leaves(serving):
    with serving(context=64) as running, running.client() as client:
        got = chat(client, max_completion_tokens=None, temperature=2, seed=0)
        assert got.usage.total_tokens == 64 and got.choices[0].finish_reason == "length"


def test_a_stream_is_the_whole_in_pieces(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    *parts, usage = chunks
    assert "".join(part.choices[0].delta.content for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].delta.role for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
    reasons = [part.choices[0].finish_reason for part in parts]
    assert reasons == [None] * (len(parts) - 1) + [whole.choices[0].finish_reason]
    assert usage.choices == [] and usage.usage == whole.usage
    assert len(parts) > 5 and len({part.id for part in chunks}) == 1


def test_streams_of_several_choices_are_told_apart(client):
    whole = complete(client, WORDS[:2], n=2, temperature=1, seed=3)
    texts = [""] * 4
    for part in complete(client, WORDS[:2], n=2, temperature=1, seed=3, stream=True):
        (choice,) = part.choices
        texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 4


def test_64_at_once_get_what_each_gets_alone(running):
    """Prompts and budgets of unequal length on 16 rows, so that most join while others are answered."""
    asked = [
        dict(prompt=" ".join(WORDS[: 1 + i % 8]) + f" {i}", max_tokens=2 + 5 * i % 23, logprobs=1) for i in range(64)
    ]

    async def ask_all(at_once):
        async with running.client(openai.AsyncOpenAI) as client:
            gate = asyncio.Semaphore(at_once)

            async def ask(how):
                async with gate:
                    return await client.completions.create(model="student", temperature=0, **how)

            return await asyncio.gather(*map(ask, asked))

    together, alone = asyncio.run(ask_all(64)), asyncio.run(ask_all(1))
    for own, other in zip(together, alone, strict=True):
        (choice,), (same,) = own.choices, other.choices
        assert (choice.text, choice.finish_reason) == (same.text, same.finish_reason)
        assert choice.logprobs.tokens == same.logprobs.tokens
        assert own.usage == other.usage
    assert len({got.choices[0].text for got in alone}) > 32


def test_a_stop_string_is_cut_off_wherever_tokens_end(client):
    whole = complete(client, max_tokens=40, logprobs=0).choices[0]
    ends = whole.logprobs.text_offset[1:]  # where tokens begin, and the ones before end
    tried = 0
    for place in ends[4:12]:
        stop = whole.text[place - 1 : place + 2]  # of two tokens or three
        at = whole.text.find(stop)
        got = complete(client, max_tokens=40, stop=stop, logprobs=0)
        (choice,) = got.choices
        assert (choice.text, choice.finish_reason) == (whole.text[:at], "stop")
        parts = list(complete(client, max_tokens=40, stop=[stop, "never said"], stream=True))
        assert "".join(part.choices[0].text for part in parts) == whole.text[:at]
        # Counted up to the token that completes it; log-probabilities are of tokens before the one it begins in.
        assert got.usage.completion_tokens == sum(offset < at + len(stop) for offset in whole.logprobs.text_offset)
        told = sum(end <= at for end in [*ends, len(whole.text)])
        assert choice.logprobs.tokens == whole.logprobs.tokens[:told]
        tried += 1
    assert tried == 8


def test_a_stop_string_that_is_one_added_token_ends_the_reply(client, tokenizer):
    """Never seen in the text, from which special tokens are left out."""
    (end,) = [text for text, id in tokenizer.get_added_vocab().items() if id == tokenizer.eos_token_id]
    assert chat(client, stop=end).choices[0].message.content == chat(client).choices[0].message.content


def test_a_sample_depends_on_seed_and_settings_alone(running, client):
    how = dict(temperature=1.2, top_p=0.9, seed=7)
    alone = complete(client, **how).choices[0].text

    async def among_others():
        async with running.client(openai.AsyncOpenAI) as many:
            settings = [dict(temperature=0), dict(temperature=1, seed=1), dict(temperature=0.5, top_p=0.5), how]
            base = dict(model="student", prompt="The", max_tokens=24)
            return await asyncio.gather(*(many.completions.create(**base | settings[i % 4]) for i in range(12)))

    got = asyncio.run(among_others())
    assert [reply.choices[0].text for reply in got[3::4]] == [alone] * 3
    assert complete(client, **how).choices[0].text == alone
    assert complete(client, **how | {"seed": 8}).choices[0].text != alone
    assert (
        complete(client, **how | {"seed": None}).choices[0].text
        != complete(client, **how | {"seed": None}).choices[0].text
    )
    several = [choice.text for choice in complete(client, n=3, **how).choices]
    assert several[0] == alone and len(set(several)) == 3
    assert complete(client, temperature=1, top_p=1e-6, seed=1).choices == complete(client).choices


def test_log_probabilities_are_those_of_the_model(client, student, tokenizer):
    """Before the temperature, for greedy and sampled replies; in both forms."""
    for temperature in (0, 1.5):
        how = dict(temperature=temperature, seed=5, max_tokens=12)
        got = complete(client, logprobs=5, **how).choices[0]
        ids = tokenizer("The").input_ids + [tokenizer.convert_tokens_to_ids(t) for t in _tokens(got, tokenizer)]
        with torch.inference_mode():
            logits = student(torch.tensor([ids]), use_cache=False).logits[0]
        expected = logits.log_softmax(-1)[len(tokenizer("The").input_ids) - 1 : -1]
        for place, (token, logprob) in enumerate(zip(ids[-len(expected) :], got.logprobs.token_logprobs, strict=True)):
            assert logprob == pytest.approx(expected[place, token].item(), abs=1e-3)
            likeliest = got.logprobs.top_logprobs[place]
            assert sum(map(math.exp, likeliest.values())) <= 1 + 1e-6
            assert max(likeliest.values()) == pytest.approx(expected[place].max().item(), abs=1e-3)
            assert len(likeliest) in (4, 5, 6)
        assert "".join(got.logprobs.tokens) == got.text
    own = chat(client, logprobs=True, top_logprobs=3).choices[0]
    assert "".join(entry.token for entry in own.logprobs.content) == own.message.content
    for entry in own.logprobs.content:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert bytes(entry.bytes).decode() == entry.token
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client).choices[0].logprobs is None
    parts = list(chat(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [entry for part in parts for entry in part.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in own.logprobs.content]


def _tokens(choice, tokenizer):
    """A completion's tokens as the vocabulary has them."""
    return [
        tokenizer.convert_ids_to_tokens(tokenizer(token, add_special_tokens=False).input_ids)[0]
        for token in choice.logprobs.tokens
    ]


def test_the_model_is_listed(client):
    (listed,) = client.models.list().data
    assert listed.id == "student" == client.models.retrieve("student").id
