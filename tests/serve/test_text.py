"""Text out of tokens: the same in whatever pieces they come, whole characters, nothing of a stop string."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.inference.requests import Likelihood
from gendistill.models.loading import load_tokenizer
from gendistill.serve.text import HALF, ReplyText

TOKENIZER = load_tokenizer("embedded", 2048)
SAID = "Grüße aus Köln: 東京 und 🚀🚀, dann der Rest."
IDS = TOKENIZER(SAID).input_ids


def read(ids, cuts, stop=(), with_likelihoods=False):
    """All that is given out, of tokens that come in pieces which end at `cuts`; and the reply."""
    reply = ReplyText(TOKENIZER, stop)
    text, tokens = "", []
    edges = [0, *sorted(set(cuts)), len(ids)]
    for start, end in zip(edges, edges[1:], strict=False):
        piece = ids[start:end]
        likelihoods = [Likelihood(-1.0, [])] * len(piece) if with_likelihoods else ()
        more = reply.add(piece, likelihoods, is_last=end == len(ids))
        assert HALF not in more[0]
        text, tokens = text + more[0], tokens + more[1]
        if reply.is_stopped:
            break
    return text, tokens, reply


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, len(IDS) - 1), max_size=12), st.booleans())
def test_text_is_whole_in_whatever_pieces_tokens_come(cuts, with_likelihoods):
    text, tokens, reply = read(IDS, cuts, with_likelihoods=with_likelihoods)
    assert text == SAID and reply.count == len(IDS)
    assert [token.id for token in tokens] == (IDS if with_likelihoods else [])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, len(IDS) - 1), max_size=12),
    st.lists(st.tuples(st.integers(0, len(SAID) - 1), st.integers(1, 8)), min_size=1, max_size=3),
)
def test_the_first_stop_string_that_is_complete_counts(cuts, places):
    stop = [SAID[start : start + length] for start, length in places]
    # The shortest beginning of the text that holds one, by hand.
    whole = next(SAID[:end] for end in range(1, len(SAID) + 1) if any(part in SAID[:end] for part in stop))
    begin = min(whole.find(part) for part in stop if part in whole)
    text, tokens, reply = read(IDS, cuts, stop, with_likelihoods=True)
    assert reply.is_stopped and text == SAID[:begin]
    # Counted up to the first token with which the text holds it, whose text may go on behind it.
    assert whole in TOKENIZER.decode(IDS[: reply.count])
    assert whole not in TOKENIZER.decode(IDS[: reply.count - 1])
    assert [token.id for token in tokens] == IDS[: len(tokens)]
    assert len(TOKENIZER.decode(IDS[: len(tokens)]).rstrip(HALF)) <= begin


def test_what_may_begin_a_stop_string_is_held_until_it_is_known():
    ids = TOKENIZER("one two three four").input_ids
    reply = ReplyText(TOKENIZER, ["two three five"])
    given_out = [reply.add([id])[0] for id in ids]
    assert "two" not in "".join(given_out[:-1]) or given_out[-1]
    assert "".join(given_out) + reply.add([], is_last=True)[0] == "one two three four"
    # Not a letter of it left before it was clear that the string does not come.
    early = ReplyText(TOKENIZER, ["two three five"])
    at = next(n for n in range(1, len(ids)) if TOKENIZER.decode(ids[:n]).startswith("one two three"))
    assert "".join(early.add([id])[0] for id in ids[:at]) == "one "


def test_bytes_that_are_no_character_hold_nothing_back_and_read_as_in_the_whole():
    """Halves of characters in any order, some of which make whole ones, in pieces of any length."""
    halves = [id for id in TOKENIZER("🚀東ü").input_ids if HALF in TOKENIZER.decode([id])]
    for seed in range(1000):  # one in hundreds is cut where it matters
        rng = random.Random(seed)
        ids = rng.choices(halves, k=40)
        edges = [0, *sorted(rng.sample(range(1, 40), rng.randint(0, 12))), 40]
        reply = ReplyText(TOKENIZER, [])
        text = ""
        for start, end in pairwise(edges):
            text += reply.add(ids[start:end], is_last=end == 40)[0]
            assert end == 40 or end - reply.known <= 3
        assert text == TOKENIZER.decode(ids), seed


@pytest.mark.parametrize("stop", [[], ["x"]])
def test_an_empty_reply_is_an_empty_text(stop):
    assert ReplyText(TOKENIZER, stop).add([], is_last=True) == ("", [])
