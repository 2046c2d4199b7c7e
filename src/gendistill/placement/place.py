"""Chooses the layers of a teacher that keep softmax attention, by the method that a recipe asks for."""

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gendistill.console import Console
from gendistill.distributed import WHOLE, Share, on_rank_zero
from gendistill.files import write_hashed_json
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.placement.layerwise import Layerwise, Others, check_student
from gendistill.placement.measurement import Measurement, Train
from gendistill.placement.methods import METHODS
from gendistill.placement.prompts import PromptMaker
from gendistill.placement.result import FILE, versions, weights_hash
from gendistill.placement.scoring import Scorer
from gendistill.placement.search import fixed
from gendistill.placement.store import Store
from gendistill.recipe.placement import Fixed, Measured, Method


def place(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Method,
    *,
    student: GendistillForCausalLM | None = None,
    train: Train | None = None,
    name: str,
    seed: int,
    folder: Path,
    console: Console,
    share: Share = WHOLE,
) -> dict[str, Any]:
    """Chooses layers and writes placement.json into `folder`, or resumes an earlier attempt there; returns the result.

    Args:
        teacher: on the device and in the precision to measure in.
        student: aligned, with mixers in all layers; for settings with `others: mixer`.
        train: for method kl with a stage.
        name: of the teacher, as in the recipe.
        share: this process's of the measuring. All processes call it, with a teacher each; the result does not depend
            on how many they are, and the first one writes it.

    Raises:
        UserError: more layers than there are; a prompt that the model cannot read; see `check_student`.
    """
    began = time.perf_counter()
    of = teacher.config.num_hidden_layers
    result: dict[str, Any] = {
        "method": settings.method,
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "teacher": {"name": name, "layers": of, "weights_sha256": weights_hash(teacher)},
        "device": torch.cuda.get_device_name() if teacher.device.type == "cuda" else teacher.device.type,
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    if isinstance(settings, Fixed):
        result["layers"] = fixed(settings.method, settings.layers, of)
    elif isinstance(settings, Measured):
        fixed("first", settings.layers, of)  # refuses more layers than there are
        if student is not None:
            check_student(teacher, student)
        model = Layerwise(teacher, Others(settings.others, settings.window, settings.sinks, student), share)
        maker = PromptMaker(settings, tokenizer, teacher, seed)
        prompts = maker.first(settings.prompts)
        content = result | {"prompts": prompts.input_ids.tolist(), "student": student and weights_hash(student)}
        store = Store(folder / "placement.jsonl", hashlib.sha256(json.dumps(content).encode()).hexdigest(), began)
        result |= _measure(Measurement(Scorer(model, prompts), maker, store, console, train), settings)
    else:
        raise TypeError(f"no placement by {type(settings).__name__}")
    on_rank_zero(lambda: write_hashed_json(folder / FILE, result))
    return result


def _measure(measurement: Measurement, settings: Measured) -> dict[str, Any]:
    """What measuring adds to a result."""
    store, layers = measurement.store, measurement.of
    found = METHODS[settings.method](measurement, settings)
    found["layers"] = sorted(found["layers"])
    scores = measurement.evaluate([(), tuple(found["layers"])])
    # With the whole teacher's own pass, which comes before all others.
    layer_tokens = store.total("layer_tokens") + measurement.scorer.prompts.tokens * layers
    return found | {
        "scores": {
            "teacher": asdict(measurement.scorer.whole),
            "nothing": asdict(scores[()]),
            "chosen": asdict(scores[tuple(found["layers"])]),
        },
        "sets": [{"layers": kept, "score": asdict(score)} for kept, score in measurement.scores.items()],
        "cost": {
            "seconds": round(store.total("seconds"), 1),
            "tokens": round(layer_tokens / layers),
            "layer_tokens": layer_tokens,
        },
    }
