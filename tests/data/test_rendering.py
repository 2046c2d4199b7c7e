"""Rendered texts to ids: piece by piece what the tokenizer makes of the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gendistill.data.controls import GUARD
from gendistill.data.rendering import Template

CONTROLS = ["<s>", "</s>", "<sys>"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LETTERS = ["<unk>", *"ab<>/sy|.\n é", "▁", "▁a", "ab", GUARD]
FLAGS = ({}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True})


def metaspace(scheme):
    """As SentencePiece: a blank in front of each text, or of what comes first."""
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False), None


def byte_level():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), None


def prepending():
    """As the older files of Llama 2 have it: a normaliser puts the blank there."""
    return None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


KINDS = {
    "metaspace, always": lambda: metaspace("always"),
    "metaspace, first": lambda: metaspace("first"),
    "metaspace, never": lambda: metaspace("never"),
    "byte level": byte_level,
    "a normaliser's blank": prepending,
}


def make(kind, flags):
    before, normalizer = KINDS[kind]()
    symbols = BYTES if kind == "byte level" else LETTERS
    merges = [] if kind == "byte level" else [("▁", "a"), ("a", "b")]
    unknown = {} if kind == "byte level" else {"unk_token": "<unk>"}
    backend = Tokenizer(models.BPE({symbol: id for id, symbol in enumerate(symbols)}, merges, **unknown))
    if before is not None:
        backend.pre_tokenizer = before
    if normalizer is not None:
        backend.normalizer = normalizer
    options = {"special": True, "normalized": False} | flags
    backend.add_special_tokens([AddedToken(token, **options) for token in CONTROLS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    return tokenizer


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: next(iter(flags), "plain"))
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_are_the_whole(kind, flags, data):
    tokenizer = make(kind, flags)
    part = st.sampled_from(["a", "ab", " ", "  ", "\n", "<", "s>", "</", ".", *CONTROLS])
    texts = data.draw(st.lists(st.lists(part, max_size=9).map("".join), max_size=4))
    found = Template(tokenizer).ids(texts)
    assert found == {text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts}


def test_what_is_shared_is_tokenised_once(monkeypatch):
    template = Template(make("byte level", {}))
    shown = "<s>ab ab</s><s>a.</s>"
    assert template.controls.pieces(shown + "<s>b") == ["<s>ab ab", "</s>", "<s>a.", "</s>", "<s>b"]
    asked = [f"{shown}<s>{number * 'a'}" for number in range(5)]
    assert list(template.ids(asked)) == asked


def test_what_another_call_left_in_the_tokenizer_does_not_count():
    tokenizer = make("metaspace, first", {})
    template, text = Template(tokenizer), "<s>ab a</s>"
    expected = template.ids([text])
    tokenizer(text, truncation=True, max_length=1, padding="max_length", split_special_tokens=True)
    assert template.ids([text]) == expected
