"""Continuous batching: requests with settings of their own join a batch that runs, and are answered as if alone."""

import pytest
import torch

from gendistill.inference import decoding
from gendistill.inference.batch import DecodingBatch
from gendistill.inference.decoding import ContinuousBatching, Decoding, Sampling
from gendistill.inference.requests import Request
from gendistill.inference.sampling import TOP
from small_models import VARIANTS, make_student, make_teacher

HOW = dict(ends=[1], pad=0)
NAMES = ["qwen2-kda-hybrid", "qwen3-window-hybrid", "qwen3-kda-beside-window", "qwen3-mamba2-pure"]


class Watched(Request):
    """Notes what it is told; ends itself after so many tokens, if that is given."""

    is_watched = True

    def __init__(self, ids, budget, *, most=None, **how):
        super().__init__(ids, budget, **how)
        self.most, self.said, self.likelihoods, self.told = most, [], [], []

    def look(self, new, likelihoods, is_done):
        self.said += new
        self.likelihoods += likelihoods
        self.told.append(is_done)
        return self.most is not None and len(self.said) >= self.most


class Arrivals:
    """Requests that come one by one, each so many looks after the one before."""

    joins_at_once = True

    def __init__(self, requests, looks):
        self.requests, self.looks = list(requests), looks
        self.count = 0
        self.joined = {}  # by the request: how many looks there were when it was taken
        self.given_back = 0

    def __len__(self):
        self.count += 1
        return min(self.count // self.looks + 1 - len(self.joined), len(self.requests))

    def take(self, most):
        taken = [self.requests.pop(0) for _ in range(min(most, self.count // self.looks + 1 - len(self.joined)))]
        self.joined |= {request: self.count for request in taken}
        return taken

    def put_back(self, requests):
        self.given_back += len(requests)
        self.requests = [*requests, *self.requests]
        for request in requests:
            del self.joined[request]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def prompts_of(*lengths):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(2, 97, (length,), generator=draw).tolist() for length in lengths]


def alone(model, request):
    sampling = Sampling(request.temperature, request.top_p, [request.key]) if request.temperature else None
    (found,) = Decoding(model, 1, request.max_new_tokens, sampling=sampling, **HOW).run([request.ids])
    return found[0]


def serve(model, queue, rows):
    given = {}
    for ended in ContinuousBatching(model, rows, **HOW).run(queue):
        assert not given.keys() & ended.keys()
        given |= ended
    return given


@pytest.mark.parametrize("name", NAMES)
def test_requests_that_join_are_answered_as_if_alone(name, monkeypatch):
    """Greedy, sampled from all and from the likeliest side by side; longer and longer prompts, budgets of all sizes."""
    model = make_student(**VARIANTS[name]).double()
    settings = [{}, dict(temperature=1.3), dict(temperature=0.8, top_p=0.7), dict(logprobs=True)]
    requests = [
        Watched(prompt, 5 + 7 * i % 30, key=str(i), **settings[i % 4])
        for i, prompt in enumerate(prompts_of(*range(3, 43, 4)))
    ]
    sizes = []
    reshape = DecodingBatch.reshape

    def noted(batch, *change):
        reshape(batch, *change)
        sizes.append(len(batch.requests))

    monkeypatch.setattr(DecodingBatch, "reshape", noted)
    queue = Arrivals(requests, looks=3)
    given = serve(model, queue, rows=6)
    expected = {request: alone(model, request) for request in requests}
    assert given == expected
    assert {request: request.said for request in requests} == expected
    assert all(request.told.index(True) == len(request.told) - 1 for request in requests)
    assert max(sizes) in (4, 6)
    # Nobody waited for the whole batch to end.
    assert list(queue.joined.values())[:4] == [0, 3, 6, 9]


def test_a_request_takes_the_first_row_that_is_free():
    """Of sixteen, where a closed list would wait for a second."""
    model = make_teacher("qwen3").double()
    requests = [Watched(prompt, 60) for prompt in prompts_of(*[4] * 17)]
    requests[0].max_new_tokens = 24
    queue = Arrivals(requests, looks=1)
    serve(model, queue, rows=16)
    joined = list(queue.joined.values())
    assert joined[15] < joined[16] <= 26
    assert requests[16].said == alone(model, requests[16])


def test_a_request_that_says_so_frees_its_row():
    model = make_teacher("qwen3").double()
    first, second, third = (
        Watched(prompt, 40, most=most) for prompt, most in zip(prompts_of(4, 5, 6), (3, None, None), strict=True)
    )
    queue = Arrivals([first, second, third], looks=1)
    given = serve(model, queue, rows=2)
    assert given[first] == first.said == alone(model, first)[:3]
    assert (given[second], given[third]) == (alone(model, second), alone(model, third))
    assert first.told == [False, False]  # its first token comes of the prompt, so that two steps make three


def test_log_probabilities_are_the_models_own():
    """Whatever the temperature, and for requests that join later, beside some that ask for none."""
    model = make_student(**VARIANTS["qwen2-kda-hybrid"]).double()
    requests = [
        Watched(prompt, 12, temperature=2.0 * (i % 2), key=str(i), logprobs=i != 1)
        for i, prompt in enumerate(prompts_of(5, 9, 3, 7))
    ]
    serve(model, Arrivals(requests, looks=2), rows=2)
    for request in requests:
        if not request.logprobs:
            assert request.likelihoods == []
            continue
        logits = model(torch.tensor([request.ids + request.said]), use_cache=False).logits[0]
        expected = logits.float().log_softmax(-1)[len(request.ids) - 1 : -1]  # [new, V]
        assert len(request.likelihoods) == len(request.said)
        for token, own, row in zip(request.said, request.likelihoods, expected, strict=True):
            assert own.logprob == pytest.approx(row[token].item(), abs=1e-3)
            assert [id for id, _ in own.top] == row.topk(TOP).indices.tolist()
            torch.testing.assert_close(torch.tensor([p for _, p in own.top]), row.topk(TOP).values, rtol=0, atol=1e-3)


def test_a_sample_from_all_tokens_is_the_same_beside_one_from_the_likeliest():
    model = make_teacher("qwen3").double()
    prompts = prompts_of(4, 6)
    first = Watched(prompts[0], 12, temperature=1.0, key="a")
    serve(model, Arrivals([first, Watched(prompts[1], 12, temperature=1.0, top_p=0.5, key="b")], looks=1), rows=2)
    assert first.said == alone(model, first)


def test_what_does_not_fit_waits_and_harms_nobody(monkeypatch):
    model = make_teacher("qwen3").double()
    requests = [Watched(prompt, 12) for prompt in prompts_of(4, 6, 8)]
    whole = decoding.prefill
    going = []

    def scarce(model, prompts, *rest):
        going.append(sum(bool(request.told) and not request.told[-1] for request in requests))
        if going[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(decoding, "prefill", scarce)
    queue = Arrivals(requests, looks=1)
    given = serve(model, queue, rows=3)
    assert queue.given_back == 1
    monkeypatch.undo()
    assert given == {request: alone(model, request) for request in requests}
