"""A tiny byte-level tokenizer, one token a byte but for three merges, so that expectations can be written by hand."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "<|pad|>", "<|bos|>"]
MERGES = [("Ċ", "Ċ"), ("h", "i"), ("o", "k")]  # Ċ is the newline byte


@pytest.fixture(scope="session")
def make_tokenizer():
    def make(
        chat_template: str | None = None, specials=SPECIALS, plain=(), merges=MERGES, **named
    ) -> PreTrainedTokenizerFast:
        """`plain`: added tokens that are not special, as Qwen3's <think>; `named`: eos_token and the like."""
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
        backend = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
        named = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"} | named
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
        tokenizer.chat_template = chat_template
        return tokenizer

    return make
