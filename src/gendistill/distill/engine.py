"""The one training loop. A stage is data; what differs between stages lives in the objective and in what trains."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gendistill.data.dataset import PackedDataset
from gendistill.distill.checkpoint import load_checkpoint, save_checkpoint
from gendistill.distill.objectives import Batch, Objective
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distill.schedule import learning_rate_share
from gendistill.errors import UserError
from gendistill.files import write_atomically
from gendistill.recipe import Stage


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl; all but the last two are the same in a resumed and in an unbroken run."""

    step: int  # optimizer steps done
    tokens: int  # tokens seen by then, filler included
    loss: float  # mean over the step's loss tokens: nats for forward_kl, relative squared error for alignment
    loss_tokens: int
    gradient_norm: float  # before clipping
    learning_rate: float
    seconds: float
    tokens_per_second: float


def batches(dataset: PackedDataset, start: int, stop: int, size: int, device: str) -> Iterator[Batch]:
    """Rows start to stop as micro-batches of at most `size` rows: int64 tensors [B, T] on the device."""
    for row in range(start, stop, size):
        arrays = dataset[row : min(row + size, stop)]
        yield {name: torch.from_numpy(array).long().to(device) for name, array in arrays.items()}


def train(
    stage: Stage,
    objective: Objective,
    optimizer: MasterOptimizer,
    dataset: PackedDataset,
    *,
    folder: Path,
    fingerprint: str,
    device: str,
    title: str,
    console: Console,
) -> list[StepMetrics]:
    """Runs a stage to its end, from its newest checkpoint if there is one.

    Args:
        folder: holds metrics.jsonl (a line a step) and checkpoints/.
        fingerprint: hash of everything that decides the trajectory; a checkpoint with another one is refused.

    Returns:
        The metrics of all steps, those before a resume included.

    Raises:
        UserError: the loss or gradient is no longer finite, a step has no loss tokens, the checkpoint belongs to other
            settings, or the disk is full.
    """
    history = _resume(folder, fingerprint, optimizer, console)
    with open(folder / "metrics.jsonl", "a") as log, _progress(console) as progress:
        bar = progress.add_task(title, total=stage.steps, completed=len(history), loss=math.nan, speed=0.0)
        for step in range(len(history), stage.steps):
            metrics = _step(step, stage, objective, optimizer, dataset, device)
            history.append(metrics)
            log.write(json.dumps(asdict(metrics)) + "\n")
            log.flush()
            progress.update(bar, completed=step + 1, loss=metrics.loss, speed=metrics.tokens_per_second)
            if (step + 1) % stage.checkpoint_every == 0:
                os.fsync(log.fileno())
                state = {"step": step + 1, "fingerprint": fingerprint, "optimizer": optimizer.state_dict()}
                save_checkpoint(folder / "checkpoints", step + 1, state)
    return history


def _step(
    step: int, stage: Stage, objective: Objective, optimizer: MasterOptimizer, dataset: PackedDataset, device: str
) -> StepMetrics:
    began = time.perf_counter()
    first = step * stage.sequences_per_step
    rows = range(first, first + stage.sequences_per_step)
    micro_batches = list(batches(dataset, rows.start, rows.stop, stage.micro_batch, device))
    loss_tokens = sum(objective.loss_tokens(batch) for batch in micro_batches)
    if not loss_tokens:
        raise UserError(f"step {step + 1}: none of its tokens counts for the loss; check the data and loss_on")
    loss = torch.zeros((), device=device)
    for batch in micro_batches:
        loss += objective.backward(batch, loss_tokens)
        optimizer.collect_gradients()
    mean = loss.item() / loss_tokens
    share = learning_rate_share(stage.schedule, step, stage.steps)
    if not math.isfinite(mean):
        raise UserError(f"step {step + 1}: the loss is {mean}. Lower the learning rate; earlier checkpoints are kept.")
    norm = optimizer.step(share)
    if not math.isfinite(norm):
        raise UserError(f"step {step + 1}: the gradient norm is {norm}. Lower the learning rate; checkpoints are kept.")
    seconds = time.perf_counter() - began
    tokens = stage.sequences_per_step * stage.sequence_length
    return StepMetrics(
        step=step + 1,
        tokens=(step + 1) * tokens,
        loss=mean,
        loss_tokens=loss_tokens,
        gradient_norm=norm,
        learning_rate=stage.learning_rate * share,
        seconds=round(seconds, 4),
        tokens_per_second=round(tokens / seconds, 1),
    )


def _resume(folder: Path, fingerprint: str, optimizer: MasterOptimizer, console: Console) -> list[StepMetrics]:
    """Loads the newest whole checkpoint and cuts metrics.jsonl back to it."""
    folder.mkdir(parents=True, exist_ok=True)
    state, notes = load_checkpoint(folder / "checkpoints")
    for note in notes:
        console.print(f"[yellow]{note}[/yellow]")
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    done = state["step"] if state else 0
    if state:
        if state["fingerprint"] != fingerprint:
            raise UserError(
                f"{folder / 'checkpoints'}: written with other settings, data or weights than this run has. "
                "Delete that folder to start the stage anew, or use another output folder."
            )
        if len(lines) < done:
            raise UserError(
                f"{log}: has {len(lines)} lines, the checkpoint is at step {done}. Delete {folder} to start anew."
            )
        optimizer.load_state_dict(state["optimizer"])
        console.print(f"going on from step {done}")
    write_atomically(log, "".join(line + "\n" for line in lines[:done]))
    return [StepMetrics(**json.loads(line)) for line in lines[:done]]


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:,.0f} tok/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
