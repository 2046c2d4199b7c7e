"""What is refused and how, what fails and whom it does not touch."""

import json
import time

import httpx2
import openai
import pytest
import torch

from gendistill.inference import decoding

ASK = [{"role": "user", "content": "hi"}]
CHAT, COMPLETE = "/chat/completions", "/completions"
GOOD = {CHAT: dict(model="student", messages=ASK, max_tokens=4), COMPLETE: dict(model="student", prompt="The")}
DEEP = b'{"a":' + b"[" * 100_000


def post(running, path, body, key=None):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(running.url + path, content=content, headers=headers, timeout=30)


# Path, what differs from a good body (bytes: the whole body), status, and what the message says.
REFUSED = [
    (CHAT, b"", 400, "no JSON"),
    (CHAT, b'{"model": "student", ', 400, "no JSON"),
    (CHAT, b"\xff\xfe{}", 400, "no JSON"),
    (CHAT, b'{"temperature": NaN}', 400, "NaN is no JSON"),
    (CHAT, DEEP, 400, "no JSON"),
    (CHAT, b"[1, 2]", 400, "give an object"),
    (CHAT, {"model": "gpt-4o"}, 404, "the only one is 'student'"),
    (CHAT, {"model": None}, 400, "'model' is missing"),
    (CHAT, {"messages": []}, 400, "'messages'"),
    (CHAT, {"messages": [{"role": "wizard", "content": "hi"}]}, 400, "'messages.0.role'"),
    (CHAT, {"messages": [{"role": "user", "content": "hi", "name": "Ann"}]}, 400, "'messages.0.name'"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
    (CHAT, {"messages": [{"role": "user", "content": "a\ufdd0b"}]}, 400, "U+FDD0"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "'messages.0.content.0",
    ),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "'tools' is not supported"),
    (CHAT, {"frequency_penalty": 0.5}, 400, "'frequency_penalty' is not supported"),
    (CHAT, {"top_k": 5}, 400, "'top_k' is not supported"),
    (CHAT, {"response_format": {"type": "json_object"}}, 400, "'response_format' is not supported"),
    (CHAT, {"temperature": 3}, 400, "'temperature'"),
    (CHAT, {"temperature": 1e-50}, 400, "neither 0, which is greedy"),
    (CHAT, {"temperature": "0"}, 400, "'temperature'"),
    (CHAT, {"top_p": 0}, 400, "'top_p'"),
    (CHAT, {"n": 0}, 400, "'n'"),
    (CHAT, {"n": True}, 400, "'n'"),
    (CHAT, {"n": 100}, 400, "100 replies at once (prompts times n) are more than 80"),
    (CHAT, {"max_tokens": 0}, 400, "'max_tokens'"),
    (CHAT, {"max_completion_tokens": 5}, 400, "not both"),
    (CHAT, {"stop": ["a"] * 5}, 400, "'stop"),
    (CHAT, {"stop": ""}, 400, "'stop"),
    (CHAT, {"top_logprobs": 3}, 400, "'logprobs' to be true"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "'top_logprobs'"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "for streams"),
    (
        CHAT,
        {"max_tokens": 600},
        400,
        "the context is 512 tokens, the prompt has 9 and 600 new ones are to follow: 609",
    ),
    (COMPLETE, {"prompt": [5] * 512}, 400, "the prompt has 512 and 16 new ones are to follow: 528"),
    (COMPLETE, {"prompt": ""}, 400, "empty"),
    (COMPLETE, {"prompt": []}, 400, "empty"),
    (COMPLETE, {"prompt": [[]]}, 400, "empty"),
    (COMPLETE, {"prompt": [2048]}, 400, "token id 2048: the model's ids are 0 to 2047"),
    (COMPLETE, {"prompt": [-1]}, 400, "'prompt"),
    (COMPLETE, {"prompt": ["a", 3]}, 400, "'prompt"),
    (COMPLETE, {"logprobs": 6}, 400, "'logprobs'"),
    (COMPLETE, {"echo": True}, 400, "'echo' is not supported"),
    (COMPLETE, b" " * (2**20 + 1), 413, "more than 1,048,576 bytes"),
    ("/embeddings", {}, 404, "not found"),
]


@pytest.mark.parametrize(("path", "change", "status", "says"), REFUSED)
def test_what_cannot_be_answered_is_refused_in_openais_form(running, path, change, status, says):
    body = change if isinstance(change, bytes) else GOOD.get(path, {}) | change
    got = post(running, path, body)
    assert got.status_code == status, got.text
    error = got.json()["error"]
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"]
    assert running.service.engine.open == 0


def test_values_that_ask_for_nothing_are_no_error(client):
    none = dict(frequency_penalty=0, presence_penalty=0.0, logit_bias={}, tools=[], user="me", n=1)
    none |= dict(response_format={"type": "text"}, stop=None, seed=None, logprobs=None)
    assert client.chat.completions.create(**GOOD[CHAT], **none).choices


def test_the_client_sees_the_errors_it_knows(running, client):
    with pytest.raises(openai.BadRequestError, match="the context is 512"):
        client.completions.create(model="student", prompt="a " * 600)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx2.get(running.url + CHAT).status_code == 405


def test_who_does_not_know_the_key_learns_nothing(serving):
    with serving(key="geheim-ü") as running:
        for wrong in (None, "geheim", "geheim-ü2"):
            headers = {"Authorization": f"Bearer {wrong}".encode()} if wrong else {}
            for path in ("/models", "/models/student", CHAT):
                method = "POST" if path == CHAT else "GET"
                got = httpx2.request(method, running.url + path, headers=headers, content=b"{")
                assert got.status_code == 401 and got.json()["error"]["code"] == "invalid_api_key"
            assert httpx2.get(running.url.replace("/v1", "/metrics"), headers=headers).status_code == 401
        right = {"Authorization": "Bearer geheim-ü".encode()}
        assert httpx2.get(running.url + "/models", headers=right).status_code == 200
        assert httpx2.get(running.url.replace("/v1", "/health")).json() == {"status": "ok"}
    with serving(key="secret") as running:
        with running.client(key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with running.client(key="secret") as client:
            assert client.completions.create(**GOOD[COMPLETE]).choices


def test_what_the_queue_has_no_room_for_is_told_when_to_come_back(serving):
    long = dict(model="student", prompt="The", max_tokens=400, temperature=2, seed=0, stream=True)
    with serving(rows=1, queue=1) as running, running.client() as client:
        first = client.completions.create(**long)
        second = client.completions.create(**long)
        running.wait_until(lambda: running.service.engine.running)
        with pytest.raises(openai.RateLimitError, match="a queue of 1") as refused:
            client.completions.create(**GOOD[COMPLETE])
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        with pytest.raises(openai.BadRequestError, match="3 replies at once"):
            client.completions.create(**GOOD[COMPLETE], n=3)
        first.close()
        second.close()
        running.wait_until(lambda: not running.service.engine.open)
        assert client.completions.create(**GOOD[COMPLETE], n=2).choices


def test_a_client_that_leaves_gives_its_row_away(serving):
    """While it streams, while it waits for the whole, and while it waits in the queue."""
    long = dict(model="student", prompt="The", max_tokens=500, temperature=2, seed=0)
    with serving(rows=1) as running, running.client() as client:
        engine = running.service.engine
        stream = client.completions.create(**long, stream=True)
        next(iter(stream))
        with running.client() as other:
            for _ in range(2):
                with pytest.raises(openai.APITimeoutError):
                    other.with_options(timeout=0.1).completions.create(**long)
            running.wait_until(lambda: len(engine.waiting) == 0)  # those that waited left the queue
            assert len(engine.running) == 1
        stream.close()
        with running.client() as other, pytest.raises(openai.APITimeoutError):
            other.with_options(timeout=0.1).completions.create(**long)
        began = time.monotonic()
        assert client.completions.create(**GOOD[COMPLETE]).choices
        assert engine.open == 0
        # A reply of 500 tokens takes far longer than this.
        assert time.monotonic() - began < 1
        running.wait_until(lambda: running.service.metrics.cancelled == 4)


def test_a_failure_ends_what_runs_and_not_the_server(serving, monkeypatch, capfd):
    whole = decoding.prefill

    def failing(model, prompts, *rest):
        if any(len(prompt) == 7 for prompt in prompts):
            raise RuntimeError("a kernel failed")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(decoding, "prefill", failing)
    with serving() as running, running.client() as client:
        expected = client.completions.create(**GOOD[COMPLETE], temperature=0).choices
        with pytest.raises(openai.InternalServerError, match="the server failed"):
            client.completions.create(model="student", prompt=[5] * 7)
        stream = client.completions.create(model="student", prompt=[5] * 7, stream=True)
        with pytest.raises(openai.APIError, match="the server failed"):
            list(stream)
        assert client.completions.create(**GOOD[COMPLETE], temperature=0).choices == expected
        assert running.service.engine.open == 0
    assert "a kernel failed" in capfd.readouterr().err  # for whoever runs the server


def test_what_does_not_fit_in_memory_is_answered_by_fewer_at_a_time(serving, monkeypatch):
    whole, sizes = decoding.prefill, []

    def scarce(model, prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > 2 or len(prompts[0]) > 99:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, prompts, *rest)

    with serving() as running, running.client() as client:
        several = dict(model="student", prompt=["The", "A", "One", "It", "In"], temperature=0)
        expected = client.completions.create(**several).choices
        monkeypatch.setattr(decoding, "prefill", scarce)
        assert client.completions.create(**several).choices == expected
        assert sizes[:2] == [5, 2]
        with pytest.raises(openai.InternalServerError, match="a prompt of 100 tokens"):
            client.completions.create(model="student", prompt=[5] * 100)
        assert client.completions.create(**several).choices == expected


def test_metrics_count_what_was_done(serving):
    with serving() as running, running.client() as client:
        got = client.completions.create(**GOOD[COMPLETE], temperature=0)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt="a")
        text = httpx2.get(running.url.replace("/v1", "/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["gendistill_prompt_tokens_total"] == str(got.usage.prompt_tokens)
    assert values["gendistill_generated_tokens_total"] == str(got.usage.completion_tokens)
    assert values['gendistill_responses_total{path="/v1/completions",status="200"}'] == "1"
    assert values['gendistill_responses_total{path="/v1/completions",status="404"}'] == "1"
    assert values['gendistill_call_seconds_bucket{le="+Inf"}'] == values["gendistill_call_seconds_count"] == "1"
    assert values["gendistill_requests_running"] == values["gendistill_requests_waiting"] == "0"
