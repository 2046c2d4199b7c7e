"""A tiny Qwen3 with random weights, a byte tokenizer with a ChatML template, and small question files."""

import gc
import json
from pathlib import Path

import pytest

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
# Objects made before the next collection of garbage: by default 700, and collections took a twentieth of the suite.
BETWEEN_COLLECTIONS = 20_000
TIMED = Path(__file__).parents[1] / "results/cpu/test_suite.json"  # by benchmarks/test_suite.py


def pytest_configure(config):
    """Has pytest-xdist give out files in the order below; it would begin with those that hold the most tests."""
    gc.set_threshold(BETWEEN_COLLECTIONS)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files that took longest come first: begun last, one of them would leave the other worker idle for a minute."""
    seconds = json.loads(TIMED.read_text())["seconds_by_file"] if TIMED.exists() else {}
    took = {TIMED.parents[2] / name: each for name, each in seconds.items()}
    items.sort(key=lambda item: -took.get(item.path, 0.0))


def pytest_collection_finish():
    """Half a million objects of imported modules live as long as the session: no collection need look through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer():
    # Here, since pytest-xdist's own process reads this file before it starts workers, and needs none of these.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[:1],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _tiny_qwen3(tokenizer, seed):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    # Weights far larger than usual make replies that differ between items and leave no near ties.
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture
def model(tokenizer):
    return _tiny_qwen3(tokenizer, seed=0)


@pytest.fixture
def other_model(tokenizer):
    return _tiny_qwen3(tokenizer, seed=1)


@pytest.fixture
def write_records(tmp_path):
    def write(name, records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


@pytest.fixture
def files(write_records):
    """Paths of question files, a test and a training split of each kind."""
    words = ["red", "green", "dark blue", "yellow", "off-white", "black", "pink", "grey"]
    paths = {}
    for split, start, count in (("test", 0, 11), ("train", 100, 9)):
        indices = range(start, start + count)
        paths[f"choice_{split}"] = write_records(
            f"choice_{split}.jsonl",
            [
                {
                    "question": f"Which one is number {i}{'!' * (i % 5)}",
                    "choices": [f"{word} {i}" for word in words[: 3 + i % 3]],
                    "answer": i % 3,
                }
                for i in indices
            ],
        )
        paths[f"short_{split}"] = write_records(
            f"short_{split}.jsonl",
            [{"question": f"Colour of thing {i}?", "answer": [words[i % 8], f"colour {i % 8}"]} for i in indices],
        )
        paths[f"number_{split}"] = write_records(
            f"number_{split}.jsonl",
            [
                {"question": f"What is {i} + 7?", "answer": f"{i} + 7 = <<{i}+7={i + 7}>>{i + 7}\n#### {i + 7}"}
                for i in indices
            ],
        )
    return paths
