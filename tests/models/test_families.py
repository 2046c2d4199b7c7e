"""Families: one row adds one of the same shape; one that computes anything else is refused, and the error says why."""

import copy

import pytest
import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    HeliumConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Olmo2Config,
    SmolLM3Config,
)

from cli_tools import RECIPE
from gendistill.errors import UserError
from gendistill.models.conversion import convert
from gendistill.models.families import FAMILIES, Family, student_config
from gendistill.models.proof import allowed_error, prove_kept_attention
from gendistill.models.view import all_attention
from gendistill.recipe.loading import parse_recipe
from gendistill.run.convert import convert_teacher
from gendistill.run.run import Run
from small_models import CLOSE, SHAPE, make_teacher, tokens

SCALES = dict(embedding_multiplier=12.0, attention_multiplier=0.25, residual_multiplier=0.22, logits_scaling=1.0)
# Families that name their tensors and settings as Llama does, and compute something else.
OTHERS = {
    "granite": (GraniteConfig(**SHAPE, **SCALES), "the embedding"),  # embeddings are scaled
    "gemma": (GemmaConfig(**SHAPE, head_dim=12), "the embedding"),  # so are these, and norms have a weight of 1 + w
    "smollm3": (SmolLM3Config(**SHAPE), "layer 3"),  # every fourth layer has no positions
}


def teacher_of(config):
    """A random teacher whose layers are strong enough to be seen."""
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
    return teacher


def text(length=40):
    return [{"input_ids": tokens(2, length), "position_ids": torch.arange(length).expand(2, -1)}]


def test_every_supported_family_passes(family):
    """The tensors are the teacher's own: nothing is copied, and a tied head stays tied."""
    teacher = make_teacher(family)
    config = student_config(teacher.config, [1], window=5, sinks=2, window_share="token")  # which attention has not
    prove_kept_attention(teacher, config, text())
    student, original = all_attention(teacher, config), dict(teacher.named_parameters())
    assert {name: p.data_ptr() for name, p in student.named_parameters()} == {
        name: p.data_ptr() for name, p in original.items()
    }


def test_packed_text_passes():
    positions = torch.cat([torch.arange(11), torch.arange(29)]).expand(2, -1)
    teacher = make_teacher("qwen3")
    batch = text()[0] | {"position_ids": positions}
    prove_kept_attention(teacher, student_config(teacher.config, []), [batch])
    # Boundaries matter to it: the same text as one document is another computation, which the proof runs as well.
    together = teacher(input_ids=batch["input_ids"], use_cache=False).logits
    apart = teacher(input_ids=batch["input_ids"], position_ids=positions, use_cache=False).logits
    assert not torch.equal(together, apart)


def test_bfloat16_may_round():
    teacher = make_teacher("qwen2").bfloat16()
    prove_kept_attention(teacher, student_config(teacher.config, [1]), text())
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert allowed_error(torch.float32, cpu) == 0
    assert 0 < allowed_error(torch.float32, gpu) <= 1e-5 < allowed_error(torch.bfloat16, cpu) < 0.05
    with pytest.raises(ValueError, match="no rounding is stated for torch.float64"):
        allowed_error(torch.float64, cpu)


@pytest.mark.parametrize("name", OTHERS)
def test_a_family_that_computes_something_else_is_refused(name, monkeypatch):
    config, first = OTHERS[name]
    with pytest.raises(UserError, match=f"model type '{name}': supported are qwen3, qwen2, llama, mistral"):
        student_config(config, [1])
    monkeypatch.setitem(FAMILIES, name, Family())
    teacher = teacher_of(config)
    with pytest.raises(UserError, match=f"model type '{name}'.*Logits differ by up to .* first to differ is {first} "):
        prove_kept_attention(teacher, student_config(config, [1]), text())


def test_a_family_with_other_norms_is_refused(monkeypatch):
    """OLMo 2 normalises what a layer adds, not what it is given: a norm more, and one in another place."""
    config = Olmo2Config(**SHAPE)
    monkeypatch.setitem(FAMILIES, "olmo2", Family(qk_norm=True))
    with pytest.raises(UserError, match="model type 'olmo2': .*q_norm.weight is"):
        prove_kept_attention(teacher_of(config), student_config(config, [1]), text())
    monkeypatch.setitem(FAMILIES, "olmo2", Family())
    with pytest.raises(UserError, match="model type 'olmo2': .*input_layernorm.weight has no counterpart"):
        prove_kept_attention(teacher_of(config), student_config(config, [1]), text())


def test_norms_that_compute_something_else_are_refused():
    """Of the same name and shape: the first layer whose output differs is named."""
    teacher = make_teacher("llama")
    config = student_config(teacher.config, [1])
    teacher.model.layers[2].input_layernorm.variance_epsilon = 0.1
    with pytest.raises(UserError, match="model type 'llama'.*first to differ is layer 2 "):
        prove_kept_attention(teacher, config, text())


def test_a_sliding_window_is_refused():
    """By its configuration, for a long window is not felt on a short text; by the proof where it is felt."""
    sliding = MistralConfig(**SHAPE, head_dim=16, sliding_window=8)
    with pytest.raises(UserError, match="model type 'mistral': it uses sliding-window attention"):
        student_config(sliding, [1])
    config = student_config(MistralConfig(**SHAPE, head_dim=16, sliding_window=None), [1])
    teacher = teacher_of(sliding)
    prove_kept_attention(teacher, config, text(8))
    with pytest.raises(UserError, match="model type 'mistral'.*first to differ is layer 0 "):
        prove_kept_attention(teacher, config, text(40))


def test_a_configuration_of_another_shape_is_refused(monkeypatch):
    monkeypatch.setitem(FAMILIES, "gpt2", Family())
    with pytest.raises(UserError, match="model type 'gpt2': its configuration has no intermediate_size"):
        student_config(GPT2Config(), [0])


class OtherLlamaConfig(LlamaConfig):
    model_type = "other_llama"


@torch.no_grad()
def test_one_row_adds_a_family_of_the_same_shape(monkeypatch):
    """Helium is such a one, but for pairs of neighbouring channels in its positions, and does not pass."""
    monkeypatch.setitem(FAMILIES, "other_llama", Family())
    monkeypatch.setitem(FAMILIES, "helium", Family())
    torch.manual_seed(0)
    config = OtherLlamaConfig(**SHAPE)
    teacher = LlamaForCausalLM(config).eval()
    wanted = student_config(config, [1])
    prove_kept_attention(teacher, wanted, text())
    student, accounting = convert(teacher, wanted, seed=0)
    assert not accounting.dropped
    student = student.double()
    expected = student(tokens(2, 40), use_cache=False).logits
    cache, logits = None, []
    for piece in tokens(2, 40).split([30, *[1] * 10], dim=1):
        out = student(piece, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, [*logits, out.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)

    helium = HeliumConfig(**SHAPE, head_dim=12)
    with pytest.raises(UserError, match="model type 'helium'.*first to differ is layer 0 "):
        prove_kept_attention(teacher_of(helium), student_config(helium, [1]), text())


def test_a_run_converts_no_teacher_that_its_student_cannot_be(tmp_path):
    """The proof comes before anything is saved, in whichever verb converts."""
    torch.set_num_threads(1)
    run = Run(parse_recipe(RECIPE, origin="test"), tmp_path / "run", Console(quiet=True))
    run.teacher.model.layers[5].post_attention_layernorm.variance_epsilon = 0.1
    with pytest.raises(UserError, match="first to differ is layer 5 "):
        convert_teacher(run)
    assert not run.folder.has_student("conversion")
