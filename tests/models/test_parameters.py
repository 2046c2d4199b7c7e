"""Every tensor of a student is declared, once, and what is declared is what is built."""

import pytest
import torch

from gendistill.distill.roles import set_trainable
from gendistill.errors import UserError
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.modeling import PARAMETERS, describe
from gendistill.names import ROLES
from small_models import MIXERS, make_student, make_teacher


def students():
    for family in ("qwen3", "qwen2", "llama"):
        yield make_student(family, keep=(1,), mixer_in_layer={0: MIXERS[0], 2: MIXERS[1], 3: MIXERS[4]})
        yield make_student(family, keep=(1,), window=4)
    yield make_student("qwen3", keep=(), mixer="mamba2", output_norm=False, expand_kv=True)
    yield make_student("qwen3", keep=(), mixer="mamba2", window=4, window_share="token")


def test_every_tensor_is_declared_and_every_declaration_is_some_tensors():
    built = {name for student in students() for name, _ in student.named_parameters()}
    rows = {name for name in PARAMETERS if any(describe(other) is PARAMETERS[name] for other in built)}
    assert rows == set(PARAMETERS)
    assert {row.role for row in PARAMETERS.values()} == set(ROLES) - {"mixer"}


def test_declarations_are_what_conversion_does():
    for family in ("qwen3", "qwen2"):
        teacher = make_teacher(family)
        student, accounting = convert(teacher.bfloat16(), student_config(teacher.config, [1], expand_kv=True), seed=0)
        assert set(accounting.new) == {name for name, _ in student.named_parameters() if describe(name).is_new}
        linear = [name for name in accounting.repeated if ".linear_attn." in name]
        assert linear == accounting.repeated and all(describe(name).of_key_heads for name in linear)
        for name, parameter in student.named_parameters():
            assert (parameter.dtype == torch.float32) == describe(name).stays_float32, name


def test_roles_are_those_of_the_layers():
    of = {
        "model.layers.11.linear_attn.q_proj.bias": "mixer_qk",
        "model.layers.0.linear_attn.o_proj.weight": "mixer_value",
        "model.layers.0.linear_attn.v_conv1d.bias": "mixer_conv",
        "model.layers.0.linear_attn.A_log": "mixer_gate",
        "model.layers.0.self_attn.q_norm.weight": "attention",
        "model.layers.0.input_layernorm.weight": "norm",
        "model.norm.weight": "norm",
        "model.embed_tokens.weight": "embedding",
        "lm_head.weight": "head",
    }
    assert {name: describe(name).role for name in of} == of


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.sinks", "model.layers.x.mlp.up_proj.weight", "lm_head.bias"]
)
def test_an_undeclared_tensor_is_an_error(name):
    with pytest.raises(ValueError, match=f"no layer declares the parameter {name}"):
        describe(name)


def test_an_undeclared_tensor_is_never_trained():
    student = make_student("qwen3")
    student.model.layers[0].linear_attn.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="no layer declares the parameter model.layers.0.linear_attn.extra"):
        set_trainable(student, ["mixer"])


def test_an_unknown_role_is_refused():
    with pytest.raises(UserError, match="unknown role 'mixers'; known: mixer, mixer_qk"):
        set_trainable(make_student("qwen3"), ["mixers"])
