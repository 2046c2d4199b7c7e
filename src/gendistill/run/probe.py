"""What a stage's first steps say about all of it: the hours that `plan` cannot work out."""

import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from gendistill.console import Console
from gendistill.distill.batches import ways_to_measure
from gendistill.distill.objectives import unmeasured_conversion_report
from gendistill.distill.on_policy import Writing
from gendistill.distill.roles import set_trainable
from gendistill.distill.stage import train_stage
from gendistill.errors import Stopped
from gendistill.models.conversion import convert
from gendistill.recipe.loading import Recipe
from gendistill.recipe.stage import Stage
from gendistill.run.distill import teacher_for
from gendistill.run.prepare import prepare_distant, prepare_held_out, prepare_stage
from gendistill.run.reply_kl import reply_tokens
from gendistill.run.run import Run

STEPS = 20
MICRO_BATCHES = 8  # in a step of the probe, at most: enough for its optimizer's step not to weigh in


@dataclass(frozen=True)
class Probe:
    """What a stage's first steps took."""

    steps: int  # of the probe
    sequences_per_step: int  # of the probe; a step of the stage may have more
    step_seconds: float  # median of the steady steps
    start_up_seconds: float  # all the rest: compiling (what comes of it is kept on disk), the first steps
    peak_bytes: int | None  # torch.cuda.max_memory_allocated; None on a CPU
    held_out: int = 0  # sequences that a measurement of the loss on what no stage trains on runs

    def hours(self, stage: Stage) -> float:
        """Of the whole stage's steps. One with more sequences than the probe's is taken to be longer in proportion.

        Start-up is left out: most of the probe's is compiling, which it has then done for the stage as well.
        """
        sequences = stage.steps * stage.sequences_per_step
        # Those held out run forward and backward as the others do.
        sequences += self.held_out * stage.held_out_measurements
        return sequences * self.step_seconds / self.sequences_per_step / 3600

    def seconds_of(self, stage: Stage) -> float:
        """Of a step of the stage, on one process."""
        return self.step_seconds * stage.sequences_per_step / self.sequences_per_step

    def tokens_per_second(self, stage: Stage) -> float:
        return self.sequences_per_step * stage.sequence_length / self.step_seconds


def probe_stages(recipe: Recipe, stages: Sequence[str], console: Console) -> dict[str, Probe]:
    """Probes of the stages by name, made in a folder that is gone afterwards."""
    if not stages:
        return {}
    what = f"up to {STEPS} steps of {', '.join(stages)}"
    console.print(f"measuring {what}, with the recipe's teacher and data")
    # Data sets and the probe's steps need a run folder, which must not stand in the way of the real one.
    with tempfile.TemporaryDirectory(prefix="gendistill-plan-") as folder:
        run = Run(recipe, Path(folder) / "run", console, makes_results=False)
        try:
            return {name: probe_stage(run, name) for name in stages}
        except Stopped as stopped:  # what a stage that is trained would say of its checkpoint is not true here
            raise Stopped("stopped by SIGTERM; a probe keeps nothing", stopped.code) from None


def probe_stage(run: Run, name: str) -> Probe:
    """Runs the first steps of a stage on an untrained student, with the run's data and teacher, and takes the time.

    Steps are written to the run's folder, and nothing else comes of them: give the run a folder of its own.
    """
    stage = short_stage(run.recipe.stages[name])
    dataset = prepare_stage(run, stage)
    on_gpu = run.compute.device == "cuda"
    if on_gpu:
        gc.collect()  # the stage before leaves cycles of models and graphs
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # No student has to be there yet: what a step costs does not depend on the weights.
    student, _ = convert(run.teacher, run.config, run.recipe.seed)
    student = student.to(run.compute.device, torch.float32).train()
    set_trainable(student, stage.train)
    began = time.perf_counter()
    history, _ = train_stage(
        stage,
        teacher_for(run, stage),
        student,
        dataset,
        conversion_report=unmeasured_conversion_report(run.config),
        vocabulary=len(run.tokenizer),
        compute=run.compute_for(stage),
        folder=run.folder.stage(name),
        fingerprint={},  # for checkpoints, of which a probe writes none
        title=f"probe of {name}",
        console=run.console,
        # Replies of an untrained student seldom end, so that writing is timed at its longest.
        writing=None if stage.on_policy is None else Writing(reply_tokens(run)),
    )
    if on_gpu:
        torch.cuda.synchronize()  # the clock must not stop before the GPU does
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    found = timing([step.seconds for step in history], seconds, stage.sequences_per_step, peak)
    return replace(found, held_out=measured_sequences(run, run.recipe.stages[name]))


def measured_sequences(run: Run, stage: Stage) -> int:
    """Sequences that a measurement of the stage's loss runs, distant answers with the windows on and off among them."""
    held_out, distant = prepare_held_out(run, stage), prepare_distant(run, stage)
    of_distant = 0 if distant is None else len(distant) * len(ways_to_measure(run.config.has_window_beside))
    return of_distant + (0 if held_out is None else len(held_out))


def short_stage(stage: Stage) -> Stage:
    """The stage that a probe runs: the same steps, but few, and of few micro-batches."""
    sequences = min(stage.sequences_per_step, MICRO_BATCHES * stage.micro_batch)
    steps = min(stage.steps, STEPS)
    return stage.model_copy(
        update={
            "sequences_per_step": sequences,
            "tokens": steps * sequences * stage.sequence_length,
            "checkpoint_every": steps + 1,  # never: writing one would be timed as well
            # An untrained student's loss says nothing about the stage, and must not stop the probe.
            "expected_loss": None,
            "learning_rate": 1e-9,  # an untrained student at the stage's own rate might diverge
        }
    )


def timing(seconds: Sequence[float], total: float, sequences_per_step: int, peak_bytes: int | None) -> Probe:
    """A probe from the seconds of each of its steps, and of all of it."""
    steady = median(seconds[len(seconds) // 4 :])  # the first steps compile and capture
    start_up = max(0.0, total - len(seconds) * steady)
    return Probe(len(seconds), sequences_per_step, steady, start_up, peak_bytes)
