"""A short training of an aligned student in which one layer has its attention back: how near the teacher it comes."""

import tempfile
from copy import deepcopy
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel

from gendistill.console import Console
from gendistill.distill.objectives import unmeasured_conversion_report
from gendistill.distill.roles import set_trainable
from gendistill.distill.stage import train_stage
from gendistill.models.conversion import convert
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.recipe.placement import Restored
from gendistill.run.prepare import prepare_stage
from gendistill.run.run import Run


def train_restored(run: Run, student: GendistillForCausalLM, settings: Restored, layer: int) -> tuple[float, int]:
    """Mean loss over the last quarter of the steps, in nats a token, and the tokens trained on.

    All layers' students see the same data in the same order, so their losses can be compared.

    Args:
        student: aligned, with mixers in all layers; it stays as it is.
    """
    stage = run.recipe.stages[settings.stage].model_copy(update={"tokens": settings.tokens, "expected_loss": None})
    stage = stage.model_copy(update={"checkpoint_every": stage.steps + 1})  # it is short: a killed one starts anew
    dataset = prepare_stage(run, stage)
    restored = restore_attention(run.teacher, student, layer).to(run.compute.device, torch.float32).train()
    set_trainable(restored, stage.train)
    with tempfile.TemporaryDirectory(prefix="gendistill-place-") as folder:
        history, _ = train_stage(
            stage,
            run.teacher,
            restored,
            dataset,
            conversion_report=unmeasured_conversion_report(restored.config),
            vocabulary=len(run.tokenizer),
            compute=run.compute,
            folder=Path(folder),
            fingerprint={},  # for checkpoints, of which there are none
            title=f"layer {layer} restored",
            console=Console(quiet=True),
        )
    last = history[-max(1, len(history) // 4) :]
    return fmean(step.loss for step in last), history[-1].tokens


def restore_attention(teacher: PreTrainedModel, student: GendistillForCausalLM, layer: int) -> GendistillForCausalLM:
    """A student as the given one, with the teacher's attention in the place of one layer's mixer."""
    config = deepcopy(student.config)
    config.layer_types[layer], config.mixers[layer] = "full_attention", None
    with torch.device(student.device):  # where the weights are: gigabytes would go to the host and back, once a layer
        restored, _ = convert(teacher, config, seed=0)
    aligned = dict(student.named_parameters())
    with torch.no_grad():
        for name, weight in restored.named_parameters():
            if name in aligned:  # all but the attention, which is the teacher's
                weight.copy_(aligned[name])
    return restored
