"""What a stage hands on to the next."""

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cli_tools import RECIPE, STAGE
from gendistill.models.modeling import describe
from gendistill.recipe.loading import parse_recipe
from gendistill.run.convert import convert_teacher
from gendistill.run.distill import distil_stage
from gendistill.run.run import Run


def weights(run, stage):
    return load_file(run.folder.student(stage) / "model.safetensors")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_bfloat16_what_one_stage_trained_and_the_next_freezes_stays_to_the_bit(tmp_path, checkpointing):
    """The next stage's arithmetic rounds it, and must not save what it rounded."""
    torch.set_num_threads(1)
    short = STAGE | {"tokens": 2 * 2 * 64}
    stages = {
        "first": short | dict(objective="mixer_l2", train=["mixer"]),
        "second": short | dict(objective="forward_kl", train=["mlp"], gradient_checkpointing=checkpointing),
    }
    recipe = parse_recipe(RECIPE | {"dtype": "bfloat16", "stages": stages}, origin="test")
    run = Run(recipe, tmp_path / "run", Console(quiet=True))
    convert_teacher(run)
    distil_stage(run, "first")
    distil_stage(run, "second")
    before, after = weights(run, "first"), weights(run, "second")
    mixers = [name for name in before if "linear_attn" in name]
    assert any(not torch.equal(before[name], before[name].bfloat16().float()) for name in mixers)
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == (describe(name).role != "mlp"), name
