"""The one training loop. A stage is data; what differs between stages lives in the objective and in what trains.

The loop never waits for the device: what a step measured is read while the next one runs.

A step is `sequences_per_step` packed sequences, cut into micro-batches whose gradients are accumulated.
"""

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from gendistill.console import Console, Progress
from gendistill.distill.acceleration import GraphedMicroBatch
from gendistill.distill.batches import Batch, HeldOut, Loader, Step
from gendistill.distill.checkpoint import checkpoints, load_checkpoint, save_checkpoint, step_name
from gendistill.distill.held_out import HeldOutLosses, without_dropout
from gendistill.distill.objectives import TrainingObjective, part_of_step
from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distill.replies import describe_counts
from gendistill.distill.schedule import learning_rate_share
from gendistill.distill.sharding import free_after_backward
from gendistill.distill.termination import CODE, kept_waiting
from gendistill.distill.tracking import Curves
from gendistill.distributed import is_rank_zero, processes, rank
from gendistill.errors import Diverged, Stopped, UserError
from gendistill.files import make_folder, write_atomically
from gendistill.recipe.stage import Stage


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl; all but seconds, throughput and MFU are the same in a resumed and an unbroken run."""

    step: int  # optimizer steps done
    tokens: int  # trained on by then, padding included
    loss: float  # mean over the step's loss tokens of the mixture of terms: nats for divergences, else relative
    terms: dict[str, float]  # each term by itself, unweighted
    loss_tokens: int
    gradient_norm: float  # before clipping
    update_ratio: dict[str, float]  # ||change|| / ||weights|| of each role that trains
    learning_rate: float  # the highest of all roles
    seconds: float  # since the step before was done
    tokens_per_second: float
    mfu: float | None  # of the GPU's arithmetic at bfloat16; None where it is not known
    # The loss on records that no stage trains on; None where it was not measured.
    held_out_loss: float | None = None  # of the weights that the step left
    held_out_loss_before: float | None = None  # of the weights that the stage began with; in its first step
    # The same on distant answers alone: of the student "as_is" and "without_window" beside its recurrence.
    distant_loss: dict[str, float] | None = None
    distant_loss_before: dict[str, float] | None = None
    replies: dict[str, int] = field(default_factory=dict)  # `replies.COUNTS` of what the student wrote for the step


@dataclass(frozen=True)
class Pace:
    """What throughput is measured against.

    Attributes:
        flops_per_token: of teacher and student, forward and backward.
        peak_flops: of all GPUs together; None if not known.
    """

    flops_per_token: float = 0.0
    peak_flops: float | None = None

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation: of the peak, the share that the models' own arithmetic takes."""
        return self.peak_flops and round(tokens_per_second * self.flops_per_token / self.peak_flops, 4)


@dataclass(frozen=True)
class _Running:
    """A step whose work is given to the device, and whose results are on their way to the host."""

    step: Step
    share: float  # of the peak learning rate
    measured: torch.Tensor  # sums of the terms, processes to which SIGTERM came, gradient norm, update ratios
    done: "_Clock"
    held_out: HeldOutLosses | None  # measured behind the step
    left: "_Clock"  # when that was done too


class _Clock:
    """The moment when the device has done all it was given so far."""

    def __init__(self, device: str):
        self.time, self.event = time.perf_counter(), None
        if device == "cuda":
            # The host is ahead of the device, so its own clock would measure how fast work is given out.
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()

    def seconds_since(self, earlier: "_Clock") -> float:
        if self.event is not None:
            return earlier.event.elapsed_time(self.event) / 1000
        return self.time - earlier.time


class Trainer:
    """Runs a stage to its end, once, from its newest checkpoint if there is one.

    Args:
        folder: holds metrics.jsonl (a line a step) and checkpoints/.
        fingerprint: everything that decides the trajectory, by name; a checkpoint with another one is refused.
        graphs: replay micro-batches as CUDA graphs.
        gathers_once: layers of a sharded student, once gathered, stay until the step's last micro-batch.
        check_at_checkpoint: called with the steps done before each checkpoint that is due; raises to stop
            the stage. None: nothing is.
    """

    def __init__(
        self,
        stage: Stage,
        objective: TrainingObjective,
        optimizer: MasterOptimizer,
        loader: Loader,
        *,
        folder: Path,
        fingerprint: dict,
        device: str,
        title: str,
        console: Console,
        pace: Pace | None = None,
        graphs: bool = False,
        gathers_once: bool = False,
        check_at_checkpoint: Callable[[int], None] | None = None,
    ):
        self.stage, self.objective, self.optimizer, self.loader = stage, objective, optimizer, loader
        self.folder, self.fingerprint, self.device = folder, fingerprint, device
        self.title, self.console, self.pace = title, console, pace or Pace()
        self.check_at_checkpoint, self.gathers_once = check_at_checkpoint, gathers_once
        self.has_sigterm: Callable[[], bool] = lambda: False  # of this process; set by `train`
        self.others_stop = False  # whether some process has said that SIGTERM came
        self.run_micro_batch = GraphedMicroBatch(self._micro_batch, device) if graphs else self._micro_batch

    def train(self) -> list[StepMetrics]:
        """The metrics of all steps, those before a resume included.

        Raises:
            Diverged: the loss or gradient is not finite, or the loss is not as expected.
            UserError: a step has no loss tokens, the checkpoint belongs to other settings, the disk is full, or memory
                runs out.
            Stopped: SIGTERM came; the step is kept in a checkpoint.
        """
        try:
            with self._room_on_disk(), kept_waiting() as self.has_sigterm:
                return self._train(self._resume())
        finally:
            del self.run_micro_batch  # it refers back here: with it, models and graphs would outlive their last user

    def _train(self, history: list[StepMetrics]) -> list[StepMetrics]:
        log_path = self.folder / "metrics.jsonl" if is_rank_zero() else os.devnull
        done = len(history)
        progress = Progress(self.title, self.stage.steps, "steps", self.console, done=done)
        with open(log_path, "a") as log, progress, Curves(self.folder, done) as curves:
            at_start = None if history else self._measure_held_out()
            before = _Clock(self.device)
            for running, is_settled in self._one_behind(self.loader.steps(done)):
                running.left.wait()
                self.others_stop |= running.measured[len(self.stage.terms)].item() > 0
                metrics = self._metrics(running, running.done.seconds_since(before), at_start)
                at_start, before = None, running.left
                self._check(metrics)  # before anything of this step is written
                history.append(metrics)
                log.write(json.dumps(asdict(metrics)) + "\n")
                log.flush()  # a killed run loses no line
                curves.add(metrics)
                progress.advance(note=_note(history))
                if self.check_at_checkpoint is not None and self._saves_after(metrics.step):
                    self.check_at_checkpoint(metrics.step)  # weights that fail it are not kept
                leaves = is_settled and self._is_asked_to_stop()
                if leaves or self._saves_after(metrics.step):
                    save_checkpoint(
                        self.folder / "checkpoints", metrics.step, self.optimizer, self.fingerprint, Path(log_path)
                    )
                    before = _Clock(self.device)  # the time it took is no step's
                if leaves:
                    kept = f"{self.title} is kept as of step {metrics.step}"
                    raise Stopped(f"stopped by SIGTERM; {kept}, and the same command resumes from there", CODE)
            if is_rank_zero():
                os.fsync(log.fileno())  # the student that is announced next has a history
        return history

    def _saves_after(self, step: int) -> bool:
        return step % self.stage.checkpoint_every == 0

    def _is_asked_to_stop(self) -> bool:
        """Whether SIGTERM came; of many processes to any, as all of them have read from the same step's sums."""
        # Alone there is nobody to agree with, and no step to wait for.
        return self.has_sigterm() if processes() == 1 else self.others_stop

    def _one_behind(self, steps: Iterable[Step]) -> Iterable[tuple[_Running, bool]]:
        """Starts each step before the one before is looked at; but a checkpoint must hold its own step and no later.

        Yields:
            A step, and whether it is settled: the weights are those that it left.
        """
        before = None
        for step in steps:
            settles = before is not None and (self._saves_after(before.step.index + 1) or self._is_asked_to_stop())
            if settles:
                yield before, True  # looked at and saved before this step changes the weights
            running = self._start(step)
            if before is not None and not settles:
                yield before, False  # looked at while this step runs
            before = running
        if before is not None:
            yield before, True

    def _start(self, step: Step) -> _Running:
        if not step.loss_tokens:
            raise UserError(
                f"step {step.index + 1}: none of its tokens counts for the loss; check the data and loss_on"
            )
        # Of dropout, where a model has any: the same after a resume, and another on every process.
        torch.manual_seed(step.index * processes() + rank())
        # FSDP takes the mean of gradients over processes; the loss is a mean over the tokens of all of them.
        scale = torch.full((), processes() / step.loss_tokens, device=self.device)
        sums = torch.zeros(len(self.stage.terms), dtype=torch.float64, device=self.device)  # [terms]
        for number, batch in enumerate(step.batches, 1):
            if self.gathers_once:
                free_after_backward(self.objective.student, number == len(step.batches))
            sums += self.run_micro_batch(batch, scale)
        # Whether SIGTERM came goes with them, so that all processes leave behind the same step.
        sigterms = torch.full((1,), float(self.has_sigterm()), dtype=torch.float64, device=self.device)
        sums = torch.cat([sums, sigterms])  # [terms + 1]
        if processes() > 1:
            dist.all_reduce(sums)  # gradients are summed by FSDP and the optimizer; these are for the metrics
        share = learning_rate_share(self.stage.schedule, step.index, self.stage.steps)
        with part_of_step("the optimizer's step"):
            measured = torch.cat([sums, self.optimizer.step(share)])  # [terms + 2 + roles]
        measured = measured.to("cpu", non_blocking=True)
        # The clocks stand behind the copies in the stream: when they are reached, the numbers are on the host.
        done = left = _Clock(self.device)
        held_out = None
        if self.stage.measures_held_out_after(step.index + 1):
            held_out, left = self._measure_held_out(), _Clock(self.device)
        return _Running(step, share, measured, done, held_out, left)

    def _measure_held_out(self) -> HeldOutLosses:
        records = None if self.loader.held_out is None else self._loss_on(self.loader.held_out)
        return HeldOutLosses(records, {name: self._loss_on(rows) for name, rows in self.loader.distant.items()})

    def _loss_on(self, held_out: HeldOut) -> torch.Tensor:
        """The stage's loss on sequences that no stage trains on, on its way to the host.

        They run as a step's micro-batches do, by the same graphs, in the same memory; scaled by zero, their gradients
        are none. Nothing of the trajectory depends on it: every step seeds its own random numbers.
        """
        sums = torch.zeros(len(self.stage.terms), dtype=torch.float64, device=self.device)  # [terms]
        with without_dropout(self.objective.student):
            for batch in held_out.batches:
                sums += self.run_micro_batch(batch, torch.zeros((), device=self.device))
        self.optimizer.zero_gradients()  # zero times a gradient that is not finite is none
        if processes() > 1:
            dist.all_reduce(sums)
        weights = torch.tensor(list(self.stage.terms.values()), dtype=torch.float64, device=self.device)  # [terms]
        return ((weights * sums).sum() / held_out.loss_tokens).to("cpu", non_blocking=True)

    def _micro_batch(self, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
        batch = batch.map(lambda tensor: tensor.to(self.device, non_blocking=True))
        sums = self.objective.backward(batch, scale)  # [terms]
        self.optimizer.collect_gradients()  # at once: gradients of bfloat16 weights must not be summed in bfloat16
        return sums

    def _metrics(self, running: _Running, seconds: float, at_start: HeldOutLosses | None) -> StepMetrics:
        stage, values = self.stage, running.measured.tolist()  # laid out as `_start` put them together
        terms = {name: values[i] / running.step.loss_tokens for i, name in enumerate(stage.terms)}
        _, norm, *ratios = values[len(terms) :]
        tokens = stage.sequences_per_step * stage.sequence_length
        throughput = tokens / seconds
        held_out, distant = running.held_out.to_numbers() if running.held_out else (None, None)
        held_out_before, distant_before = at_start.to_numbers() if at_start else (None, None)
        return StepMetrics(
            step=running.step.index + 1,
            tokens=(running.step.index + 1) * tokens,
            loss=sum(weight * terms[name] for name, weight in stage.terms.items()),
            terms=terms,
            loss_tokens=running.step.loss_tokens,
            gradient_norm=norm,
            update_ratio=dict(zip(self.optimizer.roles, ratios, strict=True)),
            learning_rate=max(self.optimizer.peaks) * running.share,
            replies=dict(running.step.replies),
            seconds=round(seconds, 4),
            tokens_per_second=round(throughput, 1),
            mfu=self.pace.mfu(throughput),
            held_out_loss=held_out,
            held_out_loss_before=held_out_before,
            distant_loss=distant,
            distant_loss_before=distant_before,
        )

    def _check(self, metrics: StepMetrics) -> None:
        """Stops a run that has gone wrong; checkpoints of before stay."""
        found = f"{self.title}, step {metrics.step}: the loss is {metrics.loss:.6g} ("
        found += ", ".join(f"{name} {value:.6g}" for name, value in metrics.terms.items())
        found += f"), the gradient norm {metrics.gradient_norm:.6g}"
        folder = self.folder / "checkpoints"
        rest = f"The last good checkpoint is kept in {folder}." if checkpoints(folder) else "No checkpoint was due yet."
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.gradient_norm)):
            raise Diverged(f"{found}. Lower the learning rate, or look at the data of that step. {rest}")
        if self.stage.expected_loss is not None:
            low, high = self.stage.expected_loss
            if not low <= metrics.loss <= high:
                raise Diverged(
                    f"{found}; expected_loss of this stage is {low:g} to {high:g}. Lower the learning rate or check "
                    f"the data and the stage before; if this loss is right, change expected_loss. {rest}"
                )

    def _resume(self) -> list[StepMetrics]:
        """Loads the newest whole checkpoint, and brings metrics.jsonl back to it."""
        make_folder(self.folder)
        done, notes = load_checkpoint(self.folder / "checkpoints", self.optimizer, self.fingerprint)
        for note in notes:
            self.console.print(note)
        log = self.folder / "metrics.jsonl"
        # The checkpoint's own copy: checked with it, and no longer than it.
        kept = self.folder / "checkpoints" / step_name(done) / log.name
        try:
            lines = kept.read_text().splitlines() if done else []
            history = [StepMetrics(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{kept}: is of another version ({error}). Delete {self.folder} to start anew.") from None
        if done:
            self.console.print(f"{self.title}: resumes from step {done}")
        if is_rank_zero():
            write_atomically(log, "".join(line + "\n" for line in lines))
        return history

    @contextmanager
    def _room_on_disk(self) -> Iterator[None]:
        """Turns a disk that is full for metrics.jsonl or the curves into a UserError; checkpoints have their own."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # whatever it is, it is not the disk's size
            raise UserError(
                f"{self.folder}: metrics.jsonl or the curves could not be written ({error}). Free some space and run "
                "the same command again: it resumes from the last whole checkpoint."
            ) from error


def _note(history: list[StepMetrics]) -> str:
    """ "loss 0.1234, held out 0.2345, 1,000 tokens/s": of the last step; held out as it was last measured, if ever."""
    last = history[-1]
    measured = (loss for step in reversed(history) for loss in (step.held_out_loss, step.held_out_loss_before))
    held_out = next((f", held out {loss:.4f}" for loss in measured if loss is not None), "")
    return f"loss {last.loss:.4f}{held_out}, {last.tokens_per_second:,.0f} tokens/s{describe_counts(last.replies)}"
