"""A converted student of the embedded teacher behind a real server in a thread, asked by the openai package."""

import asyncio
import threading
from contextlib import contextmanager

import openai
import pytest
import torch

from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.serve.server import Server, bind, url_of
from gendistill.serve.service import Service


class Running:
    """A server that runs, and its clients.

    Attributes:
        said: what it printed.
        ended: what `run_until_ended` returned.
    """

    def __init__(self, service):
        self.service, self.said, self.ended = service, [], None
        self.server = Server(service, self.said.append)
        self.bound = bind("127.0.0.1", 0)
        self.url = url_of(self.bound)
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        async def run():
            self.loop = asyncio.get_running_loop()
            return await self.server.run_until_ended(self.bound)

        self.ended = asyncio.run(run())

    def client(self, kind=openai.OpenAI, key="any"):
        return kind(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def end(self):
        self.loop.call_soon_threadsafe(self.server.end, "test")

    def wait_until(self, holds):
        for _ in range(2000):
            if holds():
                return
            threading.Event().wait(0.005)
        raise AssertionError("it never came")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("embedded", 2048)


@pytest.fixture(scope="session")
def student():
    """Two of eight layers keep attention; untrained, so that it says strange things at length."""
    teacher = load_model("embedded", torch.float32, "cpu")
    made, _ = convert(teacher, student_config(teacher.config, [2, 5]), seed=0)
    return made.float().eval()


@pytest.fixture(scope="session")
def serving(student, tokenizer):
    """Starts servers: `with serving(rows=4) as running`; each ends with all replies given."""

    @contextmanager
    def start(**limits):
        settings = dict(name="student", model=student, tokenizer=tokenizer, context=512, rows=16, queue=64)
        running = Running(Service(**settings | limits))
        running.thread.start()
        running.wait_until(lambda: running.server.started)
        try:
            yield running
        finally:
            if running.thread.is_alive():
                running.end()
            running.thread.join()

    return start


@pytest.fixture(scope="session")
def running(serving):
    """One for all tests that harm none."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def client(running):
    with running.client() as client:
        yield client
