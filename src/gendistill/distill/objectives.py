"""What a stage minimises. Each objective runs one micro-batch, goes backward and returns the sums of its terms.

Sums are over loss tokens; `scale` is one over the loss tokens of the whole step, so a step's gradient does not depend
on how it is cut into micro-batches or over processes. Nothing here makes the host wait for the device.

| term                         | compares                                                | with                     |
| ---------------------------- | ------------------------------------------------------- | ------------------------ |
| mixer_l2, mixer_cosine       | each mixer's output, fed the teacher's input            | the teacher's attention  |
| block_l2, block_cosine       | each whole block's output, fed the teacher's input      | the teacher's block      |
| hidden_l2, hidden_cosine     | hidden states of the student's own pass, after each mixer's block | the teacher's  |
| forward_kl, reverse_kl, jensen_shannon, cross_entropy | next-token distributions       | see `divergences`        |

`OBJECTIVES` says of each term which of these it is. L2 terms are squared errors divided by the mean square of what the
teacher puts out in that layer, as the conversion report measured it, so that 1 is no better than zeros; cosine terms
are 1 - cosine. Both are means over layers.

Shapes: B packed sequences of T tokens, P predicting positions among them, D channels, V words.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from gendistill.distill.acceleration import SideStream
from gendistill.distill.batches import Batch
from gendistill.distill.divergences import VocabularyLoss
from gendistill.errors import UserError
from gendistill.models.attention import PACKED
from gendistill.models.configuration import GendistillConfig
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.names import OBJECTIVES, Matched, Pass
from gendistill.recipe.stage import Stage

# Keys of the conversion report, in which each replaced layer has its own. An L2 term divides by it.
MEAN_SQUARE: dict[Matched, str] = {
    "mixer_output": "attention_mean_square",
    "block_output": "update_mean_square",  # of what the block adds to its input: the input is the same on both sides
    "hidden_states": "hidden_mean_square",
}


def unmeasured_conversion_report(config: GendistillConfig) -> dict:
    """Mean squares of 1 where no conversion has measured any: what a stage costs does not depend on them."""
    layers = config.layers_of_type("linear_attention")
    return {"layers": [{"layer": i} | dict.fromkeys(MEAN_SQUARE.values(), 1.0) for i in layers]}


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
        beside: bool = False,
    ):
        """The teacher may be None if the objective does not need it."""
        self.teacher, self.student, self.fast = teacher, student, fast
        # Without a teacher nothing goes there, and to wait for it would end the capture of a graph.
        self.beside = SideStream() if beside and teacher is not None else None
        self.terms = stage.terms
        # Keyword arguments of `vocabulary_losses`.
        self.settings = {
            "terms": stage.terms_that_match("vocabulary"),
            "vocabulary": vocabulary,
            "temperature": stage.temperature,
        }
        self.hidden_terms = stage.terms_that_match("hidden_states")
        # By layer; also says which layers' outputs a pass has to keep, so it is empty where none are compared.
        self.mean_square = _mean_squares(conversion_report, "hidden_states") if self.hidden_terms else {}

    def backward(self, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
        """Sums of the terms [terms]; gradients of their mixture times `scale` are added to the student's parameters."""
        (hidden, states), (teacher_hidden, teacher_states) = self._run_both(batch)
        with part_of_step("the loss"):
            loss, sums = torch.zeros((), device=hidden.device), {}
            if self.settings["terms"]:
                loss, vocabulary_sums = self._vocabulary_loss(hidden, teacher_hidden, batch)  # scalar, [terms]
                sums |= dict(zip(self.settings["terms"], vocabulary_sums, strict=True))
            if self.hidden_terms:
                distances = self._distances(states, teacher_states, batch)  # [hidden terms]
                for (name, weight), value in zip(self.hidden_terms.items(), distances, strict=True):
                    loss = loss + weight * value
                    sums[name] = value.detach()
        with part_of_step("the student's backward pass"):
            (loss * scale).backward()
        return torch.stack([sums[name] for name in self.terms])

    def _run_both(self, batch: Batch) -> tuple[tuple, tuple]:
        """What `_run` returns for the student, and for the teacher: (None, None) without one."""
        of_teacher = None, None
        if self.teacher is not None:
            # Beside the student's pass, which is given out next and does not wait for this one.
            aside = self.beside.running() if self.beside else nullcontext()
            with torch.no_grad(), part_of_step("the teacher's forward pass"), aside:
                of_teacher = self._run(self.teacher, batch)
        with part_of_step("the student's forward pass"):
            of_student = self._run(self.student, batch)
        if self.beside:
            self.beside.join()  # the loss reads both
        return of_student, of_teacher

    def _run(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Hidden states [P, D] of the predicting positions: the last ones, and those after each compared layer."""
        states = {}

        def keep(i: int, _, output: torch.Tensor) -> None:  # transformers' own list has the last one normed
            states[i] = output  # and nothing more: with gradient checkpointing this runs inside a checkpoint

        with _as_layers_end(model, "block", self.mean_square, keep):
            last = model.model(**inputs_of(model, batch)).last_hidden_state  # [B, T, D]
        # Only positions whose next token is a target: the rest would cost a projection to the vocabulary for nothing.
        last = last.flatten(0, 1)[batch.predictors]  # [P, D]
        states = {i: state.flatten(0, 1)[batch.predictors] for i, state in states.items()}  # [P, D] each
        return last, states

    def _vocabulary_loss(self, hidden: torch.Tensor, teacher_hidden: torch.Tensor | None, batch: Batch) -> tuple:
        """The mixture of the terms over the vocabulary, and their sums [terms]."""
        return VocabularyLoss.apply(
            hidden,
            self.student.lm_head.weight,
            teacher_hidden,
            None if self.teacher is None else self.teacher.lm_head.weight,
            batch.targets,
            batch.weights,
            self.settings,
            self.fast,
        )

    def _distances(self, states: dict, teacher_states: dict, batch: Batch) -> torch.Tensor:
        """[hidden terms]: summed over the predicting positions, means over layers."""
        names = tuple(self.hidden_terms)
        total = 0
        for i, mean_square in self.mean_square.items():
            total = total + distance_sums(names, states[i], teacher_states[i], mean_square, batch.weights)
        return total / len(self.mean_square)


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
        self.compares, self.terms = stage.compares, stage.terms
        (matches,) = {OBJECTIVES[name].matches for name in self.terms}  # one, as all need one pass
        device = next(teacher.parameters()).device
        # As tensors: torch.compile would compile anew for every number.
        self.mean_square = {
            i: torch.tensor(value, dtype=torch.float64, device=device)
            for i, value in _mean_squares(conversion_report, matches).items()
        }

    def backward(self, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
        """Sums of the terms [terms]; gradients of their mixture times `scale` are added to the mixers' parameters."""
        sums = torch.zeros(len(self.terms), device=batch.input_ids.device)
        given = {"documents": batch.documents, "without_window": batch.without_window}

        def align(i: int, inputs: torch.Tensor, target: torch.Tensor) -> None:
            # A hook of the teacher's pass, which runs without gradients.
            if self.student.config.window is not None and "position_embeddings" not in given:
                given["position_embeddings"] = self._position_embeddings(inputs, batch)
            with torch.enable_grad(), part_of_step(f"the student's layer {i}"):
                output = self._output(i, inputs, given)  # [B, T, D]
                values = self.distance_sums(tuple(self.terms), output, target, self.mean_square[i], batch.valid_mask)
                values = values / len(self.mean_square)  # [terms], of the mean over layers
                loss = sum(weight * value for weight, value in zip(self.terms.values(), values, strict=True))
                (loss * scale).backward()  # frees this layer's activations before the teacher's next layer runs
                sums.add_(values.detach())

        hooked = _as_layers_end(self.teacher, self.compares, self.mean_square, align)
        with torch.no_grad(), hooked, part_of_step("the teacher's forward pass"):
            self.teacher.model(**inputs_of(self.teacher, batch))
        return sums

    def _position_embeddings(self, inputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """RoPE's cosine and sine for inputs [B, T, D], which a window needs."""
        positions = batch.position_ids  # [B, T]; None: every sequence is one document
        if positions is None:
            positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
        return self.student.model.rotary_emb(inputs, positions)

    def _output(self, i: int, inputs: torch.Tensor, given: dict) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]: what the student's layer, or its mixer alone, makes of the teacher's input."""
        block = self.student.model.layers[i]
        match self.compares:
            case "mixer":
                output, _ = block.linear_attn(inputs, **given)
                return output
            case "block":
                return block(inputs, **given)
        raise ValueError(f"alignment compares 'mixer' or 'block', not '{self.compares}'")


TrainingObjective = EndToEnd | Alignment


def distance(name: str, output: torch.Tensor, target: torch.Tensor, mean_square: float | torch.Tensor) -> torch.Tensor:
    """[..., D] and [..., D] -> [...]: the distance of a term's name, in float32 or better."""
    dtype = torch.promote_types(output.dtype, torch.float32)  # a difference of bfloat16s would keep few digits
    return OBJECTIVES[name].compute(output.to(dtype), target.to(dtype), mean_square)


def distance_sums(
    names: tuple[str, ...],
    output: torch.Tensor,
    target: torch.Tensor,
    mean_square: float | torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """[terms]: each named distance between two [..., D], summed over tokens by what they count [...]."""
    return torch.stack([(distance(name, output, target, mean_square) * weights).sum() for name in names])


def inputs_of(model: PreTrainedModel, batch: Batch) -> dict:
    """What a teacher's or student's body is called with."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    # Other attention functions find the documents in the positions, by transformers' masks.
    if isinstance(model, GendistillForCausalLM) or model.config._attn_implementation == PACKED:
        inputs["documents"] = batch.documents
    if isinstance(model, GendistillForCausalLM) and batch.without_window is not None:
        inputs["without_window"] = batch.without_window
    return inputs


def _mean_squares(conversion_report: dict, matches: Matched) -> dict[int, float]:
    """Of the teacher, by replaced layer."""
    return {layer["layer"]: layer[MEAN_SQUARE[matches]] for layer in conversion_report["layers"]}


@contextmanager
def _as_layers_end(model: PreTrainedModel, part: Pass, layers: Mapping[int, float], do) -> Iterator[None]:
    """Calls do(layer, input, output) whenever one of the model's attentions or blocks ends inside the block.

    Args:
        part: "mixer" for the attention of a layer, "block" for the whole of it.
        layers: whose keys are the layers to watch.
    """
    blocks = model.model.layers
    match part:
        case "mixer":
            watched = {i: blocks[i].self_attn for i in layers}
        case "block":
            watched = {i: blocks[i] for i in layers}
        case _:
            raise ValueError(f"layers end in a 'mixer' or a 'block', not '{part}'")

    def watch(i: int, module: nn.Module):
        def hook(_module, args, kwargs, output):
            # transformers calls attention by name and blocks by position.
            inputs = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # [B, T, D]
            do(i, inputs, output[0] if part == "mixer" else output)  # attention returns its weights as well

        return module.register_forward_hook(hook, with_kwargs=True)

    hooks = [watch(i, module) for i, module in watched.items()]
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
    beside: bool = False,
) -> TrainingObjective:
    """The objective of a recipe's stage.

    Args:
        conversion_report: of the conversion; holds the teacher's mean squares in each replaced layer.
        vocabulary: words that the tokenizer has; rows of the embedding beyond it are padding.
        fast: on a CUDA device: losses as few kernels.
        beside: on a CUDA device: end to end the teacher on a stream of its own.
    """
    match stage.compares:
        case "end_to_end":
            teacher = teacher if stage.needs_teacher else None  # one that is given for other stages would cost a pass
            return EndToEnd(teacher, student, stage, conversion_report, vocabulary, fast, beside)
        case "mixer" | "block":
            return Alignment(teacher, student, stage, conversion_report, fast)
    raise ValueError(f"unknown pass '{stage.compares}'; known: {', '.join(get_args(Pass))}")
