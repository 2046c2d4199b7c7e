"""What a run takes beside its training: counted in tokens that a model reads, at a speed that is measured once.

Rough by nature: what a token costs depends on what it is read with. All counts are upper bounds.
"""

import time
from statistics import median

import torch
from transformers import PreTrainedModel

from gendistill.distill.reply_kl import MOST_NEW_TOKENS, PROMPTS
from gendistill.recipe.loading import Recipe
from gendistill.recipe.placement import Beam, Fixed
from gendistill.run.probe import Probe

READ = {"cpu": 1024, "cuda": 2**14}  # tokens of the measurement
ROW = 512  # tokens in a row of it
MEASURED = 3  # passes
# Tokens read in the time of one that is generated in a batch, whose weights are fetched anew for it.
DECODED = 4
# Passes over the conversion's tokens: the proof, the teacher's loss, and for each initialisation calibration and loss.
PASSES = {"window": 8, "kda": 23}
SHORT = 64  # tokens of a prompt whose task does not say how long it is: the embedded ones
LOADED_SECONDS = 20  # for importing, reading weights, hashing and writing students


@torch.inference_mode()
def seconds_per_token(model: PreTrainedModel) -> float:
    """Seconds that a token takes in prefill, measured."""
    tokens = READ[model.device.type]
    ids = torch.zeros(tokens // ROW, ROW, dtype=torch.long, device=model.device)
    model.model(input_ids=ids, use_cache=False)  # the first pass loads kernels
    seconds = []
    for _ in range(MEASURED):
        began = _now(model)
        model.model(input_ids=ids, use_cache=False)
        seconds.append(_now(model) - began)
    return median(seconds) / tokens  # other programs come and go


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()  # the clock must not be read before the GPU is done
    return time.perf_counter()


def placement_tokens(keep: Beam | Fixed, layers: int) -> int:
    """Tokens through the whole model in a beam search of width 1 over all layers; none where nothing is measured."""
    if isinstance(keep, Fixed):  # a place is looked up
        return 0
    # Sets that grow by layer n share what lies below n: n + 1 of `layers` sets are apart at the n-th layer.
    layer_passes = keep.layers * (layers * (layers + 1) // 2 + layers)
    layer_passes += 2 * layers  # the whole teacher, and none kept
    return keep.prompts * keep.length * layer_passes // layers


def evaluation_tokens(recipe: Recipe) -> int:
    """Tokens that the evaluation of one model reads; of tasks whose prompts have a length that is given."""
    # Each prompt is read for ranking and for generation.
    tasks = recipe.evaluation.tasks.values()
    # What is generated is counted to the budget, though most replies are shorter.
    return sum(task.items * (2 * getattr(task, "length", SHORT) + DECODED * task.max_new_tokens) for task in tasks)


def evaluated_models(recipe: Recipe) -> int:
    """The teacher, and the students that are evaluated; without any, not the teacher either."""
    students = len(recipe.evaluated_stages)
    return students + 1 if students else 0


def run_seconds(recipe: Recipe, layers: int, per_token: float, probes: dict[str, Probe]) -> dict[str, float]:
    """Seconds of each part of a run of a recipe that `default_recipe` made."""
    stages = recipe.stages
    conversion = PASSES[recipe.student.mixer] * recipe.conversion.tokens
    replies = 0
    if any(stage.loss_on == "completion" for stage in stages.values()):
        # Teacher and student read each reply once more.
        replies = (1 + len(stages)) * PROMPTS * MOST_NEW_TOKENS * (DECODED + 2)
    # By the probes, on a student of the same shape.
    training = sum(probe.hours(stages[name]) * 3600 + probe.start_up_seconds for name, probe in probes.items())
    return {
        "loading": LOADED_SECONDS,
        "placement": placement_tokens(recipe.student.keep_attention, layers) * per_token,
        "conversion": conversion * per_token,
        "training": training,
        "replies": replies * per_token,
        "evaluation": evaluated_models(recipe) * evaluation_tokens(recipe) * per_token,
    }
