"""The steps that score teacher and students on the recipe's tasks."""

from transformers import PreTrainedModel

from gendistill.analysis.scores import Scores
from gendistill.distributed import on_rank_zero, report_errors_once
from gendistill.errors import UserError
from gendistill.evaluate.harness import run_harness
from gendistill.evaluate.run import evaluate_model
from gendistill.models.loading import load_model
from gendistill.run.run import Run


def evaluate_teacher(run: Run) -> Scores | None:
    """Scores the teacher; on the first process, the others wait and get None."""
    # A teacher whose scores are there is loaded all the same: only its weights tell that they are still its own.
    return on_rank_zero(lambda: _evaluate(run, run.teacher, "teacher"))


@report_errors_once
def evaluate_student(run: Run, stage: str) -> Scores | None:
    """Scores the student of a stage or of the conversion; on the first process, the others wait and get None.

    Raises:
        UserError: that stage is not done.
    """
    folder = run.folder.student(stage)
    if not folder.is_dir():
        raise UserError(f"there is no student of '{stage}' yet: run that first")
    # Loaded inside, so that only the first process spends memory on it.
    return on_rank_zero(
        lambda: _evaluate(run, load_model(str(folder), run.compute.dtype, run.compute.device), run.folder.label(stage))
    )


def _evaluate(run: Run, model: PreTrainedModel, label: str) -> Scores:
    evaluation, folder = run.recipe.evaluation, run.folder.evaluation
    scores = evaluate_model(model, run.tokenizer, evaluation, seed=run.recipe.seed, folder=folder, label=label)
    # The harness renders prompts and grades in its own way, so its scores stand beside ours and are no part of them.
    if evaluation.harness is not None:
        run_harness(
            model, run.tokenizer, evaluation.harness, batch_size=evaluation.batch_size, folder=folder, label=label
        )
    return scores
