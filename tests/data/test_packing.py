import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.data import dataset, mixture, stream
from gendistill.data.dataset import PackedDataset, prepare
from gendistill.data.encoding import Encoder
from gendistill.data.packing import ConversationPacker, TextPacker, lay_out_row, make_piece
from gendistill.errors import UserError
from gendistill.recipe.data import Source

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    def write(name: str, records: list[dict]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


@pytest.fixture
def prepared(tmp_path, make_tokenizer):
    def run(sources, **settings) -> PackedDataset:
        defaults = {"sequence_length": 16, "tokens": 64, "loss_on": "all", "seed": 0, "cache": tmp_path / "cache"}
        return prepare(sources, make_tokenizer(CHATML), **(defaults | settings))

    return run


def pieces_of(data: PackedDataset) -> list[tuple[list[int], list[int]]]:
    """(ids, loss mask) of each run of tokens whose positions start at 0, padding included, in the rows' order."""
    found = []
    for row in range(len(data)):
        columns = data[row]
        starts = np.flatnonzero(columns["position_ids"] == 0)
        for start, end in zip(starts, [*starts[1:], data.sequence_length], strict=True):
            assert columns["position_ids"][start:end].tolist() == list(range(end - start))
            found.append((columns["input_ids"][start:end].tolist(), columns["loss_mask"][start:end].tolist()))
    return found


def test_row_by_hand():
    row = lay_out_row([make_piece([5, 6, 7]), make_piece([8, 9], [True, True])], sequence_length=8, pad_id=1)
    assert row["input_ids"].tolist() == [5, 6, 7, 8, 9, 1, 1, 1]
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert row["loss_mask"].tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    assert [row[name].dtype for name in row] == [np.int32, np.int32, np.uint8]


def test_text_goes_on_in_the_next_row():
    packer = TextPacker(4)
    rows = packer.add([np.array([1, 2, 3]), np.array([4, 5, 6, 7, 8, 9])])
    rows += packer.add([np.array([10, 11, 12])])
    assert [[piece.input_ids.tolist() for piece in row] for row in rows] == [
        [[1, 2, 3], [4]],
        [[5, 6, 7, 8]],
        [[9], [10, 11, 12]],
    ]
    assert [[piece.opens_document for piece in row] for row in rows] == [[True, True], [False], [False, True]]


@settings(max_examples=50, deadline=None)
@given(windows=st.lists(st.lists(st.integers(1, 10), max_size=30), max_size=4))
def test_conversations_stay_whole_and_none_is_lost(windows):
    packer = ConversationPacker(10)
    numbers = iter(range(1000))
    given_in, packed = [], []
    for lengths in windows:
        pieces = [make_piece([next(numbers)] * length) for length in lengths]
        given_in += pieces
        for row in packer.add(pieces):
            assert sum(len(piece.input_ids) for piece in row) <= 10
            packed += row
    packed += packer.waiting
    assert sorted(map(id, packed)) == sorted(map(id, given_in))


def test_best_fit_finds_the_fullest_row():
    rows = ConversationPacker(10).add([make_piece([0] * length) for length in (4, 7, 6, 3, 9, 2)])
    assert sorted(sorted(len(piece.input_ids) for piece in row) for row in rows) == [[3, 7], [4, 6], [9]]


@settings(max_examples=50, deadline=None)
@given(windows=st.lists(st.lists(st.integers(1, 25), max_size=10), max_size=4))
def test_poured_pieces_glue_back_to_the_documents(windows):
    packer = TextPacker(7)
    numbers = iter(range(1000))
    documents, rows = [], []
    for lengths in windows:
        window = [np.array([next(numbers) for _ in range(length)]) for length in lengths]
        documents += window
        rows += packer.add(window)
    assert all(sum(len(piece.input_ids) for piece in row) == 7 for row in rows)
    pieces = [piece for row in [*rows, packer.waiting] for piece in row]
    assert [token for piece in pieces for token in piece.input_ids] == [token for ids in documents for token in ids]
    opened = [piece.input_ids[0] for piece in pieces if piece.opens_document]
    assert opened == [ids[0] for ids in documents]


def test_one_epoch_holds_every_token_once(prepared, folder, make_tokenizer):
    texts = [f"document {number}: " + "abc " * number for number in range(30)]
    tokenizer = make_tokenizer()
    encoded = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    texts[-1] += "x" * (-sum(map(len, encoded)) % 16)
    encoded[-1] = [*tokenizer.encode(texts[-1], add_special_tokens=False), tokenizer.eos_token_id]
    total = sum(map(len, encoded))
    data = prepared([Source(path=folder("a.jsonl", [{"text": text} for text in texts]))], tokens=total)

    pieces = pieces_of(data)
    assert sorted(token for ids, _ in pieces for token in ids) == sorted(token for ids in encoded for token in ids)
    assert all(any(contains(document, ids) for document in encoded) for ids, _ in pieces)
    assert all(mask == [0] + [1] * (len(ids) - 1) for ids, mask in pieces)
    assert data.stats["documents"] == 30
    assert data.stats["tokens"] == total
    assert (data.stats["padding_tokens"], data.stats["sources"][0]["passes"]) == (0, 1)


def test_documents_are_shuffled_before_they_are_packed(prepared, folder):
    # The source falls into two halves; a budget of one row should not be filled from the first alone.
    records = [{"text": "a"}] * 32 + [{"text": "b"}] * 32
    data = prepared([Source(path=folder("a.jsonl", records))], sequence_length=64, tokens=64)
    tokens, counts = np.unique(data[0]["input_ids"], return_counts=True)
    assert len(tokens) == 3 and counts.min() > 5


def test_a_source_is_read_again_as_often_as_allowed(prepared, folder):
    path = folder("a.jsonl", [{"text": "abc"}] * 4)
    data = prepared([Source(path=path, epochs=3)], tokens=4 * 4 * 3)
    assert (data.stats["sources"][0]["passes"], data.stats["documents"], len(data)) == (3, 12, 3)
    with pytest.raises(UserError, match=r"a\.jsonl: is exhausted after 32 tokens in 2 pass.* about 49 .* epochs: 4"):
        prepared([Source(path=path, epochs=2)], tokens=4 * 4 * 3)


def test_text_and_conversations_in_one_mixture(prepared, folder, make_tokenizer):
    text = Source(path=folder("a.jsonl", [{"text": "plain words"}] * 50))
    chat = Source(path=folder("b.jsonl", [{"q": "why", "a": "so"}] * 50), prompt="q", completion="a", epochs=2)
    data = prepared([text, chat], sequence_length=64, tokens=64 * 12)
    tokenizer = make_tokenizer()
    found = [tokenizer.decode(ids) for ids, _ in pieces_of(data)]
    assert "plain words<|im_end|>" in found
    assert "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\nso<|im_end|>" in found


def contains(document: list[int], ids: list[int]) -> bool:
    return any(document[start : start + len(ids)] == ids for start in range(len(document) - len(ids) + 1))


def test_every_token_comes_back_in_order(prepared, folder, make_tokenizer):
    # One long document in which no character repeats within a row, so that the shuffled pieces order themselves.
    tokenizer = make_tokenizer()
    alphabet = "".join(chr(code) for code in range(33, 127) if chr(code) not in "hiok")
    data = prepared([Source(path=folder("a.jsonl", [{"text": alphabet[:79]}]))], tokens=80)
    pieces = sorted((ids for ids, _ in pieces_of(data)), key=lambda ids: alphabet.find(tokenizer.decode(ids[:1])))
    assert tokenizer.decode([token for ids in pieces for token in ids]) == alphabet[:79] + "<|im_end|>"
    assert data.stats["documents"] == 1


def test_conversations_masks_and_padding(prepared, folder, make_tokenizer):
    records = [{"q": "q" * number, "a": "ABC"[: number % 3 + 1]} for number in range(1, 60)]
    source = Source(path=folder("a.jsonl", records), prompt="q", completion="a")
    data = prepared([source], sequence_length=256, tokens=8 * 256, loss_on="completion")
    tokenizer = make_tokenizer()
    expected = {
        f"<|im_start|>user\n{r['q']}<|im_end|>\n<|im_start|>assistant\n{r['a']}<|im_end|>": r["a"] for r in records
    }
    for ids, mask in pieces_of(data):
        text = tokenizer.decode(ids)
        if set(ids) == {tokenizer.pad_token_id}:
            assert not any(mask)
        else:
            targets = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
            assert tokenizer.decode(targets) == expected[text] + "<|im_end|>"
    valid_mask = data[:]["loss_mask"].sum()
    assert data.stats["loss_tokens"] == valid_mask > 0
    assert data.stats["tokens"] + data.stats["padding_tokens"] == 8 * 256
    assert data.stats["padding_tokens"] == (data[:]["input_ids"] == tokenizer.pad_token_id).sum()


def test_loss_on_all_learns_prompts_too(prepared, folder):
    source = Source(path=folder("a.jsonl", [{"q": "why", "a": "so"}] * 9), prompt="q", completion="a")
    data = prepared([source], sequence_length=64)
    assert data.stats["loss_tokens"] == data.stats["tokens"] - data.stats["pieces"]


def test_short_chats_waste_little(prepared, folder):
    lengths = np.random.default_rng(0).integers(1, 80, 400)
    source = Source(
        path=folder("a.jsonl", [{"q": "q" * int(n), "a": "A"} for n in lengths]), prompt="q", completion="a"
    )
    data = prepared([source], sequence_length=512, tokens=40 * 512, loss_on="completion")
    assert data.stats["padding_tokens"] < 0.03 * 40 * 512


def test_long_conversations_beside_short_ones_waste_little():
    """Of 2K to 16K tokens, each doubling as often, as `made: distant` gives them."""
    rng = np.random.default_rng(0)

    def padding(short_tokens: int) -> float:
        lengths = [int(2048 * 8 ** rng.random()) for _ in range(300)]
        lengths += [int(length) for length in rng.integers(50, 500, short_tokens // 275)]
        rows = ConversationPacker(16384).add([make_piece(np.zeros(length, np.int32)) for length in lengths])
        tokens = sum(len(piece.input_ids) for row in rows for piece in row)
        return 1 - tokens / (16384 * len(rows))

    assert padding(0) < 0.04
    assert padding(200_000) < 0.001


def test_sources_give_tokens_by_their_weights(prepared, folder, make_tokenizer):
    """Over a million tokens the shares are the recipe's to within a percent, whatever the documents' lengths."""
    lengths = np.random.default_rng(0).integers(1, 400, 3000)
    short = Source(path=folder("a.jsonl", [{"text": "a" * 9}] * 1000), weight=1, epochs=100)
    long = Source(path=folder("b.jsonl", [{"text": "b" * int(n)} for n in lengths]), weight=3, epochs=10)
    chat = Source(path=folder("c.jsonl", [{"q": "q" * 20, "a": "c"}] * 900), prompt="q", completion="a", epochs=20)
    data = prepared([short, long, chat], sequence_length=512, tokens=2**20)
    tokenizer = make_tokenizer()
    valid_mask = {"a": 0, "b": 0, "<|im_start|>": 0}  # in the rows themselves, by what a piece begins with
    for ids, _ in pieces_of(data):
        first = tokenizer.convert_ids_to_tokens(ids[0])
        if first == "<|im_end|>":  # of a text that ended the row before
            continue
        if first != tokenizer.pad_token:
            valid_mask[first] += len(ids)
    shares = np.array(list(valid_mask.values())) / sum(valid_mask.values())
    assert shares == pytest.approx([0.2, 0.6, 0.2], abs=0.01)
    assert [source["share"] for source in data.stats["sources"]] == pytest.approx([0.2, 0.6, 0.2], abs=0.005)
    assert data.stats["tokens"] + data.stats["padding_tokens"] == 2**20


def test_rows_follow_the_seed(prepared, folder):
    source = Source(path=folder("a.jsonl", [{"text": f"{number}"} for number in range(300)]))
    one, again, other = (
        prepared([source], seed=seed, cache=folder("x", []) + name) for seed, name in ((1, "1"), (1, "2"), (2, "1"))
    )
    assert np.array_equal(one[:]["input_ids"], again[:]["input_ids"])
    assert one.key == again.key != other.key
    assert not np.array_equal(one[:]["input_ids"], other[:]["input_ids"])


def test_cache_is_reused_until_something_changes(prepared, folder, tmp_path):
    source = Source(path=folder("a.jsonl", [{"text": "abc"}] * 50))
    first = prepared([source])
    stamp = (first.folder / "input_ids.npy").stat().st_mtime_ns
    assert prepared([source]).folder == first.folder
    assert (first.folder / "input_ids.npy").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [first.key, f"{first.key}.lock"]

    changed = [prepared([source], tokens=80), prepared([source], sequence_length=32), prepared([source], seed=1)]
    folder("a.jsonl", [{"text": "abd"}] * 50)
    changed.append(prepared([source]))
    assert len({data.key for data in [first, *changed]}) == 5


def test_tokenizer_and_template_are_in_the_key(folder, make_tokenizer, tmp_path):
    source = Source(path=folder("a.jsonl", [{"text": "abc"}] * 50))
    settings = {"sequence_length": 16, "tokens": 64, "loss_on": "all", "seed": 0, "cache": tmp_path / "cache"}
    plain, other_template, other_end = make_tokenizer(CHATML), make_tokenizer(CHATML + " "), make_tokenizer(CHATML)
    other_end.eos_token = "<|eot|>"
    key = prepare([source], plain, **settings).key
    plain("abc", truncation=True, max_length=2, padding="max_length")  # leaves traces in the tokenizer
    assert prepare([source], plain, **settings).key == key
    assert prepare([source], other_template, **settings).key != key
    assert prepare([source], other_end, **settings).key != key


@pytest.mark.parametrize("loss_on", ["all", "completion"])
@pytest.mark.parametrize("killed_in_round", [0, 1, 5])
def test_a_killed_preparation_goes_on_to_the_same_rows(
    prepared, folder, tmp_path, monkeypatch, killed_in_round, loss_on
):
    monkeypatch.setattr(mixture, "ROUND_TOKENS", 300)
    monkeypatch.setattr(stream, "WINDOW_DOCUMENTS", 7)
    chat = [{"q": "q" * (n % 13), "a": "ABC"[: n % 3 + 1]} for n in range(80)]
    sources = [Source(path=folder("b.jsonl", chat), prompt="q", completion="a", weight=2, epochs=9)]
    if loss_on == "all":
        sources.append(Source(path=folder("a.jsonl", [{"text": "abc" * n} for n in range(60)]), epochs=9))
    settings = {"sequence_length": 64, "tokens": 64 * 40, "loss_on": loss_on}
    whole = prepared(sources, cache=tmp_path / "whole", **settings)

    write, rounds = dataset.write_atomically, []

    def killed(path, text):
        if path.name == dataset.STATE:
            if len(rounds) == killed_in_round:
                raise KeyboardInterrupt
            rounds.append(path)
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(sources, **settings)
    (left,) = (tmp_path / "cache").glob("*.partial")
    assert left.is_dir()
    again = prepared(sources, **settings)
    assert again.stats == whole.stats and again.key == whole.key
    for name in dataset.COLUMNS:
        assert np.array_equal(again[:][name], whole[:][name])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [again.key, f"{again.key}.lock"]


@pytest.mark.parametrize("name", [*dataset.COLUMNS, "state", "header"])
def test_what_was_prepared_and_has_changed_since_is_prepared_anew(
    prepared, folder, tmp_path, monkeypatch, caplog, name
):
    """One bit of a row that a killed preparation left, of its state, or of a column's header."""
    monkeypatch.setattr(mixture, "ROUND_TOKENS", 300)
    source = Source(path=folder("a.jsonl", [{"text": "abc" * n} for n in range(60)]), epochs=9)
    settings = {"sequence_length": 64, "tokens": 64 * 40}
    whole = prepared([source], cache=tmp_path / "whole", **settings)
    store, stored = dataset._store_round, []

    def killed(*arguments):
        if len(stored) == 3:
            raise KeyboardInterrupt
        store(*arguments)
        stored.append(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_store_round", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared([source], **settings)
    (left,) = (tmp_path / "cache").glob("*.partial")
    path = left / (dataset.STATE if name == "state" else f"{'input_ids' if name == 'header' else name}.npy")
    data = bytearray(path.read_bytes())
    # Of the first row that was made, behind a header of 128 bytes.
    first = int(np.random.default_rng(0).permutation(40)[0])
    row = 128 + first * 64 * dataset.COLUMNS.get(name, np.uint8)().itemsize
    data[{"state": 40, "header": 25}.get(name, row)] ^= 1
    path.write_bytes(data)
    again = prepared([source], **settings)
    assert "is damaged; the data set is prepared anew" in caplog.text
    for column in dataset.COLUMNS:
        assert np.array_equal(again[:][column], whole[:][column])
    assert again.stats == whole.stats


def test_malformed_records_are_counted_shown_and_skipped_up_to_a_limit(prepared, folder, caplog, tmp_path):
    path = folder("a.jsonl", [{"text": "abc"} if number % 4 else {"body": "x"} for number in range(1, 101)])
    with open(path, "a") as file:
        file.write("{broken\n")
    source = Source(path=path, epochs=2)
    data = prepared([source], tokens=30 * 16)
    assert data.stats["sources"][0]["malformed"] > 26  # the second pass meets them again
    assert f"{path}:4: no field 'text'; the record has: body" in caplog.text
    assert len(caplog.records) < 10
    with pytest.raises(UserError, match=r"a\.jsonl:24: no field.*\n.* 6 malformed records so far.* allows 5"):
        prepared([source.model_copy(update={"skip_malformed": 5})], tokens=30 * 16, seed=7)


def test_a_full_disk_keeps_what_is_done(prepared, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(dataset.os, "posix_fallocate", full)
        with pytest.raises(UserError, match="No space left on device.*resumes from here"):
            prepared([Source(path=folder("a.jsonl", [{"text": "abc"}] * 50))])
    assert len(prepared([Source(path=folder("a.jsonl", [{"text": "abc"}] * 50))])) == 4


def test_incomplete_folder_is_refused(prepared, folder):
    data = prepared([Source(path=folder("a.jsonl", [{"text": "abc"}] * 50))])
    (data.folder / "loss_mask.npy").unlink()
    with pytest.raises(UserError, match=r"loss_mask\.npy missing; delete the folder and run again"):
        PackedDataset(data.folder)


@pytest.mark.parametrize("name", ["input_ids.npy", "position_ids.npy", "loss_mask.npy", "stats.json", "SHA256SUMS"])
def test_one_changed_bit_is_refused(prepared, folder, name):
    """Of the same size, so that only the content can tell; a mask with another bit trains on with no sign of it."""
    source = Source(path=folder("a.jsonl", [{"text": "abc"}] * 50))
    data = prepared([source])
    path = data.folder / name
    changed = bytearray(path.read_bytes())
    changed[-8] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UserError, match="changed since written|missing"):
        prepared([source])


def test_long_conversations_are_cut_and_hopeless_ones_skipped(prepared, folder):
    opening = len("<>user\n<>\n<>assistant\n")  # specials count as one token
    records = [{"q": "q" * (40 - opening - 1), "a": "A" * 20}] * 3 + [{"q": "q" * 100, "a": "A"}]
    source = Source(path=folder("a.jsonl", records), prompt="q", completion="a")
    data = prepared([source], sequence_length=50, tokens=100, loss_on="completion")
    (counts,) = data.stats["sources"]
    assert (counts["skipped"], counts["cut"]) == (1, 3)


@pytest.mark.parametrize(
    ("records", "fields", "settings", "message"),
    [
        ([{"text": ""}] * 4, {}, {}, "4 of 4 documents were skipped"),
        ([{"q": "q" * 90, "a": "A"}] * 3, {"prompt": "q", "completion": "a"}, {"loss_on": "completion"}, "3 of 3"),
        ([{"text": "abc"}], {}, {"loss_on": "completion"}, "plain text has no completions"),
        ([{"text": "abc"}] * 16, {}, {"sequence_length": 1}, "no loss token"),
        (
            [{"q": "q", "a": "\nA"}],
            {"prompt": "q", "completion": "a"},
            {},
            r"a\.jsonl:1: the tokenizer cuts the prompt",
        ),
    ],
)
def test_refuses(prepared, folder, records, fields, settings, message):
    with pytest.raises(UserError, match=message):
        prepared([Source(path=folder("a.jsonl", records), **fields)], **settings)


def test_ids_beyond_the_vocabulary_are_refused(folder, make_tokenizer, tmp_path):
    class Shrunk(type(make_tokenizer())):
        def __len__(self):
            return 50

    tokenizer = make_tokenizer()
    tokenizer.__class__ = Shrunk
    source = Source(path=folder("a.jsonl", [{"text": "zzz"}]))
    with pytest.raises(UserError, match="but says it has 50 tokens"):
        prepare([source], tokenizer, sequence_length=8, tokens=8, loss_on="all", seed=0, cache=tmp_path)


def test_embedded_conversations(prepared):
    source = Source(path="embedded:chat", messages="messages")
    data = prepared([source], sequence_length=512, tokens=2 * 512, loss_on="completion")
    assert 0 < data.stats["loss_tokens"] < data.stats["tokens"] - data.stats["pieces"]


def test_an_unknown_loss_mask_is_refused(make_tokenizer):
    with pytest.raises(ValueError, match="unknown loss_on 'replies'; known: all, completion"):
        Encoder(make_tokenizer(), 16, "replies")
