"""Decoding by our own loop: what transformers' generate() says, whatever batch and prefix the prompts share."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from gendistill.distributed import Share
from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.ranking import render_prompts
from gendistill.inference import decoding
from gendistill.inference import prefill as prefill_module
from gendistill.inference.decoding import Decoding, DecodingBatch, Sampling, can_decode
from gendistill.inference.generation import generate, rows_that_fit
from gendistill.inference.prefill import Prefix, extend, prefill
from gendistill.inference.sampling import draw_from_all, draw_from_likeliest, uniform_draws
from gendistill.inference.stopping import end_ids
from gendistill.models.cache import SlotLayer, beside
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.recipe.evaluation import make_task
from small_models import VARIANTS, make_student, make_teacher

ENDS = [1]
SHARED = [7, 3, 9, 4] * 10


NAMES = [name for name in VARIANTS if not (name.startswith("qwen2") and name.endswith("mixed"))]


@cache
def teacher(name):
    """In float64, as the students; shared by all tests, which leave weights as they are."""
    return make_teacher(name).double()


@cache
def student(name):
    return make_student(**VARIANTS[name]).double()


def models():
    yield from (pytest.param(teacher, name, id=f"teacher-{name}") for name in ("qwen3", "qwen2", "llama"))
    yield from (pytest.param(student, name, id=name) for name in NAMES)


every_model = pytest.mark.parametrize("make, name", list(models()))


def prompts_of(*lengths, shared=()):
    draw = torch.Generator().manual_seed(0)
    return [[*shared, *torch.randint(2, 97, (length,), generator=draw).tolist()] for length in lengths]


def generated(model, prompt, steps):
    settings = GenerationConfig(do_sample=False, max_new_tokens=steps, eos_token_id=ENDS, pad_token_id=0)
    model.generation_config = settings
    return model.generate(torch.tensor([prompt]))[0, len(prompt) :].tolist()


def decode(model, prompts, steps, ends, rows=64, prefix=None, **how):
    decoding = Decoding(model, rows, steps, ends=ends, pad=0, **how)
    found = {}
    for ended in decoding.run(prompts, prefix):
        assert not found.keys() & ended.keys()
        found |= ended
    return [found[i] for i in range(len(prompts))]


def replies(model, prompts, steps=12, **how):
    return decode(model, prompts, steps, ENDS, **how)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@every_model
def test_replies_are_those_of_generate_behind_a_prefix_too(make, name):
    model = make(name)
    assert can_decode(model)
    prompts = prompts_of(5, 1, 9, 2, 30, shared=SHARED)
    expected = [generated(model, prompt, 12) for prompt in prompts]
    prefix = Prefix.of(model, prompts)
    assert prefix.length == len(SHARED)
    for _ in range(2):  # the prefix is as good the second time
        assert replies(model, prompts, prefix=prefix) == expected
    assert replies(model, prompts) == expected
    assert [replies(model, [prompt])[0] for prompt in prompts] == expected
    assert name == "llama" or len(set(map(tuple, expected))) > 2  # that random teacher says one token for ever


@every_model
def test_prompts_that_join_a_batch_get_the_replies_they_get_alone(make, name):
    """Three rows for eight prompts of unequal length, replies of unequal length."""
    model = make(name)
    prompts = prompts_of(*range(17, 9, -1), shared=SHARED)
    unended = decode(model, prompts, 14, [-1])
    said = [token for ids in unended for token in ids]
    ends = sorted(set(said), key=said.count)[len(set(said)) // 2 :][:4]  # said now and then
    alone = [decode(model, [prompt], 14, ends)[0] for prompt in prompts]
    assert decode(model, prompts, 14, ends, rows=3) == alone
    assert decode(model, prompts, 14, ends, rows=3, prefix=Prefix.of(model, prompts)) == alone
    assert decode(model, prompts, 14, ends, rows=1) == alone


def test_replies_that_end_leave_the_batch_and_change_nothing(monkeypatch):
    model = make_student("qwen2", keep=(1,), mixer="kda").double()
    prompts = prompts_of(*range(3, 19))
    unended = decode(model, prompts, 24, [-1])
    said = [token for ids in unended for token in ids]
    ends = sorted(set(said), key=said.count)[len(set(said)) // 2 :][:4]  # said now and then
    rows = []
    reshape = DecodingBatch.reshape
    monkeypatch.setattr(DecodingBatch, "reshape", lambda batch, going: (rows.append(len(going)), reshape(batch, going)))
    got = decode(model, prompts, 24, ends)
    for ids, whole in zip(got, unended, strict=True):
        length = next((at for at, token in enumerate(whole) if token in ends), len(whole) - 1) + 1
        assert ids == whole[:length]
    assert rows and rows == sorted(rows, reverse=True)


def test_prefill_in_pieces_is_prefill_in_one(monkeypatch):
    """Rows that end in any piece, one at a piece's border, behind a prefix and not."""
    for name in ("qwen2-kda-hybrid", "qwen3-window-hybrid", "qwen3-kda-beside-window", "qwen3-kda-pure-share-by-token"):
        model = make_student(**VARIANTS[name]).double()
        prompts = prompts_of(5, 16, 17, 40, 33)
        whole = prefill(model, prompts, None, 60)
        monkeypatch.setattr(prefill_module, "SHORTEST_PIECE", 16)
        monkeypatch.setitem(prefill_module.TOKENS_OF_A_PIECE, "cpu", 16)
        pieces = prefill(model, prompts, None, 60)
        torch.testing.assert_close(pieces.logits, whole.logits, rtol=0, atol=1e-6)
        ids = prompts_of(3, 2, 6, 1, 4)
        got, expected = (extend(model, one, range(5), ids) for one in (pieces, whole))
        for row, tokens in enumerate(ids):
            torch.testing.assert_close(got[row, : len(tokens)], expected[row, : len(tokens)], rtol=0, atol=1e-6)
        monkeypatch.undo()


@every_model
def test_extending_prefilled_prompts_is_one_pass(make, name):
    """Tokens of unequal length behind prompts of unequal length, several to a prompt."""
    model = make(name)
    prompts = prompts_of(4, 1, 11, shared=SHARED)
    rows, ids = [2, 0, 0, 1], prompts_of(3, 1, 6, 2)
    prefilled = prefill(model, prompts, Prefix.of(model, prompts))
    got = extend(model, prefilled, rows, ids)
    again = extend(model, prefilled, rows[::-1], ids[::-1])
    for place, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
        whole = model(torch.tensor([prompts[row] + tokens]), use_cache=False).logits[0]
        for logits in (got[place], again[len(rows) - 1 - place]):
            torch.testing.assert_close(logits[: len(tokens)], whole[-len(tokens) :], rtol=0, atol=1e-4)
        torch.testing.assert_close(prefilled.logits[row], whole[-len(tokens) - 1], rtol=0, atol=1e-4)


@every_model
@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2], [0]])
def test_neighbours_are_extended_where_they_lie(make, name, rows):
    """Again and again, and with more tokens before fewer: what an earlier extension left behind them is not seen."""
    model = make(name)
    prompts = prompts_of(4, 1, 11, shared=SHARED)
    prefilled = prefill(model, prompts, Prefix.of(model, prompts), room=max(map(len, prompts)) + 6)
    for lengths in ((6, 3, 5), (1, 2, 1), (4, 4, 4)):
        ids = prompts_of(*lengths[: len(rows)])
        got = extend(model, prefilled, rows, ids)
        for place, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
            whole = model(torch.tensor([prompts[row] + tokens]), use_cache=False).logits[0]
            torch.testing.assert_close(got[place, : len(tokens)], whole[-len(tokens) :], rtol=0, atol=1e-4)
    if prefilled.cache is not None:  # and nothing of attention was copied
        pairs = zip(beside(prefilled.cache, rows).layers, prefilled.cache.layers, strict=True)
        kept = [(one, own) for one, own in pairs if isinstance(own, SlotLayer)]
        assert all(one.keys.data_ptr() == own.keys[rows[0]].data_ptr() for one, own in kept)


def test_a_sample_depends_on_its_key_and_not_on_its_batch():
    model = make_teacher("qwen3").double()
    prompts = prompts_of(4, 9, 4, 2)
    keys = ["a", "b", "c", "d"]
    together = replies(model, prompts, sampling=Sampling(1.0, 0.9, keys))
    alone = [
        replies(model, [prompt], sampling=Sampling(1.0, 0.9, [key]))[0]
        for prompt, key in zip(prompts, keys, strict=True)
    ]
    assert alone == together
    assert replies(model, prompts, sampling=Sampling(1.0, 0.9, [*"bcde"])) != together
    likeliest = replies(model, prompts, sampling=Sampling(1.0, 1e-6, keys))
    assert likeliest == replies(model, prompts)


def test_samples_follow_the_probabilities_of_the_likeliest():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]]).expand(4000, -1) * 0.7
    keys = [str(row) for row in range(4000)]
    drawn = draw_from_likeliest((logits / 0.7).softmax(-1), uniform_draws(keys, 1), 0.9)
    shares = torch.bincount(drawn, minlength=4) / 4000
    expected = torch.tensor([2.0, 0.0, 1.0]).softmax(-1)  # the fourth is not needed for 90 %
    torch.testing.assert_close(shares, torch.tensor([*expected, 0.0]), rtol=0, atol=0.03)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, tokenizer, model):
    prompts = prompts_of(*range(3, 14))
    expected = generate(model, tokenizer, prompts, 6, 1)
    whole = decoding.prefill
    sizes = []

    def scarce(model, prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(decoding, "prefill", scarce)
    assert generate(model, tokenizer, prompts, 6, 11) == expected
    assert sizes[:3] == [11, 5, 2] and max(sizes[3:]) <= 2
    monkeypatch.setattr(decoding, "prefill", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UserError, match="single prompt of 13 tokens"):
        generate(model, tokenizer, prompts, 6, 4)


def test_200_replies_of_the_embedded_teacher_are_those_of_generate():
    """Sums with their solutions and letters, in one call; by transformers those of one length."""
    model = load_model("embedded", torch.float32, torch.device("cpu"))
    tokenizer = load_tokenizer("embedded", model.config.vocab_size)
    prompts = []
    for kind, source in (("multiple_choice", "choice"), ("last_number", "arithmetic")):
        task = make_task(kind=kind, path=f"embedded:{source}", items=100)
        prompts += render_prompts(tokenizer, load_items(source, task, seed=0))
    replies = generate(model, tokenizer, prompts, 40)
    ends = end_ids(model, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=40, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    lengths = {len(prompt) for prompt in prompts}
    for length in lengths:  # those of one length together, so that nothing is padded
        places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
        ids = model.generate(torch.tensor([prompts[place] for place in places]))[:, length:].tolist()
        for place, said in zip(places, ids, strict=True):
            until = next((at for at, token in enumerate(said) if token in ends), len(said))
            assert list(replies[place].ids) == said[:until]


def test_sampling_without_a_cut_follows_all_probabilities():
    """Of 97 words, some of them never; drawn numbers fall where the cumulative probability says."""
    logits = torch.randn(97, generator=torch.Generator().manual_seed(0))
    logits[::3] = -torch.inf
    draws = torch.linspace(0, 1, 20001, dtype=torch.float64)[1:-1]
    drawn = draw_from_all((logits / 0.7).softmax(-1).expand(len(draws), -1), draws[:, None])
    shares = torch.bincount(drawn, minlength=97) / len(draws)
    torch.testing.assert_close(shares, (logits / 0.7).softmax(-1), rtol=0, atol=1e-4)
    assert not shares[::3].any()


def test_no_token_of_no_probability_is_drawn_between_two_likely_ones():
    """Sums in float32 over so many words are rounded, and may fall between two of them."""
    logits = torch.full((1, 150_000), -30.0)
    logits[0, [0, 70_000, 149_999]] = 0.0
    for edge in (1 / 3, 2 / 3):
        draws = edge + torch.linspace(-1e-6, 1e-6, 50, dtype=torch.float64)[:, None]
        drawn = draw_from_all(logits.softmax(-1).expand(50, -1), draws)
        # A draw that falls on the others is one of some hundred million.
        assert set(drawn.tolist()) <= {0, 70_000, 149_999}


@pytest.mark.parametrize(
    ("device", "prompts", "length", "processes", "rows"),
    [
        ("cuda", 1319, 330, 1, 440),  # 446 fit: three batches of one size
        ("cuda", 1319, 330, 2, 330),  # of 660, two
        ("cuda", 100, 330, 1, 100),
        ("cuda", 100, 330, 3, 34),
        ("cuda", 5000, 8, 1, 834),  # 989 fit
        ("cuda", 3, 10**6, 1, 1),
        ("cuda", 0, 0, 2, 1),
        ("cpu", 1319, 330, 2, 32),
        ("cpu", 3, 10**6, 1, 1),
    ],
)
def test_batches_are_of_one_size(device, prompts, length, processes, rows):
    model = SimpleNamespace(config=make_teacher("qwen3").config, device=torch.device(device))
    assert rows_that_fit(model, [[0] * length] * prompts, 256, Share(0, processes)) == rows
