"""One stage, set up and run: sharding, precision, acceleration, objective, loop."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from gendistill import distributed
from gendistill.compute import Compute
from gendistill.console import Console
from gendistill.data.dataset import PackedDataset
from gendistill.distill.acceleration import compiled_layers, takes_graphs
from gendistill.distill.batches import Loader
from gendistill.distill.engine import Pace, StepMetrics, Trainer
from gendistill.distill.objectives import build_objective
from gendistill.distill.on_policy import OnPolicyLoader, Writing
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distill.replicas import Replicas
from gendistill.distill.replies import ReplyLog, ReplyWriter
from gendistill.distill.reply_kl import measure_reply_kl
from gendistill.distill.sharding import shard
from gendistill.models.attention import PACKED, attention_switched_to
from gendistill.models.modeling import GendistillForCausalLM
from gendistill.recipe.stage import Stage


def train_stage(
    stage: Stage,
    teacher: PreTrainedModel | None,
    student: GendistillForCausalLM,
    dataset: PackedDataset,
    *,
    conversion_report: dict,
    vocabulary: int,
    compute: Compute,
    folder: Path,
    fingerprint: dict[str, str],
    title: str,
    console: Console,
    pace: Pace | None = None,
    held_out: PackedDataset | None = None,
    distant: PackedDataset | None = None,
    writing: Writing | None = None,
) -> tuple[list[StepMetrics], MasterOptimizer]:
    """Trains the student in place, from the newest checkpoint in `folder` if there is one.

    Args:
        teacher: in `compute.dtype`, frozen, sharded if the student is to be; None if the objective needs none.
        student: float32, with the stage's roles set trainable; it is sharded and rounded here.
        conversion_report: of the conversion.
        vocabulary: words that the tokenizer has.
        compute: where and how; models lie on its device.
        folder, fingerprint, title, console, pace: see `Trainer`.
        held_out: sequences of records that no stage trains on, on which the loss is measured as well; None: it is not.
        distant: the same of distant answers; there with the windows beside a recurrence on and off.
        writing: of an on-policy stage.

    Returns:
        The metrics of all steps, and the optimizer, which has the float32 weights.

    Raises:
        UserError: see `Trainer.train`.
    """
    if stage.gradient_checkpointing:
        _enable_checkpointing(student)
    replicas = _spread(student, stage, compute)
    optimizer = MasterOptimizer(student, stage, compute.dtype, replicas)  # after sharding: its masters are the shards
    # Hooks on the mixers need a module boundary there, and so does the recomputation of single layers.
    in_pieces = stage.compares == "mixer" or stage.gradient_checkpointing
    models = [model for model in (teacher, student) if model is not None]
    with ExitStack() as stack:
        if compute.device == "cuda":
            # On a CPU transformers' own attention masks documents; the packed kernel is for CUDA.
            stack.enter_context(attention_switched_to(PACKED, *models))
        if compute.compiled:
            stack.enter_context(compiled_layers(*models, in_pieces=in_pieces))
        # A captured graph replays the shapes it has seen, and layers are compiled anew for each: the loader makes few.
        cut = dict(
            held_out=held_out,
            distant=distant,
            windows=student.config.has_window_beside,
            rank=distributed.rank(),
            processes=compute.processes,
            fixed_shape=compute.compiled,
        )
        if stage.on_policy is None:
            loader, check = Loader(dataset, stage, **cut), None
        else:
            writer = ReplyWriter(student, writing.tokens, compute.dtype)
            log = ReplyLog(folder / "replies.jsonl", fingerprint)
            loader = OnPolicyLoader(dataset, stage, writer, log, **cut)
            measure = partial(measure_reply_kl, teacher, student, writer, writing.held_out, vocabulary=vocabulary)
            if replicas is not None:
                measure = partial(distributed.as_rank_zero_says, measure)  # whole there, and judged once
            check = writing.check(stage, title, measure, console)
        # FSDP has streams of its own, on which layers of both models are gathered in turn.
        beside = compute.fused and not compute.is_sharded
        objective = build_objective(
            stage, teacher, student, conversion_report, vocabulary, fast=compute.fused, beside=beside
        )
        trainer = Trainer(
            stage,
            objective,
            optimizer,
            loader,
            folder=folder,
            fingerprint=fingerprint,
            device=compute.device,
            title=title,
            console=console,
            pace=pace,
            graphs=takes_graphs(student, stage, compute),
            gathers_once=compute.gathers_once,
            check_at_checkpoint=check,
        )
        return trainer.train(), optimizer


def _spread(student: GendistillForCausalLM, stage: Stage, compute: Compute) -> Replicas | None:
    """Gives the student to the processes by the compute's strategy; returns the exchange if each has it whole."""
    match compute.strategy:
        case "whole":
            return None
        case "replicas":  # also for one process that asks for it, to measure what the exchange costs
            return Replicas(compute.device)
        case "hybrid" | "zero2" | "fsdp":
            shard(student, compares=stage.compares, compute=compute)
            return None
    raise ValueError(f"a stage runs 'whole', as 'replicas', 'hybrid', 'zero2' or 'fsdp', not by '{compute.strategy}'")


def _enable_checkpointing(student: GendistillForCausalLM) -> None:
    # Reading the state of random numbers would make the host wait, and without dropout there are none. Reentrant
    # checkpoints would not pass keyword arguments on, nor gradients to layers below which nothing trains.
    keep_random_state = student.config.attention_dropout > 0
    old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"  # transformers renames it
    enable = getattr(student, new if hasattr(student, new) else old)
    enable({"use_reentrant": False, "preserve_rng_state": keep_random_state})
