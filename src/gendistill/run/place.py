"""The step that chooses which layers keep softmax attention, for recipes that do not list them."""

from functools import partial
from pathlib import Path

from gendistill.distributed import as_rank_zero_says, on_rank_zero, own_share, report_errors_once
from gendistill.errors import UserError
from gendistill.files import write_hashed_json
from gendistill.models.loading import load_model
from gendistill.placement.place import place
from gendistill.placement.result import check_teacher, read_result
from gendistill.recipe.placement import FromFile, Measured, Restored
from gendistill.run.restore import train_restored
from gendistill.run.run import Run


@report_errors_once
def place_layers(run: Run) -> None:
    """Chooses the layers, unless that is done; from then on `run.config` is of the student that has them.

    Raises:
        UserError: the file that the recipe names is of another teacher; or see `placement.place.place`.
    """
    if isinstance(run.recipe.student.keep_attention, list):
        return
    if as_rank_zero_says(lambda: not run.folder.placement.is_file()):
        with run.times.of("placement", "placement"):
            _place(run)
    run.read_placement()


def _place(run: Run) -> None:
    keep = run.recipe.student.keep_attention
    if isinstance(keep, FromFile):
        path = Path(keep.path)
        result = read_result(path)
        check_teacher(result, path, run.teacher, run.recipe.teacher)
        # A copy, so that the run stays what it is whatever becomes of the file.
        on_rank_zero(lambda: write_hashed_json(run.folder.placement, result))
        return
    student = None
    if isinstance(keep, Measured) and keep.student is not None:
        student = load_model(keep.student, run.compute.dtype, run.compute.device).requires_grad_(False)
    train = None
    if isinstance(keep, Restored) and keep.stage is not None:
        if run.compute.processes > 1:  # each would train every layer
            raise UserError("keep_attention.stage: its trainings run in one process. Place layers without torchrun.")
        train = partial(train_restored, run, student, keep)
    place(
        run.teacher,
        run.tokenizer,
        keep,
        student=student,
        train=train,
        name=run.recipe.teacher,
        seed=run.recipe.seed,
        folder=run.folder.root,
        console=run.console,
        share=own_share(),
    )
