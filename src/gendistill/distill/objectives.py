"""What a stage minimises. Each objective runs one micro-batch, goes backward and returns the sums of its terms.

Sums are over loss tokens; `scale` is one over the loss tokens of the whole step, so a step's gradient does not depend
on how it is cut into micro-batches or over processes. Nothing here makes the host wait for the device.

| term                         | compares                                                | with                     |
| ---------------------------- | ------------------------------------------------------- | ------------------------ |
| mixer_l2, mixer_cosine       | each mixer's output, fed the teacher's input            | the teacher's attention  |
| block_l2, block_cosine       | each whole block's output, fed the teacher's input      | the teacher's block      |
| hidden_l2, hidden_cosine     | hidden states of the student's own pass, after each mixer's block | the teacher's  |
| forward_kl, reverse_kl, jensen_shannon, cross_entropy | next-token distributions       | see `divergences`        |

L2 terms are squared errors divided by the teacher's power in that layer, as the conversion report measured it, so that
1 is no better than silence; cosine terms are 1 - cosine. Both are means over layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from gendistill.distill.acceleration import SideStream
from gendistill.distill.batches import Batch
from gendistill.distill.divergences import VocabularyLoss
from gendistill.errors import UserError
from gendistill.models.attention import PACKED
from gendistill.models.configuration import GendistillConfig
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.recipe.stage import Stage

POWER = {
    "mixer": "attention_mean_square",
    "block": "update_mean_square",
    "hidden": "hidden_mean_square",
}  # names in the conversion report


def unmeasured_conversion_report(config: GendistillConfig) -> dict:
    """Powers of 1 where no conversion has measured any: what a stage costs does not depend on them."""
    layers = config.layers_of_type("linear_attention")
    return {"layers": [{"layer": i} | dict.fromkeys(POWER.values(), 1.0) for i in layers]}


@contextmanager
def part_of_step(name: str) -> Iterator[None]:
    """Turns running out of memory inside the block into a UserError that says in which part of the step it was."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory in {name} ({str(error).splitlines()[0]}) Lower micro_batch, set gradient_checkpointing: "
            "true, or take optimizer: adamw_8bit; `gendistill plan RECIPE` shows what needs how much."
        ) from error


class EndToEnd:
    """Terms over the student's own pass: its next-token distributions and its hidden states."""

    def __init__(
        self,
        teacher: PreTrainedModel | None,
        student: GendistillForCausalLM,
        stage: Stage,
        conversion_report: dict,
        vocabulary: int,
        fast: bool = False,
    ):
        """The teacher may be None if the objective does not need it."""
        self.teacher, self.student, self.fast = teacher, student, fast
        self.beside = SideStream() if fast else None
        self.terms = stage.terms
        on_words = {name: weight for name, weight in stage.terms.items() if not name.startswith("hidden")}
        self.settings = {"terms": on_words, "vocabulary": vocabulary, "temperature": stage.temperature}
        self.hidden_terms = {name: weight for name, weight in stage.terms.items() if name.startswith("hidden")}
        self.power = _power(conversion_report, "hidden") if self.hidden_terms else {}

    def backward(self, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
        """Sums of the terms [terms]; gradients of their mixture times `scale` are added to the student's parameters."""
        teacher_hidden, teacher_states = None, None
        if self.teacher is not None:
            aside = self.beside.running() if self.beside else nullcontext()
            with torch.no_grad(), part_of_step("the teacher's forward pass"), aside:
                teacher_hidden, teacher_states = self._run(self.teacher, batch)
        with part_of_step("the student's forward pass"):
            hidden, states = self._run(self.student, batch)
        if self.beside:
            self.beside.join()
        with part_of_step("the loss"):
            loss, sums = torch.zeros((), device=hidden.device), {}
            if self.settings["terms"]:
                loss, on_words = VocabularyLoss.apply(
                    hidden,
                    self.student.lm_head.weight,
                    teacher_hidden,
                    None if self.teacher is None else self.teacher.lm_head.weight,
                    batch.targets,
                    batch.weights,
                    self.settings,
                    self.fast,
                )
                sums |= dict(zip(self.settings["terms"], on_words, strict=True))
            if self.hidden_terms:
                names = tuple(self.hidden_terms)
                distances = (
                    distance_sums(names, states[i], teacher_states[i], power, batch.weights)
                    for i, power in self.power.items()
                )
                for name, value in zip(names, sum(distances) / len(self.power), strict=True):
                    loss, sums[name] = loss + self.hidden_terms[name] * value, value.detach()
        with part_of_step("the student's backward pass"):
            (loss * scale).backward()
        return torch.stack([sums[name] for name in self.terms])

    def _run(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Hidden states [P, D] of the predicting positions: the last ones, and those after the layers in `power`."""
        states = {}

        def keep(i: int, _, output: torch.Tensor) -> None:  # transformers' own list has the last one normed
            states[i] = output  # and nothing more: with gradient checkpointing this runs inside a checkpoint

        with _as_layers_end(model, "block", self.power, keep):
            last = model.model(**_inputs(model, batch)).last_hidden_state
        last, *others = (state.flatten(0, 1)[batch.predictors] for state in (last, *states.values()))
        return last, dict(zip(states, others, strict=True))


class Alignment:
    """Terms over single layers, each fed the teacher's own input.

    The teacher runs once; as each of its layers ends, the student's goes forward and backward on what the teacher's
    saw. So there is never more than one layer's worth of activations.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: GendistillForCausalLM,
        stage: Stage,
        conversion_report: dict,
        fast: bool = False,
    ):
        self.teacher, self.student = teacher, student
        self.distance_sums = torch.compile(distance_sums, dynamic=False) if fast else distance_sums
        self.place, self.terms = stage.compares, stage.terms
        # As tensors: torch.compile would compile anew for every number.
        power = _power(conversion_report, self.place)
        device = next(teacher.parameters()).device
        self.power = {i: torch.tensor(value, dtype=torch.float64, device=device) for i, value in power.items()}

    def backward(self, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
        """Sums of the terms [terms]; gradients of their mixture times `scale` are added to the mixers' parameters."""
        sums = torch.zeros(len(self.terms), device=batch.input_ids.device)
        documents = batch.documents

        def align(i: int, inputs: torch.Tensor, target: torch.Tensor) -> None:
            block = self.student.model.layers[i]
            with torch.enable_grad(), part_of_step(f"the student's layer {i}"):
                if self.place == "mixer":
                    output, _ = block.linear_attn(inputs, documents=documents)
                else:
                    output = block(inputs, documents=documents)
                values = self.distance_sums(tuple(self.terms), output, target, self.power[i], batch.valid_mask)
                values = values / len(self.power)
                loss = sum(weight * value for weight, value in zip(self.terms.values(), values, strict=True))
                (loss * scale).backward()
                sums.add_(values.detach())

        hooked = _as_layers_end(self.teacher, self.place, self.power, align)
        with torch.no_grad(), hooked, part_of_step("the teacher's forward pass"):
            self.teacher.model(**_inputs(self.teacher, batch))
        return sums


TrainingObjective = EndToEnd | Alignment


def distance(name: str, output: torch.Tensor, target: torch.Tensor, power: float | torch.Tensor) -> torch.Tensor:
    """[..., D] and [..., D] -> [...]: the L2 or cosine distance of a term's name, in float32 or better."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    output, target = output.to(dtype), target.to(dtype)
    if name.endswith("_l2"):
        return (output - target).square().mean(-1) / power
    return 1 - F.cosine_similarity(output, target, dim=-1)


def distance_sums(
    names: tuple[str, ...],
    output: torch.Tensor,
    target: torch.Tensor,
    power: float | torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """[terms]: each named distance between two [..., D], summed over tokens by what they count [...]."""
    return torch.stack([(distance(name, output, target, power) * weights).sum() for name in names])


def _inputs(model: PreTrainedModel, batch: Batch) -> dict:
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if isinstance(model, GendistillForCausalLM) or model.config._attn_implementation == PACKED:
        inputs["documents"] = batch.documents
    return inputs


def _power(conversion_report: dict, place: str) -> dict[int, float]:
    return {layer["layer"]: layer[POWER[place]] for layer in conversion_report["layers"]}


@contextmanager
def _as_layers_end(model: PreTrainedModel, place: str, layers: Mapping[int, float], do) -> Iterator[None]:
    """Calls do(layer, input, output) whenever one of the model's attentions or blocks ends inside the block."""

    def watch(i: int, module: nn.Module):
        def hook(_module, args, kwargs, output):
            inputs = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            do(i, inputs, output[0] if place == "mixer" else output)

        return module.register_forward_hook(hook, with_kwargs=True)

    blocks = model.model.layers
    hooks = [watch(i, blocks[i].self_attn if place == "mixer" else blocks[i]) for i in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def build_objective(
    stage: Stage,
    teacher: PreTrainedModel,
    student: GendistillForCausalLM,
    conversion_report: dict,
    vocabulary: int,
    fast: bool = False,
) -> TrainingObjective:
    """The objective of a recipe's stage.

    Args:
        conversion_report: of the conversion; holds the teacher's power in each replaced layer.
        vocabulary: words that the tokenizer has; rows of the embedding beyond it are padding.
        fast: on a CUDA device: losses as few kernels, and end to end the teacher on a stream of its own.
    """
    if stage.compares == "end_to_end":
        teacher = teacher if stage.needs_teacher else None
        return EndToEnd(teacher, student, stage, conversion_report, vocabulary, fast)
    return Alignment(teacher, student, stage, conversion_report, fast)
