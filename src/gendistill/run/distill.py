"""The step that trains one stage: from the student of the stage before to its own."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file
from transformers import PreTrainedModel

from gendistill.data.dataset import PackedDataset
from gendistill.data.masks import check_masks
from gendistill.distill.engine import Pace, StepMetrics
from gendistill.distill.on_policy import Writing
from gendistill.distill.replies import check_prompts
from gendistill.distill.reply_kl import check_start
from gendistill.distill.roles import set_trainable
from gendistill.distill.sharding import shard
from gendistill.distill.stage import train_stage
from gendistill.distill.tracking import complaint
from gendistill.distributed import on_rank_zero, report_errors_once
from gendistill.errors import UserError
from gendistill.files import folder_in_one_piece, seal, write_atomically
from gendistill.models.conversion import weights_sha256
from gendistill.models.loading import load_model
from gendistill.placement.result import versions
from gendistill.recipe.fields import result_settings
from gendistill.recipe.stage import Stage
from gendistill.run.folder import stage_key
from gendistill.run.prepare import prepare_distant, prepare_held_out, prepare_stage
from gendistill.run.reply_kl import held_out_prompts, measure_replies, reply_tokens
from gendistill.run.run import Run


@dataclass(frozen=True)
class StageReport:
    """Where a trained student comes from; lies beside its weights as stage_report.json."""

    stage: str  # its name in the recipe
    parent: str  # label of the stage whose student it started from: "0-conversion"
    parent_weights_sha256: str
    recipe_key: str  # hash of all settings of the recipe that the student depends on
    data_key: str  # of the packed data set it was trained on, as in its stats.json
    tokens: int  # trained on, padding included
    loss_first: float  # of the first step, as in metrics.jsonl
    loss_last: float
    held_out_loss_first: float | None  # on records that no stage trains on, before the first step; None: there are none
    held_out_loss_last: float | None  # after the last
    weights_sha256: str  # of this student's own weights
    machine: Mapping[str, Any]  # where it was trained: "device", "processes", "versions"


@dataclass(frozen=True)
class _Parent:
    """The student that a stage starts from."""

    label: str  # "0-conversion"
    folder: Path
    weights: str  # their hash, as recorded and as found


@report_errors_once
def distil_stage(run: Run, name: str) -> None:
    """Trains one stage, unless it is done.

    Raises:
        UserError: the stage before is not done, or its student is not as it was written; or see `train_stage`.
    """
    if run.folder.has_student(name):  # whole, since its folder took its name last
        on_rank_zero(lambda: _drop_checkpoints(run, name))
        return
    with run.times.of("checking", name):
        parent = _parent_of(run, name)
    stage = run.recipe.stages[name]
    dataset = prepare_stage(run, stage)
    check_masks(dataset, run.tokenizer)  # a wrong loss mask trains the wrong thing without a sign of it
    writing = None if stage.on_policy is None else _prepare_writing(run, name, dataset)
    held_out = prepare_held_out(run, stage)
    if held_out is None and run.recipe.held_out:  # it trains as well without
        run.console.print(
            f"{name}: '{stage.mixture}' has too few records to hold some out (held_out: {run.recipe.held_out:g}); no "
            "loss is measured on records that were never trained on",
        )
    distant = prepare_distant(run, stage)
    with run.times.of("training", name):
        history = _train(run, name, parent, dataset, held_out, distant, writing)
    first, last = history[0], history[-1]
    of_held_out = ""
    if last.held_out_loss is not None:
        of_held_out = f", held out {first.held_out_loss_before:.4f} -> {last.held_out_loss:.4f}"
    for how, loss in (last.distant_loss or {}).items():
        of_held_out += f", distant answers {how.replace('_', ' ')} {first.distant_loss_before[how]:.4f} -> {loss:.4f}"
    run.console.print(f"{name}: loss {first.loss:.4f} -> {last.loss:.4f}{of_held_out} over {last.tokens:,} tokens")
    if (wrong := complaint(stage, [asdict(metrics) for metrics in history])) is not None:
        run.console.print(f"WARNING: stage {name}: {wrong}")


def _prepare_writing(run: Run, name: str, dataset: PackedDataset) -> Writing:
    """What an on-policy stage needs besides, once it is known that it may start.

    Raises:
        UserError: see `check_prompts`, `check_start`; or there are no held-out prompts to watch it by.
    """
    settings = run.recipe.stages[name].on_policy
    check_prompts(name, dataset, settings)
    held_out = held_out_prompts(run)
    if not held_out:
        raise UserError(
            f"stages.{name}: there are no held-out prompts, by whose replies an on-policy stage is watched; give the "
            f"mixture more records, or set held_out above {run.recipe.held_out:g}"
        )
    # As a run has measured it after that stage; measured now if it has not.
    before = measure_replies(run, run.folder.before(name))
    check_start(name, before, settings.reply_kl_bound)
    return Writing(reply_tokens(run), held_out, before)


def _parent_of(run: Run, name: str) -> _Parent:
    """The student of the stage before, with its weights checked against its report."""
    before = run.folder.before(name)
    folder = run.folder.student(before)
    if not folder.is_dir():
        raise UserError(f"stage {name} starts from the student of '{before}', which is not there yet: run that first")
    run.folder.check_student(before)
    return _Parent(run.folder.label(before), folder, run.folder.read_report(before)["weights_sha256"])


def _train(
    run: Run,
    name: str,
    parent: _Parent,
    dataset: PackedDataset,
    held_out: PackedDataset | None,
    distant: PackedDataset | None,
    writing: Writing | None,
) -> list[StepMetrics]:
    """Trains the parent's student and saves it as the student of the stage."""
    stage = run.recipe.stages[name]
    # Loaded in float32 for the masters; `train_stage` rounds the model to the precision of the arithmetic.
    student = load_model(str(parent.folder), torch.float32, run.compute.device).train()
    run.console.print(_trained_table(name, stage, set_trainable(student, stage.train)))
    compute = run.compute_for(stage)
    if compute.processes > 1:
        run.console.print(f"{name}: {compute.processes} processes, strategy {compute.strategy}")
    history, optimizer = train_stage(
        stage,
        teacher_for(run, stage),
        student,
        dataset,
        # Its mean squares of the teacher's activations scale the losses of every stage.
        conversion_report=run.folder.read_report("conversion"),
        vocabulary=len(run.tokenizer),
        compute=compute,
        folder=run.folder.stage(name),
        fingerprint=_fingerprint(stage, dataset.key, parent.weights, str(run.compute.dtype)),
        title=name,
        console=run.console,
        pace=Pace(run.planner.price(stage).flops_per_token, run.compute.peak_flops),
        held_out=held_out,
        distant=distant,
        writing=writing,
    )
    weights = optimizer.weights()  # gathers the shards, so every process takes part
    trained = {weight: weights[weight] for weight in optimizer.masters}
    with run.times.of("saving", name):  # inside training, of which it is no part
        on_rank_zero(lambda: _save(run, name, student, parent, trained, dataset.key, history))
    return history


def teacher_for(run: Run, stage: Stage) -> PreTrainedModel | None:
    """The teacher; one of the stage's own where it is sharded, and none where the objective needs none."""
    if not stage.needs_teacher:
        return None
    if not run.compute_for(stage).shards_teacher:
        return run.teacher
    run.release_teacher()  # whole, for evaluation; there is no room for both
    teacher = run.load_teacher()
    # Whatever the stage compares, the teacher always runs from end to end.
    shard(teacher, compares="end_to_end", compute=run.compute_for(stage))
    return teacher


def _save(
    run: Run,
    name: str,
    student: PreTrainedModel,
    parent: _Parent,
    trained: Mapping[str, torch.Tensor],
    data_key: str,
    history: list[StepMetrics],
) -> None:
    """Saves the student with its report; then its checkpoints can go."""
    # What is frozen comes from the folder the stage started from, to the bit: in memory it may be rounded.
    frozen = {weight: x for file in parent.folder.glob("*.safetensors") for weight, x in load_file(file).items()}
    seal(run.folder.stage(name))  # its metrics, which the summary draws
    with folder_in_one_piece(run.folder.student(name)) as partial:
        student.save_pretrained(partial, state_dict=frozen | trained)
        run.tokenizer.save_pretrained(partial)
        report = StageReport(
            stage=name,
            parent=parent.label,
            parent_weights_sha256=parent.weights,
            recipe_key=stage_key(run.recipe, name),
            data_key=data_key,
            tokens=history[-1].tokens,
            loss_first=history[0].loss,
            loss_last=history[-1].loss,
            held_out_loss_first=history[0].held_out_loss_before,
            held_out_loss_last=history[-1].held_out_loss,
            weights_sha256=weights_sha256(partial),
            machine=_machine(run),
        )
        write_atomically(partial / run.folder.report(name).name, json.dumps(asdict(report), indent=1) + "\n")
    _drop_checkpoints(run, name)


def _machine(run: Run) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if run.compute.device == "cuda" else "CPU"
    return {"device": device, "processes": run.compute.processes, "versions": versions()}


def _drop_checkpoints(run: Run, name: str) -> None:
    # After the student is whole, so that a kill in between costs nothing; what that left goes with the next call.
    shutil.rmtree(run.folder.stage(name) / "checkpoints", ignore_errors=True)


def _fingerprint(stage: Stage, data_key: str, weights: str, dtype: str) -> dict[str, str]:
    """What decides a stage's trajectory, by name; how it is cut into micro-batches or checkpoints is not part of it."""
    # By name, so that the refusal of a checkpoint can say what differs.
    settings = result_settings(stage) | {"data": data_key, "initial weights": weights, "dtype": dtype}
    return {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}


def _trained_table(title: str, stage: Stage, accounting: Mapping[str, tuple[int, bool]]) -> Table:
    """Parameters of each role, whether they train, and how fast."""
    table = Table(title=f"{title}: what trains", title_justify="left")
    for column in ("role", "parameters", "", "peak learning rate"):
        table.add_column(column, justify="right" if column in ("parameters", "peak learning rate") else "left")
    for role, (parameters, trains) in accounting.items():
        rate = f"{stage.peak_learning_rate(role):g}" if trains else ""
        table.add_row(role, f"{parameters:,}", Text("trains", "green") if trains else Text("frozen", "dim"), rate)
    total = sum(parameters for parameters, trains in accounting.values() if trains)
    table.add_section()
    table.add_row("trains", f"{total:,}")
    return table
