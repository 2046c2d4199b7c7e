"""RoPE beyond the usual: YaRN reaches further, frequencies that follow the length take no batches; heads that untie."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config

from gendistill.errors import UserError
from gendistill.inference.generation import generate, rows_that_fit
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.loading import load_config, load_model, load_tokenizer
from gendistill.models.positions import depends_on_length, most_positions
from gendistill.models.view import as_student

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ROPES = {
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 48),
    "longrope": (
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "long_factor": [4.0] * 4,
            "short_factor": [1.0] * 4,
            "original_max_position_embeddings": 48,
        },
        192,
    ),
}


@pytest.mark.parametrize(
    ("rope", "positions", "most"),
    [
        (None, 256, 256),
        ({"rope_type": "default"}, 256, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 256, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024, 1024),
        ({"rope_type": "yarn", "factor": 2.0}, 256, 512),
        ({"rope_type": "linear", "factor": 4.0}, 256, 256),
    ],
)
def test_yarn_reaches_further(rope, positions, most):
    rope = rope and rope | {"rope_theta": 10000.0}
    config = Qwen2Config(**SHAPE, max_position_embeddings=positions, rope_parameters=rope)
    assert most_positions(config) == most and not depends_on_length(config)


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_that_follow_the_length_take_no_batches(name):
    tokenizer = load_tokenizer("embedded", 10**6)
    rope, positions = ROPES[name]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            vocab_size=len(tokenizer),
            max_position_embeddings=positions,
            rope_parameters=rope | {"rope_theta": 10000.0},
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, len(tokenizer), (n,), generator=draw).tolist() for n in (10, 90, 12, 60)]
    assert as_student(model) is None and rows_that_fit(model, prompts, 12) == 1
    together, alone = generate(model, tokenizer, prompts, 12), [generate(model, tokenizer, [p], 12)[0] for p in prompts]
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]
    with pytest.raises(UserError, match=f"batch_size 4: with RoPE of type {name}"):
        generate(model, tokenizer, prompts, 12, batch_size=4)


def test_a_head_of_its_own_counts_though_the_configuration_ties_it(tmp_path):
    settings = SHAPE | dict(vocab_size=99, max_position_embeddings=64, tie_word_embeddings=True, model_type="llama")
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["LlamaForCausalLM"]}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = torch.randn(99, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    teacher = load_model(str(tmp_path), torch.float32, "cpu")
    ids = torch.randint(5, 99, (1, 9))
    student, _ = convert(teacher, student_config(load_config(str(tmp_path)), [0, 1]), 0)
    student.save_pretrained(tmp_path / "student")
    for each in (student, load_model(str(tmp_path / "student"), torch.float32, "cpu"), as_student(teacher)):
        assert torch.equal(each(ids).logits, teacher(ids).logits)
