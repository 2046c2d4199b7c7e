"""Students of small models, saved with a tokenizer as `gendistill convert` saves them."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from gendistill.files import seal
from small_models import VARIANTS, make_student


@pytest.fixture(scope="package")
def save_student():
    """Saves the student of a variant; returns the model."""
    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i + 2 for i in range(95)}}
    raw = Tokenizer(WordLevel(words, unk_token="<end>"))
    raw.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<pad>")

    def save(variant, folder):
        student = make_student(**VARIANTS[variant])
        student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        seal(folder)
        return student

    return save
