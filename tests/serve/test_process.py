"""How a server begins and ends: its address and key, signals, a kill and the next start on the same port."""

import gc
import os
import signal
import socket
import subprocess
import sys
import time

import httpx2
import openai
import pytest
from transformers import PreTrainedConfig

from cli_tools import in_process
from gendistill.errors import UserError
from gendistill.inference.generation import generate
from gendistill.inference.requests import Request
from gendistill.models.configuration import GendistillConfig
from gendistill.serve import service as service_module
from gendistill.serve.call import Call
from gendistill.serve.server import bind, check_host, read_key
from gendistill.serve.service import context_of, load_service
from gendistill.serve.text import ReplyText

LONG = dict(prompt="The", max_tokens=100, temperature=2, seed=0)


def test_a_server_that_ends_finishes_what_runs_and_takes_nothing_new(serving):
    with serving(rows=1) as running, running.client() as client:
        whole = client.completions.create(model="student", **LONG).choices[0].text
        stream = client.completions.create(model="student", stream=True, **LONG)
        text = next(iter(stream)).choices[0].text
        waits = client.completions.create(model="student", stream=True, **LONG)  # in the queue, and answered too
        running.end()
        running.wait_until(lambda: running.service.engine.is_draining)
        with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
            client.completions.create(model="student", prompt="The")
        assert refused.value.status_code == 503
        assert httpx2.get(running.url.replace("/v1", "/health")).status_code == 503
        assert text + "".join(part.choices[0].text for part in stream) == whole
        assert "".join(part.choices[0].text for part in waits) == whole
        running.thread.join(10)
        assert running.ended is True
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_nothing_of_a_call_stays(serving):
    """Answered, streamed, refused or given up: no request, text or prompt is held when its client is gone."""
    with serving(rows=2, queue=2) as running, running.client() as client:
        for _ in range(3):
            client.completions.create(model="student", prompt=["The", "A"], logprobs=2)
            list(client.completions.create(model="student", prompt="The", stop=["e"], stream=True))
            client.completions.create(model="student", stream=True, **LONG).close()
            with pytest.raises(openai.BadRequestError):
                client.completions.create(model="student", prompt="The", n=5)
        running.wait_until(lambda: not running.service.engine.open)
        engine = running.service.engine

        def left():
            gc.collect()
            # By their type, since to ask some objects of libraries for their class imports something.
            held = [each for each in gc.get_objects() if issubclass(type(each), Request | Call | ReplyText)]
            return [each for each in held if getattr(each, "engine", engine) is engine]

        # A client that closed its stream is noticed by the event loop in its own time.
        for _ in range(40):
            if not left():
                break
            time.sleep(0.05)
        assert left() == []


def test_ended_twice_a_server_does_not_wait(serving):
    with serving() as running, running.client() as client:
        stream = client.completions.create(model="student", stream=True, **LONG | {"max_tokens": 500})
        next(iter(stream))
        running.end()
        running.end()
        running.thread.join(10)
        assert running.ended is False
        assert "1 replies are cut off" in running.said[-1]
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            list(stream)


# The first server is a child, killed while its parent waits to be the second: what both import is imported once.
TWICE = """
import os, sys
import gendistill.serve.server, gendistill.serve.service
from gendistill.cli import main
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    print(os.getpid(), flush=True)
main()
"""


def wait_for(port):
    """Until somebody answers there."""
    for _ in range(3000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("the port was never opened")


def test_killed_and_started_again_on_the_same_port_and_ended_by_a_signal():
    probe = bind("127.0.0.1", 0)
    port = probe.getsockname()[1]
    probe.close()
    command = [sys.executable, "-c", TWICE, "serve", "embedded", "--device", "cpu", "--port", str(port)]
    how = dict(env=os.environ | {"GENDISTILL_API_KEY": "geheim"}, text=True)
    process = subprocess.Popen(command, **how, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    long = dict(model="embedded", prompt="The", temperature=2, seed=0, stream=True)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="geheim", max_retries=0) as client:
        child = int(process.stdout.readline())
        assert "serving" in process.stdout.readline()
        wait_for(port)
        stream = iter(client.completions.create(**long, max_tokens=900))
        next(stream)
        os.kill(child, signal.SIGKILL)
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            list(stream)
        # Said by the second: the first's port may outlive its connections for a moment.
        assert "serving" in process.stdout.readline()
        wait_for(port)
        stream = iter(client.completions.create(**long, max_tokens=60))
        next(stream)
        process.send_signal(signal.SIGTERM)
        *_, last = stream
        assert last.choices[0].finish_reason == "length"
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert "SIGTERM: no new requests; 1 replies are finished first" in output
        assert "Traceback" not in errors


def test_another_address_is_not_served_without_a_key(monkeypatch):
    """Before a model is loaded: there is none of that name."""
    monkeypatch.delenv("GENDISTILL_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        code, output = in_process("serve", "no-such-model", "--host", host)
        assert code == 2 and f"--host {host}" in output and "GENDISTILL_API_KEY" in output
        check_host(host, "key")
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        check_host(host, None)


def test_a_port_in_use_is_said_before_a_model_is_loaded():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        code, output = in_process("serve", "no-such-model", "--port", port)
        assert code == 2 and f"--port {port}: cannot be served on" in output
    code, output = in_process("serve", "no-such-model", "--host", "no.such.host.invalid", "--api-key-file", __file__)
    assert code == 2


def test_the_key_comes_of_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENDISTILL_API_KEY", "from-environment")
    assert read_key(None) == "from-environment"
    path = tmp_path / "key"
    path.write_text("from-file\nsomething else\n")
    assert read_key(path) == "from-file"
    for wrong in ("", "\n", "two words"):
        path.write_text(wrong)
        with pytest.raises(UserError, match="one word, and not empty"):
            read_key(path)
    monkeypatch.setenv("GENDISTILL_API_KEY", "")
    with pytest.raises(UserError, match="GENDISTILL_API_KEY"):
        read_key(None)
    with pytest.raises(UserError, match="cannot be read"):
        read_key(tmp_path / "none")


def test_the_context_is_the_models_unless_less_is_asked_for():
    config = GendistillConfig(max_position_embeddings=64)
    assert (context_of(config, None), context_of(config, 32)) == (64, 32)
    with pytest.raises(UserError, match="--context 65: the model's positions reach 64"):
        context_of(config, 65)
    with pytest.raises(UserError, match="give --context"):
        context_of(PreTrainedConfig(), None)


def test_a_students_folder_is_served_under_the_name_of_run_and_stage(student, tokenizer, tmp_path, serving):
    folder = tmp_path / "demo/2-distillation/student"
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = dict(name=None, key=None, context=None, rows=4, queue=4, device="cpu", dtype="auto")
    made = load_service(str(folder), **settings)
    assert (made.name, made.context) == ("demo-2-distillation", 1024)
    with serving(name=made.name, model=made.model, tokenizer=made.tokenizer) as running, running.client() as client:
        got = client.completions.create(model=made.name, prompt="The", temperature=0, max_tokens=8)
    (expected,) = generate(student, tokenizer, [tokenizer("The").input_ids], 8)
    assert got.choices[0].text.strip() == expected.text


def test_a_model_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr(service_module, "can_decode", lambda model: False)
    settings = dict(name=None, key=None, context=None, rows=4, queue=4, device="cpu", dtype="auto")
    with pytest.raises(UserError, match="a Qwen3ForCausalLM cannot be served"):
        load_service("embedded", **settings)
