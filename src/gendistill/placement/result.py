"""The file that a placement leaves: which layers, of which teacher, found how, at what cost.

{"method", "settings", "seed",
 "teacher": {"name", "layers", "weights_sha256"},
 "layers": [0-based, in their order],
 "scores": {"teacher", "nothing", "chosen"}    of the whole teacher, with no attention kept, with that of `layers`
 "steps": [{"layers", "score"}]                the best set of each size, of a beam search
 "by_layer": {"label", "values": [of each layer, null where none was measured]}
 "sets": [{"layers", "score"}]                 all that were measured, in their order
 "cost": {"seconds", "tokens", "layer_tokens"} tokens through the whole model, and through single layers
 "device", "dtype", "versions",
 "sha256"}                                     of all the above; without it the file is taken as it is

Methods that measure nothing have `layers` alone of what is measured.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gendistill import __version__
from gendistill.errors import UserError
from gendistill.files import read_hashed_json

FILE = "placement.json"


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 of all weights, each rounded to bfloat16: the same in whatever precision the model was loaded."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        # As 16-bit integers: numpy knows no bfloat16.
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    # The package itself may run from its source, not installed.
    return {"gendistill": __version__} | {package: version(package) for package in ("torch", "transformers")}


def read_result(path: Path) -> dict[str, Any]:
    """A placement's result.

    Raises:
        UserError: there is no such file, it is none of a placement, or it is not as it was written.
    """
    if not path.is_file():
        raise UserError(
            f"keep_attention: {path}: no such file. `gendistill place RECIPE` writes one into a run folder."
        )
    try:
        result = read_hashed_json(path)
        needed = (result["layers"], result["teacher"]["layers"], result["teacher"]["weights_sha256"])
    except UserError as error:
        raise UserError(
            f"keep_attention: {path} is no result of `gendistill place` as that wrote it ({error}). Delete it and "
            "place again: what was measured is kept in placement.jsonl. If it was changed on purpose, leave its sha256 "
            "out."
        ) from None
    except (KeyError, TypeError):
        raise UserError(f"keep_attention: {path} is no result of `gendistill place`") from None
    if not all(isinstance(layer, int) for layer in needed[0]):
        raise UserError(f"keep_attention: {path}: its layers are {needed[0]!r}, not a list of numbers")
    return result


def check_teacher(result: dict[str, Any], path: Path, teacher: PreTrainedModel, name: str) -> None:
    """Raises UserError if a result is of another teacher."""
    if result["teacher"]["weights_sha256"] != weights_hash(teacher):
        raise UserError(
            f"{path}: this placement is of another teacher ({result['teacher']['name']}); the weights of {name} are "
            "others. Layers of one model say nothing of another's: place them with `gendistill place`."
        )
