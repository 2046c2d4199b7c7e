"""The step that has the teacher write training data."""

from gendistill.distributed import as_rank_zero_says, own_share, report_errors_once
from gendistill.errors import UserError
from gendistill.files import SUMS, damage_of, read_json
from gendistill.run.run import Run
from gendistill.synthesize.run import synthesize


@report_errors_once
def synthesize_set(run: Run, name: str) -> dict:
    """Has the teacher write a set of records, unless that is done; returns its statistics.

    Raises:
        UserError: see `synthesize`; there is no such set, or it is not as it was written.
    """
    if name not in run.recipe.synthesis:
        known = ", ".join(run.recipe.synthesis) or "none"
        raise UserError(f"there is no synthesis '{name}'; the recipe's sets: {known}")
    folder = run.folder.synthesis(name)
    # Written last, so a set that has it is whole; looking first spares loading the teacher.
    if as_rank_zero_says(lambda: not (folder / SUMS).exists()):
        with run.times.of("synthesis", name):
            synthesize(
                run.teacher.eval(),
                run.tokenizer,
                run.recipe.synthesis[name],
                run.recipe.evaluation.tasks,  # what records must not overlap with
                seed=run.recipe.seed,
                folder=folder,
                teacher=run.recipe.teacher,
                console=run.console,
                share=own_share(),
            )
    # Stages would train on a changed record, and a preparation that had it would be another one, without a word.
    if (damage := as_rank_zero_says(lambda: damage_of(folder))) is not None:
        raise UserError(f"{folder}: {damage}. Delete that folder and run again.")
    return read_json(folder / "stats.json")
