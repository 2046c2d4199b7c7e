"""The step that has the teacher write training data."""

from gendistill.distributed import on_rank_zero, report_errors_once
from gendistill.errors import UserError
from gendistill.files import read_json
from gendistill.run.run import Run
from gendistill.synthesize.run import synthesize


@report_errors_once
def synthesize_set(run: Run, name: str) -> dict:
    """Has the teacher write a set of records, unless that is done; returns its statistics.

    Raises:
        UserError: see `synthesize`; or there is no such set.
    """
    if name not in run.recipe.synthesis:
        known = ", ".join(run.recipe.synthesis) or "none"
        raise UserError(f"there is no synthesis '{name}'; the recipe's sets: {known}")
    folder = run.folder.synthesis(name)
    # Written last, so a set that has it is whole; looking first spares loading the teacher.
    if not (folder / "stats.json").exists():
        on_rank_zero(
            lambda: synthesize(
                run.teacher.eval(),
                run.tokenizer,
                run.recipe.synthesis[name],
                run.recipe.evaluation.tasks,  # what records must not overlap with
                seed=run.recipe.seed,
                folder=folder,
                teacher=run.recipe.teacher,
                console=run.console,
            )
        )
    return read_json(folder / "stats.json")
