"""The steps that score teacher and students on the recipe's tasks."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from gendistill.analysis.scores import Scores
from gendistill.compute import start_compute
from gendistill.distributed import on_rank_zero, own_share, report_errors_once
from gendistill.errors import UserError
from gendistill.evaluate.harness import run_harness
from gendistill.evaluate.run import check_questions, evaluate_model
from gendistill.files import make_folder
from gendistill.models.loading import load_config, load_model, load_tokenizer
from gendistill.recipe.evaluation import Evaluation
from gendistill.report.evaluations import WITHOUT_WINDOW
from gendistill.run.lock import lock_folder
from gendistill.run.run import Run


@report_errors_once
def evaluate_teacher(run: Run) -> Scores | None:
    """Scores the teacher, by all processes; the first one gets the scores, the others None."""
    # A teacher whose scores are there is loaded all the same: only its weights tell that they are still its own.
    return _evaluate(run, run.teacher, "teacher")


@report_errors_once
def evaluate_student(run: Run, stage: str, *, with_window: bool = True) -> Scores | None:
    """Scores the student of a stage or of the conversion, by all processes; the first one gets the scores, the others
    None.

    Args:
        with_window: False leaves recurrences that have a window beside them to themselves, to see what they have
            learnt; the records then have a label of their own.

    Raises:
        UserError: that stage is not done, its student is not as it was written, or it has no window to do without.
    """
    if not with_window and not run.config.has_window_beside:
        raise UserError(
            "--without-window: this student has no window beside a recurrence, and so nothing to do without; that is "
            "student.window with a linear mixer"
        )
    folder = run.folder.student(stage)
    if not folder.is_dir():
        raise UserError(f"there is no student of '{stage}' yet: run that first")

    on_rank_zero(lambda: run.folder.check_student(stage))  # reads every weight
    model = load_model(str(folder), run.compute.dtype, run.compute.device)
    model.config.window_is_on = with_window
    return _evaluate(run, model, run.folder.label(stage) + ("" if with_window else WITHOUT_WINDOW))


@dataclass(frozen=True)
class _Auto:
    """How a model computes that is evaluated without a recipe."""

    device: str
    dtype: str = "auto"
    backend: str = "auto"
    compile: bool = False
    strategy: str = "auto"


@report_errors_once
def evaluate_any(name: str, evaluation: Evaluation, *, seed: int, device: str, folder: Path) -> Scores | None:
    """Scores any causal model, by all processes; the first one gets the scores, the others None.

    Records go to `folder`, where a killed evaluation resumes.

    Args:
        name: a folder or hub id.
        device: auto, cpu or cuda.

    Raises:
        UserError: see `load_model`, `load_tokenizer` and `evaluate_model`; or another process works in the folder.
    """
    compute = start_compute(_Auto(device))
    config = load_config(name)
    tokenizer = load_tokenizer(name, config.get_text_config().vocab_size)
    check_questions(config, tokenizer, evaluation, seed)  # before gigabytes are loaded
    on_rank_zero(lambda: _take(folder))
    model = load_model(name, compute.dtype, compute.device)
    return evaluate_model(model, tokenizer, evaluation, seed=seed, folder=folder, label="model", share=own_share())


def _take(folder: Path) -> None:
    try:
        make_folder(folder)
        lock_folder(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}). Give another --output.") from None


def _evaluate(run: Run, model: PreTrainedModel, label: str) -> Scores | None:
    evaluation, folder, share = run.recipe.evaluation, run.folder.evaluation, own_share()
    with run.times.of("evaluation", label):
        scores = evaluate_model(
            model, run.tokenizer, evaluation, seed=run.recipe.seed, folder=folder, label=label, share=share
        )
    # The harness renders prompts and grades in its own way, so its scores stand beside ours and are no part of them.
    harness = evaluation.harness
    if harness is not None:
        size = evaluation.batch_size
        on_rank_zero(lambda: run_harness(model, run.tokenizer, harness, batch_size=size, folder=folder, label=label))
    return scores
