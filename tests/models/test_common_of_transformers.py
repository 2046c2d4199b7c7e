"""transformers' own common model tests, on eight kinds of student. `scripts/common_tests.py` fetches and runs them.

An assumption of theirs that does not fit is overridden here, as in transformers' own hybrids, with the reason.
"""

import importlib
import os
import sys
from copy import deepcopy
from types import ModuleType
from unittest import TestCase

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from gendistill.models.families import student_config
from gendistill.models.modeling import GendistillForCausalLM, GendistillModel
from small_models import FAMILIES, WINDOW, tokens

FOLDER = os.environ.get("TRANSFORMERS_TESTS")
if FOLDER is None:
    pytest.skip("run scripts/common_tests.py, which fetches them", allow_module_level=True)

pytestmark = pytest.mark.transformers_tests

PACKAGE = "transformers_common_tests"
# What they import and the source distribution leaves out, by module.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
BATCH, LENGTH = 3, 7
# family, layers of two that keep attention, mixer of the others
KINDS = {
    "KdaHybrid": ("qwen3", (1,), dict(mixer="kda")),
    "GatedDeltanetHybrid": ("qwen2", (1,), dict(mixer="gated_deltanet")),
    "GlaHybrid": ("llama", (1,), dict(mixer="gla")),
    "WindowHybrid": ("qwen3", (1,), dict(mixer="window", **WINDOW)),
    "KdaBesideWindowHybrid": ("mistral", (1,), dict(mixer="kda", **WINDOW)),
    "Mamba2Pure": ("qwen2", (), dict(mixer="mamba2")),
    "LightningPure": ("llama", (), dict(mixer="lightning")),
    "KdaBesideWindowPure": ("qwen3", (), dict(mixer="kda", **WINDOW)),
}


def _common_tests() -> ModuleType:
    """transformers' tests/test_modeling_common.py."""
    sys.path.insert(0, FOLDER)
    for name, mixin in LEFT_OUT.items():
        package, _, module = name.rpartition(".")
        sys.modules[f"{PACKAGE}.{package}"] = ModuleType(package)
        sys.modules[f"{PACKAGE}.{name}"] = ModuleType(module)
        setattr(sys.modules[f"{PACKAGE}.{name}"], mixin, type(mixin, (), {}))
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


common = _common_tests()


# So that they know which of the two has a loss.
MODEL_MAPPING_NAMES["gendistill"] = "GendistillModel"
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["gendistill"] = "GendistillForCausalLM"


class Kind:
    """What the common tests ask for a configuration and inputs."""

    batch_size, seq_length, is_training = BATCH, LENGTH, True
    base_model_class = GendistillModel

    def __init__(self, family: str, keep: tuple[int, ...], options: dict):
        teacher = deepcopy(FAMILIES[family])
        teacher.num_hidden_layers, teacher.layer_types = 2, ["full_attention"] * 2  # more than two, and they refuse
        self.config = student_config(teacher, keep, **options)
        self.hidden_size = self.config.hidden_size
        self.num_hidden_layers = self.config.num_hidden_layers
        self.num_attention_heads = self.config.num_attention_heads

    def get_config(self):
        return deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self):
        ids = tokens(BATCH, LENGTH)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Student(common.ModelTesterMixin):
    all_model_classes = (GendistillModel, GendistillForCausalLM)
    test_can_init_all_missing_weights_before_2023 = True  # they read a model's year off a copyright line
    kind: tuple

    def setUp(self):
        super().setUp()
        self.model_tester = Kind(*self.kind)
        self.has_attentions = not self.model_tester.config.is_pure
        if "rope" in self._testMethodName and not self.model_tester.config.has_positions:
            self.skipTest("a pure student without windows has no positions, and so no RoPE")

    def test_attention_outputs(self):
        """Theirs wants weights of every layer; a mixer has none."""
        if not self.has_attentions:
            self.skipTest("a pure student has no attention to all tokens")
        self.model_tester.num_hidden_layers = len(self.model_tester.config.layers_of_type("full_attention"))
        super().test_attention_outputs()

    def test_keep_in_fp32_modules_exist(self):
        """Theirs wants each of them in every model; here a model has those of its mixers."""
        models = [GendistillModel(Kind(*kind).config) for kind in KINDS.values()]
        names = {name.rpartition(".")[2] for model in models for name in model.state_dict()}
        self.assertLessEqual(models[0]._keep_in_fp32_modules_strict, names)

    def test_generation_tester_mixin_inheritance(self):
        self.skipTest("the source distribution leaves out the common tests of generation")


for _name, _kind in KINDS.items():
    globals()[f"Test{_name}"] = type(f"Test{_name}", (Student, TestCase), {"kind": _kind})
