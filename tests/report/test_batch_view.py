"""The view of a batch shows what the engine learns: weights on the predicted tokens, and what is wrong with them."""

import io
import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.console import Console

from gendistill.data.chat import encode_conversation
from gendistill.distill.batches import Loader, Step
from gendistill.embedded import records
from gendistill.models.loading import load_config, load_tokenizer
from gendistill.recipe.stage import Stage
from gendistill.report.batch_page import to_page
from gendistill.report.batch_view import (
    CUT,
    ELIDED_AT_LEAST,
    SHOWN,
    BatchView,
    print_view,
    token_texts,
    view_step,
    visible,
)

LENGTH = 64
END, PAD = 2, 0


class Rows:
    """Rows of documents (ids, loss mask) in this order, filled up with padding."""

    def __init__(self, *rows):
        columns = ("input_ids", "position_ids", "loss_mask")
        self.columns = {name: np.full((len(rows), LENGTH), PAD, np.int32) for name in columns}
        for row, documents in enumerate(rows):
            start = 0
            for ids, mask in [*documents, ([PAD] * (LENGTH - sum(len(ids) for ids, _ in documents)), None)]:
                place = (row, slice(start, start + len(ids)))
                self.columns["input_ids"][place] = ids
                self.columns["position_ids"][place] = np.arange(len(ids))
                self.columns["loss_mask"][place] = 0 if mask is None else mask
                start += len(ids)

    def __len__(self):
        return len(self.columns["input_ids"])

    def __getitem__(self, rows):
        return {name: column[rows] for name, column in self.columns.items()}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded", load_config("embedded").vocab_size)


@pytest.fixture(scope="module")
def conversation(tokenizer):
    """Ids and loss mask of a chat of a single turn."""
    chats = (record["messages"] for record in records("chat"))
    encoded = (encode_conversation(tokenizer, chat) for chat in chats)
    return next((ids, mask) for ids, mask in encoded if len(ids) <= LENGTH // 3 and ids.count(END) == 2)


def stage_of(dataset, objective="forward_kl", micro_batch=None):
    return Stage(
        objective=objective,
        train=["mixer"],
        data="text",
        tokens=len(dataset) * LENGTH,
        sequence_length=LENGTH,
        sequences_per_step=len(dataset),
        micro_batch=micro_batch or len(dataset),
        learning_rate=1e-3,
    )


def view_of(dataset, tokenizer, *, objective="forward_kl", change=None, **options):
    stage = stage_of(dataset, objective, options.pop("micro_batch", None))
    step = Loader(dataset, stage, **options).step(0)
    if change is not None:
        step = replace(step, batches=[change(batch) for batch in step.batches])
    return view_step(step, tokenizer, {END}, alignment=objective != "forward_kl")


def printed(view, **options):
    file = io.StringIO()
    print_view(view, Console(file=file, width=100, highlight=False), title="a title", **options)
    return file.getvalue()


def learnt(document):
    return [token.id for token in document.tokens if token.weight]


@pytest.mark.parametrize("options", [{}, {"fixed_shape": True}, {"micro_batch": 1}])
def test_weights_stand_on_the_tokens_of_the_replies(tokenizer, conversation, options):
    ids, mask = conversation
    view = view_of(Rows([conversation, conversation], [conversation]), tokenizer, **options)
    assert [len(row) for row in view.rows] == [3, 2]
    for document in view.documents:
        assert [token.id for token in document.tokens] == ids
        assert [token.weight for token in document.tokens] == [float(learnt) for learnt in mask]
        assert [token.position for token in document.tokens] == list(range(len(ids)))
        assert not document.cut and document.tokens[-1].text == "<|im_end|>" and document.tokens[-1].weight == 1
    assert not view.problems
    assert (view.tokens, view.learnt, view.padding_tokens) == (2 * LENGTH, 3 * sum(mask), 2 * LENGTH - 3 * len(ids))


def test_a_reply_reads_as_it_was_written(tokenizer, conversation):
    document = view_of(Rows([conversation]), tokenizer).documents[0]
    text = "".join(token.text for token in document.tokens)
    assert text.replace("·", " ").replace("↵", "\n") == tokenizer.decode(conversation[0])


def test_predictors_one_place_too_far_are_wrong_targets(tokenizer, conversation):
    view = view_of(
        Rows([conversation, conversation]), tokenizer, change=lambda b: replace(b, predictors=b.predictors + 1)
    )
    assert any("not the token after their predictor" in problem for problem in view.problems)
    wrong = [token for document in view.documents for token in document.tokens if token.kind == "wrong"]
    assert wrong and all(token.target != token.id for token in wrong)
    assert f"the target is id {wrong[0].target}" in to_page(view, title="t") and 'class="wrong"' in to_page(
        view, title="t"
    )
    assert "inconsistent" in printed(view) and "⟪" in printed(view)


@pytest.mark.parametrize("shift", [1, -1])
def test_a_shift_of_predictors_with_their_targets_is_seen_on_the_tokens(tokenizer, conversation, shift):
    """Each target is then the token after its predictor, and yet the wrong tokens are learnt."""

    def shifted(batch):
        predictors = batch.predictors + shift
        return replace(batch, predictors=predictors, targets=batch.input_ids.flatten()[predictors + 1])

    sound = view_of(Rows([conversation, conversation]), tokenizer).documents
    view = view_of(Rows([conversation, conversation]), tokenizer, change=shifted)
    assert [learnt(document) for document in view.documents] != [learnt(document) for document in sound]
    if shift > 0:
        assert view.problems == ["targets that open a document, so that another document predicts them: 2"]
        assert view.rows[0][2].padding and view.rows[0][2].learnt == 1
        assert "padding, " in printed(view) and "1 loss token " in printed(view)  # padding that is learnt is not folded
    else:
        assert all(document.tokens[-1].weight == 0 for document in view.documents)  # it would never learn to stop


def test_a_divisor_that_does_not_fit_and_doubled_or_lost_targets_are_told(tokenizer, conversation):
    dataset = Rows([conversation])
    step = Loader(dataset, stage_of(dataset)).step(0)
    (batch,) = step.batches
    count = step.loss_tokens
    doubled = {name: getattr(batch, name)[[*range(count), 0]] for name in ("predictors", "targets", "weights")}
    twice = replace(batch, **doubled)
    view = view_step(Step(0, [twice], count), tokenizer, {END}, alignment=False)
    assert view.problems == [
        "targets that are predicted more than once: 1",
        f"the step divides its loss by {count} tokens, its batches hold {count + 1}",
    ]
    assert max(token.weight for token in view.documents[0].tokens) == 2
    beyond = replace(batch, predictors=batch.predictors.clone().index_fill(0, torch.tensor([0]), LENGTH - 1))
    (problem,) = view_step(Step(0, [beyond], count), tokenizer, {END}, alignment=False).problems
    assert problem.endswith("not the token after their predictor: 1")


def test_disputed_boundaries_are_told(tokenizer, conversation):
    def moved(batch):
        boundaries = batch.cu_seqlens.clone()
        boundaries[1] += 1
        return replace(batch, cu_seqlens=boundaries)

    (problem,) = view_of(Rows([conversation, conversation]), tokenizer, change=moved).problems
    assert "cu_seqlens and positions disagree" in problem


def test_alignment_shows_what_is_compared(tokenizer, conversation):
    ids, _ = conversation
    text = (ids, [0] + [1] * (len(ids) - 1))
    view = view_of(
        Rows([text]), tokenizer, objective="block_l2", change=lambda b: replace(b, predictors=b.predictors + 1)
    )
    assert [token.weight for token in view.documents[0].tokens] == [1.0] * len(ids)
    assert view.learnt == len(ids) and not view.problems
    assert "compared tokens" in printed(view) and "loss tokens" not in printed(view)


def test_padding_is_folded_and_a_sequence_without_positions_has_none(tokenizer, conversation):
    ids, _ = conversation
    view = view_of(Rows([conversation]), tokenizer)
    assert f"padding, {LENGTH - len(ids)} tokens" in printed(view) and "<|endoftext|>" not in printed(view)
    assert "&lt;|endoftext|&gt;" not in to_page(view, title="t")
    whole = view_of(Rows([([5] * LENGTH, [0] + [1] * (LENGTH - 1))]), tokenizer)
    assert (len(whole.documents), whole.padding_tokens, whole.cut_documents) == (1, 0, 1)
    assert [token.position for token in whole.documents[0].tokens] == list(range(LENGTH))
    one = view_of(Rows([([PAD] * LENGTH, [0] + [1] * (LENGTH - 1))]), tokenizer)
    assert one.padding_tokens == 0  # a sequence's only document is no padding, whatever it holds


def test_a_document_is_cut_unless_it_ends_in_an_end(tokenizer):
    view = view_of(Rows([([5, 6, END], [0, 1, 1]), ([5, END, 6], [0, 1, 1])]), tokenizer)
    assert [document.cut for document in view.rows[0]] == [False, True, False]
    assert printed(view).count(CUT) == to_page(view, title="t").count(CUT) == 1


def test_characters_split_over_tokens_show_their_bytes(tokenizer):
    text_of = token_texts(tokenizer)
    texts = [text_of(id) for id in tokenizer("héllo 🙂\n\t", add_special_tokens=False)["input_ids"]]
    assert "".join(texts) == "h⟨C3⟩⟨A9⟩llo·⟨F0⟩⟨9F⟩⟨99⟩⟨82⟩↵⇥"
    assert all("\ufffd" not in text_of(id) for id in range(len(tokenizer)))
    assert text_of(10**6) == "⟨id 1000000⟩"


def test_nothing_steers_the_terminal():
    assert visible("a\x1b[31m\u202e\u00a0é漢") == "a⟨U+001B⟩[31m⟨U+202E⟩⟨U+00A0⟩é漢"


def test_sentencepiece_words_and_bytes():
    class Words:
        added_tokens_decoder = {}

        class backend_tokenizer:
            decoder = "Sequence(decoders=[Replace(), ByteFallback(), Fuse()])"

        @staticmethod
        def convert_ids_to_tokens(id):
            return ["▁Ġthe", "<0x0A>", "<0xF0>"][id]

    assert [token_texts(Words)(id) for id in range(3)] == ["·Ġthe", "↵", "⟨F0⟩"]


class Reader(HTMLParser):
    """Titles, classes and text of a page's tokens, and its tags."""

    def __init__(self):
        super().__init__()
        self.tokens, self.tags, self.inside = [], set(), False

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.inside = tag == "span" and "title" in dict(attributes)
        if self.inside:
            self.tokens.append(dict(attributes) | {"text": ""})

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.tokens[-1]["text"] += data


def test_the_page_is_escaped_self_contained_and_holds_every_token(tokenizer):
    tokenizer = deepcopy(tokenizer)
    tokenizer.add_tokens(["<script>"])
    script = tokenizer.convert_tokens_to_ids("<script>")
    view = view_of(Rows([([5, script, 6, END], [0, 1, 0, 1])]), tokenizer)
    page = to_page(view, title="<b>&")
    reader = Reader()
    reader.feed(page)
    assert "script" not in reader.tags and "<b>" not in page and "&lt;script&gt;" in page
    assert [token["class"] for token in reader.tokens] == ["context", "learnt", "context", "learnt"]
    assert [token["text"] for token in reader.tokens] == [token.text for token in view.documents[0].tokens]
    assert reader.tokens[1]["title"] == f"id {script}, position 1, weight 1"
    assert not reader.tags & {"link", "img", "script", "iframe"} and not re.search(r"url\(|https?:|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_long_runs_are_elided_in_the_terminal_unless_all_is_asked_for(tokenizer):
    (document,) = view_of(Rows([([5] * LENGTH, [0] + [1] * (LENGTH - 1))]), tokenizer).rows[0]
    context, *run = document.tokens
    for length, left_out in ((2 * SHOWN + ELIDED_AT_LEAST - 1, 0), (2 * SHOWN + ELIDED_AT_LEAST, ELIDED_AT_LEAST)):
        tokens = [context, *(run * 3)[:length]]
        view = BatchView([[replace(document, tokens=tokens)]], alignment=False, problems=[])
        assert (f"… {left_out} tokens …" in printed(view)) == bool(left_out)
        assert printed(view).count(run[0].text) == 1 + length - left_out
        assert printed(view, full=True).count(run[0].text) == 1 + length


def test_rows_are_limited_and_totals_are_not(tokenizer, conversation):
    view = view_of(Rows(*[[conversation]] * 3), tokenizer)
    for text in (printed(view, rows=1), to_page(view, title="t", rows=1)):
        assert "sequence 1" in text and "sequence 2" not in text and "2 more sequences" in text
    assert view.totals()["sequences"] == "3" and view.totals()["loss tokens"].startswith(
        f"{3 * sum(conversation[1])} ("
    )


def test_lines_break_between_tokens(tokenizer):
    ids = tokenizer("The capital of Germany is Berlin. " * 3, add_special_tokens=False)["input_ids"][: LENGTH - 1]
    view = view_of(Rows([([*ids, END], [0] + [1] * len(ids))]), tokenizer)
    file = io.StringIO()
    print_view(view, Console(file=file, width=30, highlight=False), title="t")
    lines = file.getvalue().splitlines()
    body = lines[1 + next(i for i, line in enumerate(lines) if line.startswith("sequence 1")) :]
    texts = [token.text for token in view.documents[0].tokens]
    starts = set(np.cumsum([0, *map(len, texts)]).tolist())
    place = 0
    for line in body:
        assert len(line) <= 30 and place in starts
        place += len(re.sub("[⟦⟧]", "", line))


def test_sequences_whose_windows_are_dropped_are_named(tokenizer):
    """By their place in the step, whatever the cut into micro-batches."""
    dataset = Rows(*[[([5, 6, 7, END], [0, 1, 1, 1])]] * 8)
    settings = dict(objective="forward_kl", train=["mixer"], data="text", sequence_length=LENGTH, learning_rate=1e-3)
    stage = Stage(**settings, tokens=8 * LENGTH, sequences_per_step=8, micro_batch=3, window_dropout=0.5)
    step = Loader(dataset, stage).step(0)
    dropped = torch.cat([batch.without_window for batch in step.batches]).nonzero().flatten() + 1
    view = view_step(step, tokenizer, {END}, alignment=False)
    assert 0 < len(dropped) < 8
    assert view.totals()["sequences without windows"] == ", ".join(map(str, dropped.tolist()))
    whole = view_step(
        Loader(dataset, stage.model_copy(update={"window_dropout": 0.0})).step(0), tokenizer, {END}, alignment=False
    )
    assert "sequences without windows" not in whole.totals()
