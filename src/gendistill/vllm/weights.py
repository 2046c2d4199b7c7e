"""Where each tensor of a student's folder goes in vLLM's model; none may be missing, none may be left over."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from gendistill.errors import UserError
from gendistill.models import GendistillConfig, GendistillForCausalLM
from gendistill.models.modeling import describe

# Projections that vLLM has as one, with the part of it that each is.
JOINT: dict[str, tuple[str, str | int]] = {
    ".self_attn.q_proj.": (".self_attn.qkv_proj.", "q"),
    ".self_attn.k_proj.": (".self_attn.qkv_proj.", "k"),
    ".self_attn.v_proj.": (".self_attn.qkv_proj.", "v"),
    ".mlp.gate_proj.": (".mlp.gate_up_proj.", 0),
    ".mlp.up_proj.": (".mlp.gate_up_proj.", 1),
}
LINEAR = ".linear_attn."
HEAD = "lm_head.weight"


class Target(NamedTuple):
    """A parameter of vLLM's model, and which part of it; None: all."""

    name: str
    part: str | int | None = None


def target_of(name: str) -> Target:
    """Where a student's tensor goes.

    Raises:
        ValueError: no layer of a student declares the parameter.
    """
    describe(name)
    for ours, (theirs, part) in JOINT.items():
        if ours in name:
            return Target(name.replace(ours, theirs), part)
    return Target(name.replace(LINEAR, f"{LINEAR}mixer."))


def shapes_of(config: GendistillConfig) -> dict[str, torch.Size]:
    """Names and shapes of all tensors in a student's folder."""
    with torch.device("meta"):
        tensors = GendistillForCausalLM(config).state_dict()
    return {name: x.shape for name, x in tensors.items() if not (name == HEAD and config.tie_word_embeddings)}


def accounted(
    weights: Iterable[tuple[str, torch.Tensor]], config: GendistillConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Passes a folder's tensors on, and holds them to the configuration.

    Raises:
        UserError: a tensor is not the student's or has another shape; at the end, if some were missing.
    """
    ahead = shapes_of(config)
    for name, tensor in weights:
        if name == HEAD and config.tie_word_embeddings:  # the embedding, written once more
            continue
        shape = ahead.pop(name, None)
        if shape is None:
            raise UserError(f"the folder holds {name}, which its config.json has no place for; export the student anew")
        if shape != tensor.shape:
            raise UserError(
                f"{name} is {tuple(tensor.shape)} in the folder, and {tuple(shape)} by its config.json; "
                "export the student anew"
            )
        yield name, tensor
    if ahead:
        raise UserError(f"the folder lacks {', '.join(ahead)}; export the student anew")
