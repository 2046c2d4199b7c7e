"""Records that no stage trains on: which they are depends on nothing but their numbers."""

import json
import re

import numpy as np
import pytest

from gendistill.data.dataset import prepare
from gendistill.data.held_out import EVERYTHING, Part, is_held_out
from gendistill.errors import UserError
from gendistill.recipe.data import Source

RECORDS = 600
SHARE = 0.1
HELD = {number for number in range(RECORDS) if is_held_out(number, SHARE)}


@pytest.fixture
def prepared(tmp_path, make_tokenizer):
    """Packed sequences of numbered texts, by default of a part of them."""
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps({"text": f"<{number:03}>"}) + "\n" for number in range(RECORDS)))

    def make(part, tokens=256, **settings):
        source = Source(path=str(path), **settings.pop("source", {}))
        given = dict(sequence_length=16, loss_on="all", seed=0, cache=tmp_path / "cache") | settings
        return prepare([source], make_tokenizer(), tokens=tokens, part=part, **given)

    return make


@pytest.fixture
def numbers(make_tokenizer):
    """The numbers of the texts that stand whole in a data set."""

    def find(dataset):
        rows = "".join(make_tokenizer().decode(row) for row in dataset[:]["input_ids"])
        return {int(number) for number in re.findall(r"<(\d{3})>", rows)}

    return find


def test_a_share_is_held_out_and_a_larger_one_holds_out_the_same():
    held = {share: {n for n in range(20_000) if is_held_out(n, share)} for share in (0.01, 0.1)}
    assert len(held[0.01]) == pytest.approx(200, abs=45) and len(held[0.1]) == pytest.approx(2000, abs=130)
    assert held[0.01] < held[0.1]
    # No pattern: of every fourth record as many as of any other.
    assert np.bincount([n % 4 for n in held[0.1]]).tolist() == pytest.approx([500] * 4, abs=70)
    assert not any(is_held_out(n, 0.0) for n in range(1000)) and not is_held_out(0, 0.5)


@pytest.mark.parametrize("change", [{}, dict(sequence_length=24), dict(seed=3), dict(source=dict(weight=2))], ids=str)
def test_no_record_that_is_held_out_is_trained_on_in_any_pass(prepared, numbers, change):
    everything = RECORDS * 6
    change = change | dict(source=change.get("source", {}) | dict(epochs=3))
    trained = numbers(prepared(Part(SHARE), tokens=2 * everything, **change))
    held_out = numbers(prepared(Part(SHARE, held_out=True), tokens=everything, **change))
    assert held_out and held_out <= HELD
    assert trained and not trained & HELD
    assert len(trained) > 0.95 * (RECORDS - len(HELD))


def test_of_few_records_there_are_fewer_sequences(prepared):
    part = Part(SHARE, held_out=True)
    few = prepared(part, tokens=10_000)
    documents = few.stats["documents"]
    assert documents == len(HELD) and len(few) == -(-few.stats["tokens"] // 16)
    assert few.stats["padding_tokens"] == len(few) * 16 - few.stats["tokens"] > 0
    assert len(prepared(part, tokens=64)) == 4  # else as many as are asked for
    none = prepared(Part(0.0001, held_out=True))
    assert len(none) == 0 and none.stats["loss_tokens"] == 0
    assert len(prepared(Part(0.0001, held_out=True))) == 0  # found again


def test_it_has_a_key_of_its_own_and_without_it_keys_are_as_before(prepared):
    parts = [EVERYTHING, Part(SHARE), Part(SHARE, held_out=True), Part(0.2)]
    assert len({prepared(part).key for part in parts}) == 4
    assert prepared(EVERYTHING).key == prepared(Part(0.0)).key
    assert prepared(Part(SHARE, held_out=True)).folder.name == prepared(Part(SHARE, held_out=True)).key


def test_a_source_that_lacks_what_is_held_out_says_so(prepared):
    with pytest.raises(UserError, match=r"exhausted .* epochs: 2 \(0\.1 of its records are held out; held_out: 0"):
        prepared(Part(SHARE), tokens=RECORDS * 6)
    assert len(prepared(EVERYTHING, tokens=RECORDS * 5)) == RECORDS * 5 // 16 + 1
