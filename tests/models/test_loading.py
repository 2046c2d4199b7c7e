"""A folder that holds no sound model is one clear error, whatever is wrong with it and whatever transformers raises."""

import ast
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gendistill.embedded import teacher_folder
from gendistill.errors import UserError
from gendistill.models.loading import load_config, load_model, load_tokenizer


def load(folder):
    config = load_config(str(folder))
    load_tokenizer(str(folder), config.vocab_size)
    return load_model(str(folder), torch.float32, "cpu")


def configured(**settings):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def weights(change):
    def damage(folder):
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def pointer(name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    return lambda folder: (folder / name).write_text(text)


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def more_words(folder):
    path, name = folder / "model.safetensors", "model.embed_tokens.weight"
    tensors = load_file(path)
    tensors[name] = torch.cat([tensors[name], tensors[name][:8]])
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGED = "damaged or cut short"
FAULTS = {
    "weights cut": (weights(lambda data: data[:-1000]), DAMAGED),
    "weights cut in the header": (weights(lambda data: data[:100]), DAMAGED),
    "weights empty": (weights(lambda data: b""), DAMAGED),
    "weights overwritten": (weights(lambda data: b"\xff" * 16 + data[16:]), DAMAGED),
    "weights not fetched": (pointer("model.safetensors"), "model.safetensors are pointers of git-lfs.*git lfs pull"),
    "weights gone": (without("model.safetensors"), "cannot be loaded"),
    "weights of other sizes": (more_words, r"do not fit.*embed_tokens.weight \(2056, 192\) for \(2048, 192\)"),
    "tokenizer not fetched": (pointer("tokenizer.json"), "tokenizer.json are pointers of git-lfs"),
    "tokenizer of nothing": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    "tokenizer gone": (without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "tokenizer half gone": (without("tokenizer.json"), "cannot be loaded"),
    "configuration gone": (without("config.json"), "cannot be loaded"),
    "configuration no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
    "configuration a list": (lambda folder: (folder / "config.json").write_text("[]"), "cannot be loaded"),
    **{
        f"quantised by {method}": (configured(quantization_config={"quant_method": method}), f"quantised .{method}")
        for method in ("gptq", "awq", "fp8", "bitsandbytes", "whatever")
    },
}
IMPOSSIBLE = [
    *({name: size} for name in ("hidden_size", "intermediate_size", "vocab_size", "head_dim") for size in (0, -4, "x")),
    *({name: size} for name in ("num_attention_heads", "num_key_value_heads") for size in (0, 3, 99)),
    *({"num_hidden_layers": layers, "layer_types": None} for layers in (0, -1, 10**9)),
    *({"max_position_embeddings": positions} for positions in (0, -1)),
    *({"hidden_size": 10**15}, {"vocab_size": 5}, {"head_dim": 7}, {"num_hidden_layers": 2}),
    *({"rope_parameters": {"rope_type": "nope"}}, {"rope_parameters": 5}, {"hidden_act": "nope"}, {"dtype": "nope"}),
]


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(teacher_folder(), tmp_path / "teacher")


def refused(folder):
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 600, message
    return message


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files(folder, fault):
    change, says = FAULTS[fault]
    change(folder)
    assert re.search(says, message := refused(folder)), message


@pytest.mark.parametrize("settings", IMPOSSIBLE, ids=str)
def test_impossible_configurations(folder, settings):
    configured(**settings)(folder)
    assert refused(folder)


def test_a_sound_one_is_loaded(folder):
    assert load(folder).config.vocab_size == 2048


CODE = """
from pathlib import Path
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

Path({ran!r}).touch()
class Own(PreTrainedConfig): model_type = "own"
class Model(Qwen3ForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
"""
OWN = {
    "AutoConfig": "own.Own",
    "AutoModelForCausalLM": "own.Model",
    "AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"],
}


@pytest.mark.parametrize(
    "settings", [dict(auto_map=OWN, model_type="own"), dict(auto_map=OWN)], ids=["own type", "known"]
)
@pytest.mark.parametrize(
    "loads", [load_config, lambda name: load_tokenizer(name, 2048), load], ids="config tokenizer all".split()
)
def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path, monkeypatch, settings, loads):
    """A configuration that transformers knows goes on without it; one that it does not know is refused."""
    asked, ran = [], tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    configured(**settings)(folder)
    path = folder / "tokenizer_config.json"
    own = dict(auto_map={"AutoTokenizer": OWN["AutoTokenizer"]}, tokenizer_class="Tokenizer")
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with suppress(UserError):
        loads(str(folder))
    assert not ran.exists()
    assert asked == []


def test_no_call_leaves_it_to_transformers_whether_to_run_code():
    """Its own default is to ask at the terminal."""
    root = Path(__file__).parents[2]
    silent, calls = [], 0
    for path in sorted(path for folder in ("src", "scripts", "benchmarks") for path in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", None)
            if name not in ("from_pretrained", "from_config", "load_dataset", "pipeline"):
                continue
            calls += 1
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if said.get("trust_remote_code") != "False":
                silent.append(f"{path.relative_to(root)}:{node.lineno}")
    assert calls > 10
    assert silent == []
