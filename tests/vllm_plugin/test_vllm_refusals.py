"""What cannot be served is refused in words: what was given, what is allowed, what to do."""

import re

import pytest

from gendistill.errors import UserError
from gendistill.vllm.refusals import Asked, refuse_what_cannot_be
from small_models import VARIANTS, make_student

REFUSED = {
    "speculative": (Asked(speculative=True), "speculative decoding would have to roll a student's states back"),
    "pipeline": (Asked(pipeline=2), "--pipeline-parallel-size is 2; students run with 1. Use --tensor-parallel-size"),
    "quantised": (Asked(quantization="fp8"), "quantization 'fp8': students are served in bfloat16, float16 or float32"),
    "ranks": (Asked(ranks=3), "--tensor-parallel-size can be 1, 2, 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ways_of_serving(case):
    asked, message = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(message)):
        refuse_what_cannot_be(make_student("qwen2").config, asked)


def test_activations():
    config = make_student("qwen2").config
    config.hidden_act = "gelu"
    with pytest.raises(UserError, match="activation 'gelu', vLLM's have silu"):
        refuse_what_cannot_be(config, Asked())


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_mixers_and_families_are_served(variant):
    config = make_student(**VARIANTS[variant]).config
    refuse_what_cannot_be(config, Asked(ranks=1 if "lightning" in config.mixers else 2))
