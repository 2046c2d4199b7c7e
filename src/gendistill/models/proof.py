"""The proof that what a student keeps of its teacher computes what the teacher computes.

A student with attention in every layer is the teacher, tensor by tensor. If its logits on some text are not the
teacher's, the family does something that the student does not: scaled embeddings, layers without positions, other
norms. Tensor names and shapes do not show that, and a student of such a family would be wrong without a word.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from gendistill.errors import UserError
from gendistill.models.attention import attention_switched_to
from gendistill.models.configuration import GendistillConfig
from gendistill.models.families import FAMILIES
from gendistill.models.view import all_attention

# Relative error of the logits that rounding can explain, where it is not zero. Both models run the same operations on
# the same tensors, but a GPU's rotary frequencies may be rounded otherwise than a CPU's, and a library may take another
# algorithm for the same product: on an H200 the 28 layers of Qwen3-0.6B's shape differed by 1.2e-6 in float32, with a
# teacher that was built on the GPU itself. A family that is wrong differs by far more than any of these.
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@torch.inference_mode()
def prove_kept_attention(
    teacher: PreTrainedModel, config: GendistillConfig, batches: Sequence[dict[str, torch.Tensor]]
) -> None:
    """Compares the logits of the teacher and of its student with attention in all layers, on the first sequence.

    In float32 on a CPU they must be the same bits; elsewhere their relative error may be as `ROUNDING` says.

    Args:
        config: of the student that is wanted.
        batches: input_ids and position_ids, each [B, T], on the teacher's device.

    Raises:
        UserError: the teacher's logits are no numbers; or they differ, or a tensor has no counterpart; names the
            family, and says what differs.
    """
    student = all_attention(teacher, config)
    text = {name: batches[0][name][:1] for name in ("input_ids", "position_ids")}  # [1, T] each
    with attention_switched_to(teacher.config._attn_implementation, student):
        expected, got = (model(**text, use_cache=False).logits for model in (teacher, student))  # [1, T, vocab]
        if not expected.isfinite().all():
            outputs = outputs_on_the_way(teacher, text)
            first = next(name for name, output in outputs.items() if not output.isfinite().all())
            raise UserError(not_finite(teacher.config.name_or_path, f"{first} holds NaN or infinity"))
        allowed = allowed_error(teacher.dtype, teacher.device)
        if relative_error(got, expected) <= allowed:
            return
        index, error = first_difference(teacher, student, text, allowed)
    largest = (got.float() - expected.float()).abs().max().item()
    raise UserError(
        f"teacher of model type '{teacher.config.model_type}': with attention kept in every layer, the student does "
        f"not compute what the teacher computes. Logits differ by up to {largest:.3g} (relative error "
        f"{relative_error(got, expected):.1e}, allowed {allowed:.1e}), and the first to differ is {index} (relative "
        f"error {error:.1e}). Families that pass: {', '.join(FAMILIES)}; this teacher cannot be converted."
    )


def not_finite(teacher: str, what: str) -> str:
    """What is to be said of a teacher that computes what is no number; `what`: where that was found."""
    return (
        f"teacher {teacher}: {what}, so there is nothing to convert or learn from. Its weights may be damaged "
        "(download them again), or too large for this precision (dtype: float32)"
    )


def allowed_error(dtype: torch.dtype, device: torch.device) -> float:
    """The relative error of logits that rounding can explain."""
    if dtype == torch.float32 and device.type == "cpu":
        return 0.0
    if dtype not in ROUNDING:
        raise ValueError(f"no rounding is stated for {dtype}; known: {', '.join(map(str, ROUNDING))}")
    return ROUNDING[dtype]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm; infinite for what is not finite."""
    # Squares are summed in float64: in float32 those of the least differences would vanish.
    norms = [torch.linalg.vector_norm(x.float(), dtype=torch.float64).item() for x in (got - expected, expected)]
    error = norms[0] / max(norms[1], torch.finfo(torch.float32).tiny)
    return error if error < float("inf") else float("inf")  # NaN too


def first_difference(
    teacher: PreTrainedModel, student: PreTrainedModel, text: dict[str, torch.Tensor], allowed: float
) -> tuple[str, float]:
    """The first output that differs on the way from embedding to logits, and its relative error."""
    expected, got = (outputs_on_the_way(model, text) for model in (teacher, student))
    for name, output in expected.items():
        error = relative_error(got[name], output)
        if error > allowed:
            return name, error
    # The logits differ and no state does, each for itself, beyond what is allowed.
    return "the logits", relative_error(got["the logits"], expected["the logits"])


def outputs_on_the_way(model: PreTrainedModel, text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hidden states [1, T, hidden] after embedding, each layer and the final norm, and logits, by name."""
    outputs: dict[str, torch.Tensor] = {}

    def record(name: str):
        # Layers give a tensor, or in some families a tuple with the tensor in front.
        return lambda _, __, output: outputs.update({name: output[0] if isinstance(output, tuple) else output})

    def record_input(_, args, kwargs):
        # What the first layer is given: a family may scale what its embedding looks up.
        outputs["the embedding"] = args[0] if args else kwargs["hidden_states"]

    layers = model.model.layers
    hooks = [layers[0].register_forward_pre_hook(record_input, with_kwargs=True)]
    hooks += [layer.register_forward_hook(record(f"layer {i}")) for i, layer in enumerate(layers)]
    hooks.append(model.model.norm.register_forward_hook(record("the final norm")))
    try:
        logits = model(**text, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return outputs | {"the logits": logits}
