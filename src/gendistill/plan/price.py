"""What a stage will cost, worked out from configurations alone: memory, disk and arithmetic.

Nothing is loaded and nothing runs: models are built on torch's meta device, which knows shapes and holds no data. How
long a stage takes cannot be worked out; `run.probe` measures it.

Memory is a sum of what is held throughout and the largest of four moments. All sizes are bytes.

| moment               | alive beside what is held                                                                |
| -------------------- | ---------------------------------------------------------------------------------------- |
| setting up           | the student in float32; optimizer state and gradients are not there yet                  |
| the loss             | what the forward pass kept, and a chunk of logits                                        |
| the backward pass    | what the forward pass kept and a layer's work; at its end the micro-batch's gradients    |
| the optimizer's step | two float32 copies of what trains                                                        |
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from gendistill.compute import Compute
from gendistill.data.dataset import COLUMNS
from gendistill.distill.acceleration import takes_graphs
from gendistill.distill.checkpoint import KEEP
from gendistill.distill.divergences import CHUNK
from gendistill.distill.roles import set_trainable
from gendistill.inference.generation import ROWS_AT_ONCE, TOKENS_AT_ONCE
from gendistill.models.configuration import GendistillConfig
from gendistill.models.cost import (
    FLOAT32,
    expected_cache_bytes,
    head_flops,
    layer_keeps,
    mixing_flops,
    teacher_flops,
    training_flops,
    weights_of_products,
)
from gendistill.models.modeling import GendistillForCausalLM, describe
from gendistill.plan.holding import Holding, Parameters, holding, student_bytes
from gendistill.recipe.loading import Recipe
from gendistill.recipe.stage import Stage

GIB = 2**30
ADAM_STATE = {"adamw": 8, "adamw_8bit": 2}  # bytes a parameter: two moments
CACHED = (32 * 1024, 128 * 1024)  # tokens of a text whose cache is told
STEP_COPIES = 8  # bytes a parameter: `MasterOptimizer.step` keeps the masters of before, and the change
ROW_BYTES = sum(np.dtype(column).itemsize for column in COLUMNS.values())  # of a prepared data set, a token
MADE_BYTES = 6  # of a conversation made of texts, a token; English text has four to five
# Of replies.jsonl, a token: the digits of an id, a comma and a space.
REPLY_BYTES = 8
CUDA_CONTEXT = GIB // 2  # driver, kernels and cuBLAS's workspace; torch does not count it
# The tables of models/cost.py leave out statistics of norms, rotary tables, masks, indices and rounding by the
# allocator. On an H100 the stages of results/gpu/training_speed.json and plan_accuracy.json, of two shapes, come out
# within 12 %.
# Gradients that a layer's backward pass has at once, and what fla's kernels compute again, as a share of what the layer
# kept for it, which is freed on the way. From the three stages of training_speed.json.
BACKWARD_WORK = 0.45
# Tensors [CHUNK, vocabulary] at once in the loss: the last chunk's logits are still there when the next are made. Not
# fused, log-probabilities, probabilities, slopes and gradient in float32 as well.
LOGITS, EAGER_LOGITS = {"teacher": 1, "student": 2}, 8


class Disk(NamedTuple):
    """Bytes that a stage writes."""

    data_set: int
    checkpoints: int  # KEEP and the one being written; gone when the stage is done
    student: int  # what trained is saved in float32
    replies: int = 0  # that an on-policy stage keeps


class Writing(NamedTuple):
    """What an on-policy stage takes to write its replies, besides its training.

    Attributes:
        replies: at a time; fewer where their caches do not fit, so that memory is never the reason to refuse a stage.
        cache_bytes: of so many replies, and as many tokens of prompts.
    """

    replies: int
    cache_bytes: int


class Caches(NamedTuple):
    """Bytes of one text's cache."""

    teacher: int
    student: int

    @property
    def saving(self) -> float:
        """The share that the student does without."""
        return 1 - self.student / self.teacher


@dataclass(frozen=True)
class Price:
    """What a stage costs.

    Attributes:
        parts: bytes of each part of the memory; the last three pass, and are not all there at once.
        moments: bytes of all that is alive at each moment; see the module.
        needed: bytes that the device must have.
        flops_per_token: operations of teacher and student, forward and backward, nothing computed twice.
    """

    tokens: int
    steps: int
    parts: Mapping[str, int]
    moments: Mapping[str, int]
    needed: int
    disk: Disk
    flops_per_token: float
    writing: Writing | None = None
    strategy: str = "whole"  # how the processes hold the models
    graphs: bool = False  # whether micro-batches are replayed as CUDA graphs

    @property
    def total(self) -> int:
        """Bytes alive at the peak."""
        return max(self.moments.values())

    @property
    def counted(self) -> int:
        """What torch.cuda.max_memory_allocated counts.

        It does not count replays of graphs. The warm-ups before them are the same, but AdamW has no state yet.
        """
        if not self.graphs:
            return self.total
        return max(self.moments["the optimizer's step"], self.total - self.parts["optimizer state"])

    @property
    def peak(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=self.moments.get)

    def to_dict(self) -> dict:
        memory = {"parts": dict(self.parts), "moments": dict(self.moments), "total": self.total, "device": self.needed}
        writing = None if self.writing is None else self.writing._asdict()
        return {
            "tokens": self.tokens,
            "steps": self.steps,
            "strategy": self.strategy,
            "memory_bytes": memory,
            "disk_bytes": self.disk._asdict(),
            "flops_per_token": self.flops_per_token,
            "writing": writing,
        }


class Planner:
    """Prices stages of one pair of teacher and student, for each of the processes that share the work.

    Args:
        memory: bytes that a process has; decides on replicas where the compute leaves the strategy open.
    """

    def __init__(
        self, teacher: PreTrainedConfig, student: GendistillConfig, compute: Compute, memory: int | None = None
    ):
        self.config, self.compute, self.memory = student, compute, memory
        self.size = compute.dtype.itemsize
        with torch.device("meta"), no_init_weights():
            self.teacher = AutoModelForCausalLM.from_config(teacher, trust_remote_code=False)
            self.student = GendistillForCausalLM._from_config(student)
        self.teacher.tie_weights()
        self.student.tie_weights()

    def strategy(self, stage: Stage) -> str:
        """How the processes hold the models in a stage: "whole", "replicas", "hybrid", "zero2" or "fsdp".

        Raises:
            UserError: see `price`.
        """
        if self.compute.strategy != "auto":
            return self.compute.strategy
        # The less passes between processes, the sooner it is tried.
        candidates = ["replicas", *(["hybrid"] if self.compute.hosts > 1 else []), "zero2"]
        return next((strategy for strategy in candidates if self.fits(stage, strategy)), "fsdp")

    def fits(self, stage: Stage, strategy: str) -> bool:
        """Whether a process has the memory for it; where nobody knows how much there is, it does."""
        return self.memory is None or self.price(stage, strategy).needed <= self.memory

    def price(self, stage: Stage, strategy: str | None = None) -> Price:
        """What a stage costs, by the strategy that it would have, or by another one.

        Raises:
            UserError: a role of the stage has no parameters in this student.
        """
        strategy = strategy or self.strategy(stage)
        parameters = self.parameters(stage)
        own = holding(strategy, parameters, self.size, self.compute.processes, self.compute.hosts)
        parts = self._held(stage, own)
        held = sum(parts.values())
        kept, layer = (round(x * stage.micro_batch * stage.sequence_length) for x in self._activations(stage))
        # A layer at a time: what it keeps comes on top of what is kept of all.
        alone = layer if stage.gradient_checkpointing or stage.compares != "end_to_end" else 0
        work, loss = round(layer * BACKWARD_WORK), self._loss(stage)
        parts["gradients"] += own.micro_gradients
        parts |= {"activations": kept + alone, "loss": loss, "backward pass": work}

        # Buckets between processes are done with when the optimizer begins.
        step = max(STEP_COPIES * own.stepped, own.exchange)
        # Gradients of the weights come as activations go, so the two are never there in full together.
        backward = max(kept + alone + work, own.micro_gradients + layer + work)
        moments = {
            "setting up": own.setting_up,
            "the loss": held + kept + loss,
            "the backward pass": held + backward,
            "the optimizer's step": held + step,
        }
        needed = max(moments.values())
        graphs = takes_graphs(self.student, stage, replace(self.compute, strategy=strategy))
        if graphs:  # their memory stays reserved during the optimizer's step
            needed = max(needed, held + max(kept + loss, backward) + step)
        writing = None if stage.on_policy is None else self._writing(stage)
        if writing is not None:  # beside the graphs; one reply at a time must fit
            needed += writing.cache_bytes // writing.replies
        if self.compute.device == "cuda":
            needed += CUDA_CONTEXT
        return Price(
            tokens=stage.whole_tokens,
            steps=stage.steps,
            parts=parts,
            moments=moments,
            needed=needed,
            disk=self._disk(stage, parameters),
            flops_per_token=self._flops(stage),
            writing=writing,
            strategy=strategy,
            graphs=graphs,
        )

    def parameters(self, stage: Stage) -> Parameters:
        """Raises UserError if a role of the stage has no parameters in this student."""
        set_trainable(self.student, stage.train)
        return self._count()

    def _count(self) -> Parameters:
        """By what of the student requires gradients."""
        sizes: Counter[str] = Counter()
        for name, parameter in self.student.named_parameters():
            trained = parameter.numel() * parameter.requires_grad
            sizes += Counter(student=parameter.numel(), trained=trained)
            if describe(name).stays_float32:
                sizes += Counter(student_gates=parameter.numel(), trained_gates=trained)
            elif name.startswith("model.layers."):
                sizes += Counter(student_layers=parameter.numel(), trained_layers=trained)
        return Parameters(
            **{name: sizes[name] for name in Parameters._fields}
            | {
                "teacher": _size(self.teacher),
                "teacher_layers": _size(self.teacher.model.layers),
                "largest_layer": max(map(_size, self.student.model.layers)),
            }
        )

    def _held(self, stage: Stage, own: Holding) -> dict[str, int]:
        """Bytes of what is there from the first step to the last. The teacher is, since a run evaluates it."""
        parts = {
            "teacher weights": own.teacher,
            "student weights": own.student,
            "float32 masters": own.masters,
            "optimizer state": own.stepped * ADAM_STATE[stage.optimizer],
            "gradients": own.gradients,  # summed over micro-batches
        }
        return parts | ({"gathered layers": own.gathered} if own.gathered else {})

    def _activations(self, stage: Stage) -> tuple[float, float]:
        """Bytes a token: what the forward pass keeps for the backward pass, and what the largest layer alone keeps."""
        config = self.config
        how = {"kernels": self.compute.kernels, "compiled": self.compute.compiled}
        with_mlp = stage.compares != "mixer"  # alignment of mixers runs no MLP of the student's
        layers = [layer_keeps(config, mixer, self.size, **how, with_mlp=with_mlp) for mixer in config.mixers]
        hidden = config.hidden_size
        if stage.compares != "end_to_end":
            # Beside the student's layer is the teacher's: it keeps nothing, and at most an MLP's tensors are alive.
            teacher = (2 * hidden + 3 * config.intermediate_size) * self.size
            aligned = max(layer for layer, mixer in zip(layers, config.mixers, strict=True) if mixer is not None)
            compared = 2 * hidden * self.size if self.compute.fused else len(DISTANCE) * hidden * FLOAT32
            return 0.0, aligned + teacher + compared
        if stage.gradient_checkpointing:
            return len(layers) * hidden * self.size, max(layers)
        return sum(layers), max(layers)

    def _loss(self, stage: Stage) -> int:
        """Bytes of the loss: chunks of logits, the head's gradient, hidden states of all tokens."""
        if stage.compares != "end_to_end":
            return 0  # counted with the layer
        config, size = self.config, self.size
        tokens = stage.micro_batch * stage.sequence_length
        states = 3 if stage.needs_teacher else 2  # teacher's, student's and their gradient
        loss = states * tokens * config.hidden_size * size
        compared = stage.terms_that_match("hidden_states")
        if compared:
            layers = sum(mixer is not None for mixer in config.mixers)
            per_state = 2 * size + len(compared) * len(DISTANCE) * FLOAT32
            loss += layers * tokens * config.hidden_size * per_state
        if len(compared) < len(stage.terms):
            chunk = min(CHUNK, tokens) * config.vocab_size
            copies = LOGITS["student"] + LOGITS["teacher"] * stage.needs_teacher
            loss += chunk * copies * size
            if not self.compute.fused:
                loss += chunk * EAGER_LOGITS * FLOAT32
            if self.student.lm_head.weight.requires_grad:  # summed in float32, then rounded
                loss += config.vocab_size * config.hidden_size * (FLOAT32 + size)
        return loss

    def _writing(self, stage: Stage) -> Writing:
        """At the end of the stage, where replies are longest; prompts are taken to be as long as replies."""
        settings = stage.on_policy
        # Of a conversation; how long prompts really are, only the data say.
        tokens = 2 * settings.new_tokens[1]
        sequences = max(1, round(settings.share * stage.sequences_per_step))
        # All that a step asks for, unless the decoding loop takes fewer at a time.
        asked = sequences * max(1, stage.sequence_length // tokens)
        replies = min(asked, ROWS_AT_ONCE[self.compute.device], max(1, TOKENS_AT_ONCE // tokens))
        return Writing(replies, expected_cache_bytes(self.config, tokens, replies, self.size))

    def _disk(self, stage: Stage, parameters: Parameters) -> Disk:
        rows, written = stage.steps * stage.sequences_per_step, stage.on_policy
        frozen = parameters.student - parameters.trained
        gates = parameters.student_gates - parameters.trained_gates
        return Disk(
            data_set=rows * stage.sequence_length * ROW_BYTES,
            checkpoints=(KEEP + 1) * parameters.trained * (FLOAT32 + ADAM_STATE[stage.optimizer]),
            student=parameters.trained * FLOAT32 + (frozen - gates) * self.size + gates * FLOAT32,
            replies=0 if written is None else round(written.share * rows * stage.sequence_length * REPLY_BYTES),
        )

    def whole_disk(self, recipe: Recipe) -> int:
        """Bytes of a whole run: every student and data set, and the checkpoints of the stage that has the most."""
        prices = {name: self.price(stage) for name, stage in recipe.stages.items()}
        made = {}  # a data set that two stages share is there once
        for name, stage in recipe.stages.items():
            made[stage.mixture, stage.sequence_length, prices[name].tokens, stage.loss_on] = prices[name].disk.data_set
        conversations = sum(_made_bytes(recipe, stage) for stage in recipe.stages.values())
        students = student_bytes(self._count(), self.size) + sum(price.disk.student for price in prices.values())
        measured = recipe.conversion.tokens * ROW_BYTES
        checkpoints = max((price.disk.checkpoints for price in prices.values()), default=0)
        replies = sum(price.disk.replies for price in prices.values())
        return measured + sum(made.values()) + conversations + students + checkpoints + replies

    def caches(self) -> dict[int, Caches]:
        """What one text's cache takes in generation, by its tokens."""
        configs = (self.teacher.config, self.config)
        return {
            tokens: Caches(*(expected_cache_bytes(config, tokens, 1, self.size) for config in configs))
            for tokens in CACHED
        }

    def _flops(self, stage: Stage) -> float:
        """Operations a token, every token a loss target; parameters as `parameters` left them."""
        config, length = self.config, stage.sequence_length
        teacher = teacher_flops(config, self.teacher.model.layers, length) if stage.needs_teacher else 0
        student = 0
        for layer, mixer in zip(self.student.model.layers, config.mixers, strict=True):
            if stage.compares != "end_to_end" and mixer is None:
                continue  # alignment runs the replaced layers only
            unit = layer.linear_attn if stage.compares == "mixer" else layer
            student += training_flops(config, mixer, unit, length)
        if stage.compares == "end_to_end" and stage.terms_that_match("vocabulary"):
            student += head_flops(config, backward=True, trains=self.student.lm_head.weight.requires_grad)
            teacher += head_flops(config, backward=False, trains=False) if stage.needs_teacher else 0
        if stage.on_policy is not None:  # the student's forward pass once more, token by token
            mixing = sum(mixing_flops(config, mixer, length) for mixer in config.mixers)
            written = 2 * sum(weights_of_products(self.student.model.layers)) + mixing
            written += head_flops(config, backward=False, trains=False)
            student += stage.on_policy.share * written
        return float(teacher + student)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _made_bytes(recipe: Recipe, stage: Stage) -> int:
    """Of the files of conversations that a stage's sources are made into."""
    sources = recipe.data[stage.mixture]
    share = sum(source.weight for source in sources if source.made) / sum(source.weight for source in sources)
    return round(stage.whole_tokens * share * MADE_BYTES)


DISTANCE = ("student's output", "teacher's output", "their difference")  # in float32, what plain distances keep
