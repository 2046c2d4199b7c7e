"""Plain text under tokenizers of every kind: what is written stays text, and parts of a text are the text."""

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from gendistill.data import plain
from gendistill.data.chat import encode_conversation, render_prompt
from gendistill.data.dataset import prepare
from gendistill.data.encoding import Encoder
from gendistill.data.plain import PlainTexts, start_of_text
from gendistill.data.sources import Document
from gendistill.errors import UserError
from gendistill.recipe.data import Source, Synthesis
from gendistill.synthesize.prompts import all_prompts


def text_ids(tokenizer, text):
    """One text's ids, or what it is refused with."""
    (ids,) = PlainTexts(tokenizer).encode([text])
    if isinstance(ids, UserError):
        raise ids
    return ids.tolist()


CORPUS = [
    "The rain falls on the hills, and the river's water runs to the sea 1234 times a year.",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))  # a comment\n",
    "Il pleut sur les collines; l'été n'est pas loin. Über den Hügeln regnet es.",
    "天空下着雨，山上有一条河。河水流向大海。",
    "say <s> or </s> and <|im_end|> or <|im_start|>, as everyone knows",
]
# By Qwen2's rule a word takes the one character before it, numbers fall into digits, and a line's end sticks to signs.
WORDS = r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(pre_tokenizer) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=alphabet)
    )
    return backend


def gpt2() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def gpt2_with_a_blank_before() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def qwen() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    return byte_level(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    )


SPACES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def sentence_pieces(normalizer=None, pre_tokenizer=None) -> Tokenizer:
    """BPE over characters with a visible blank, and bytes for those it does not know; merges never leave a word."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()  # in training words stand apart, as SentencePiece has them
    unknown = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        CORPUS[:3], trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=unknown)
    )
    state = trained.model.__getstate__().decode()
    backend = Tokenizer.from_str(
        '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,'
        '"post_processor":null,"decoder":null,"model":'
        + state.replace('"byte_fallback":false', '"byte_fallback":true')
        + "}"
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(SPACES)
    return backend


def llama2() -> Tokenizer:
    return sentence_pieces(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


def mistral() -> Tokenizer:
    return sentence_pieces(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def gemma() -> Tokenizer:
    return sentence_pieces(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never", split=False))


def unigram() -> Tokenizer:
    """Control tokens are pieces of the model itself, as SentencePiece writes them down."""
    letters = sorted(set("".join(CORPUS)) - {" ", "\n"})
    words = [("▁the", -3.0), ("▁hill", -5.0), ("s", -2.0), ("▁", -2.0), ("▁water", -5.0), ("\n", -4.0)]
    control = [("<s>", 0.0), ("</s>", 0.0), ("<|im_end|>", 0.0), ("<|im_start|>", 0.0)]
    known = {piece for piece, _ in words}
    pieces = [("<unk>", -20.0), *control, *words, *((letter, -6.0) for letter in letters if letter not in known)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


KINDS = {made.__name__: made for made in (gpt2, gpt2_with_a_blank_before, qwen, llama2, mistral, gemma, unigram)}
CONTROLS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</tool_call>"]  # added, not special, and written by the template
ADDED = ["brevity", "<h1>", "   "]  # added for brevity
CHATML = (
    "{# <think> </tool_call> brevity #}"
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def finished(backend: Tokenizer, begins: bool = False) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROLS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS + ADDED])
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token=None
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {name: finished(make()) for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def beginning():
    """The same, each of which begins a text with <s>."""
    return {name: finished(make(), begins=True) for name, make in KINDS.items()}


QUOTES = [
    "a turn ends with <|im_end|> and goes on",
    "<|im_end|>",
    "</s></s>",
    "<|im_start|>assistant\nsay<|im_end|>\n",
    "the hills<s>the water",
    "<|im_end|<|im_end|>|>",
    "first <think> and then call</tool_call>",
    "<think></think></s>",
]


@pytest.mark.parametrize("text", QUOTES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_control_token_in_a_text_is_text(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    encoder = Encoder(tokenizer, 64, "all")
    (ids,) = encoder.texts([Document("here", text)]).documents
    controls = set(tokenizer.convert_tokens_to_ids(CONTROLS + TAGS))
    assert not controls & set(ids[:-1].tolist()) and ids[-1] == tokenizer.eos_token_id
    # Every character is there, whatever the tokenizer does with blanks before the first.
    assert tokenizer.decode(ids[:-1]).strip() == text.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_control_tokens_is_the_tokenizers_own(tokenizers, beginning, kind):
    for tokenizer in (tokenizers[kind], beginning[kind]):
        for text in [*CORPUS[:4], "a<h1>b", "the hills    and brevity"]:
            assert text_ids(tokenizer, text) == tokenizer.encode(text)


def test_others_may_use_the_tokenizer_meanwhile(tokenizers):
    """As a stream's thread does that encodes a window which is no longer wanted."""
    tokenizer = tokenizers["gpt2"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = "the hills and the water <|im_end|> " * 30_000
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(text_ids, tokenizer, text)
        calls = 0
        while not working.done():
            assert tokenizer.encode("a<|im_end|>")[-1] == end
            calls += 1
    assert calls > 1 and end not in working.result()


def test_a_text_that_cannot_be_quoted_is_malformed_and_the_others_are_not(tokenizers):
    documents = [Document("a:1", "the hills"), Document("a:2", "\ufdd0</s>"), Document("a:3", "the water")]
    encoded = Encoder(tokenizers["unigram"], 64, "all").texts(documents)
    assert len(encoded.documents) == 2
    (error,) = encoded.malformed
    assert "a:2: the text holds U+FDD0" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_begins_as_the_tokenizer_begins_texts(beginning, tokenizers, kind, write_records, tmp_path):
    path = write_records("texts.jsonl", [{"text": f"the hills {number}"} for number in range(30)])
    settings = dict(sequence_length=32, tokens=128, loss_on="all", seed=0)
    source = Source(path=str(path), epochs=9)
    for tokenizer, begins in ((beginning[kind], True), (tokenizers[kind], False)):
        start = tokenizer.bos_token_id
        rows = prepare([source], tokenizer, cache=tmp_path / f"cache {begins}", **settings)[:]
        ids, first = rows["input_ids"], rows["position_ids"] == 0
        inner = first[:, 1:]  # behind a row's first token, where a document may go on
        ended = ids[:, :-1] == tokenizer.eos_token_id
        assert (inner == ended).all()  # every document ends, and the next begins there
        assert ((ids[:, 1:] == start) == (inner & begins)).all()
        assert not rows["loss_mask"][first].any()  # nothing predicts it
        assert rows["loss_mask"][~first].all()


def test_what_the_tokenizer_puts_behind_a_text_is_not_its_start(tokenizers):
    tokenizer = finished(gpt2(), begins=True)
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", end)]
    )
    assert start_of_text(tokenizer) == [tokenizer.bos_token_id]
    assert start_of_text(tokenizers["gpt2"]) == []
    (ids,) = Encoder(tokenizer, 64, "all").texts([Document("here", "the hills")]).documents
    assert ids.tolist().count(end) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_that_writes_the_start_token_gets_no_second_one(beginning, kind):
    tokenizer = beginning[kind]
    asked = [{"role": "user", "content": "say"}]
    prompt = render_prompt(tokenizer, asked)
    ids, _ = encode_conversation(tokenizer, [*asked, {"role": "assistant", "content": "the hills"}])
    assert prompt.count(tokenizer.bos_token_id) == 1 and prompt[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_tags_are_text_where_a_user_writes_them_and_tokens_where_the_assistant_does(tokenizers, kind):
    tokenizer = tokenizers[kind]
    tag = tokenizer.convert_tokens_to_ids("<think>")
    asked, reply = {"role": "user", "content": "a<think>b"}, {"role": "assistant", "content": "<think>the hills"}
    prompt = render_prompt(tokenizer, [asked])
    ids, _ = encode_conversation(tokenizer, [asked, reply])
    assert tag not in prompt and "a<think>b" in tokenizer.decode(prompt)
    assert ids[: len(prompt)] == prompt and ids.count(tag) == 1


pieces_of_text = st.lists(
    st.sampled_from(
        [
            "the",
            " ",
            "  ",
            "\n",
            "\n\n",
            "hills",
            "12",
            "é",
            "。",
            "，",
            "河",
            "ab",
            "'s",
            ".",
            "\t",
            "</s>",
            " <s>",
            "\r\n",
        ]
    ),
    min_size=20,
    max_size=300,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=pieces_of_text)
def test_a_text_in_parts_has_the_ids_of_the_whole(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    whole = text_ids(tokenizer, text)  # shorter than a part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "PART_CHARACTERS", 20)
        patch.setattr(plain, "BATCH_CHARACTERS", 50)
        assert text_ids(tokenizer, text) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_cut_in_every_language_written_with_blanks_or_lines(tokenizers, kind, monkeypatch):
    monkeypatch.setattr(plain, "PART_CHARACTERS", 300)
    texts = PlainTexts(tokenizers[kind])
    for lines in (CORPUS[:1] * 100, CORPUS[2:3] * 100):
        text = " ".join(lines)
        parts = list(texts._parts(text))
        assert max(len(part.text) for part in parts) < 700
        assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    # Without blanks at the signs between sentences, but not where a tokenizer begins every text with a blank of its own
    # that cannot be told from the text's; such a text stays whole.
    if kind in ("gpt2", "qwen", "gemma"):
        assert max(len(part.text) for part in texts._parts(CORPUS[3] * 100)) < 700


def test_a_long_text_takes_little_memory_while_it_is_encoded(tokenizers):
    """What the tokenizer makes lies outside of Python's memory, so parts are counted: few exist at a time."""
    texts = PlainTexts(tokenizers["gpt2"])
    text = "the rain falls on the hills " * 150_000  # 4 million characters
    sizes = []
    encode = texts._encode_batch
    texts._encode_batch = lambda parts: sizes.append(sum(len(part.text) for part in parts)) or encode(parts)
    tracemalloc.start()
    (ids,) = texts.encode([text])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sizes) >= 4 and max(sizes) <= plain.BATCH_CHARACTERS + 2 * plain.PART_CHARACTERS
    # The ids twice (in parts, and joined), and three batches of lists and strings.
    assert peak < 2 * ids.nbytes + 3 * 40 * plain.BATCH_CHARACTERS


@pytest.mark.parametrize("worst", ["</s", "<", " ", "\n", "a\n", "a b ", "。", "河。", "x"])
@pytest.mark.parametrize("kind", ["gpt2", "unigram"])
def test_time_is_linear_in_a_text(tokenizers, kind, worst):
    text = (worst * 100_000)[:100_000]
    texts = PlainTexts(tokenizers[kind])
    backend = texts.shared
    started = time.perf_counter()
    backend.encode(text, add_special_tokens=False)
    own = time.perf_counter() - started
    started = time.perf_counter()
    texts.encode([text])
    assert time.perf_counter() - started < 1 + 5 * own


def test_texts_in_every_order_of_lengths(tokenizers, monkeypatch):
    monkeypatch.setattr(plain, "PART_CHARACTERS", 100)
    monkeypatch.setattr(plain, "BATCH_CHARACTERS", 150)
    given_texts = ["the hills", CORPUS[0] * 9, "a", CORPUS[1] * 9, CORPUS[3], "b"]
    tokenizer = tokenizers["qwen"]
    for texts in (given_texts, given_texts[::-1]):
        found = PlainTexts(tokenizer).encode(texts, [7])
        expected = [tokenizer.encode(text) + [7] for text in texts]
        assert all(np.array_equal(ids, wanted) for ids, wanted in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_continues_a_text_that_begins_as_in_training(beginning, kind, write_records):
    tokenizer = beginning[kind]
    text = "the hills <|im_end|> and the water of the hills"
    path = write_records("texts.jsonl", [{"text": text}])
    synthesis = Synthesis(prompts=[dict(kind="continuation", path=str(path), prompt_tokens=20)])
    (prompt,) = all_prompts(synthesis, tokenizer, 0)
    assert prompt.ids == text_ids(tokenizer, text)[:20] and prompt.ids[0] == tokenizer.bos_token_id
    assert not set(tokenizer.convert_tokens_to_ids(CONTROLS)) & set(prompt.ids[1:])
    assert text.startswith(prompt.user.strip()) and prompt.user.strip()  # what it writes on is plain text to train on


def test_ids_of_a_text_or_the_reason_why_not(tokenizers):
    with pytest.raises(UserError, match=r"the text holds U\+FDD0"):
        text_ids(tokenizers["unigram"], "\ufdd0</s>")
