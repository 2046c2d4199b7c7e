"""gendistill evaluate: teacher and student on the same items, by ranking and by generation."""

from typing import Annotated

import typer

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run
from gendistill.errors import UserError


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Output = None,
    stage: Annotated[
        str | None, typer.Option(help="whose student, 'conversion' too; the latest that is there if not given")
    ] = None,
) -> None:
    """Evaluate teacher and student on the recipe's tasks and print the pair."""
    run = open_run(recipe, overrides, output)
    done = [name for name in run.folder.stages if run.folder.has_student(name)]
    # That a stage is in the recipe and not done yet is another mistake: `evaluate_student` reports it.
    if stage is not None and stage not in run.folder.stages:
        raise UserError(f"--stage {stage}: the stages of this run are {', '.join(run.folder.stages)}")
    if not done:
        raise UserError(f"{run.folder.root} holds no student yet; run 'gendistill convert' or 'gendistill run' first")
    stage = stage or done[-1]  # in the order of the run, so this is the furthest

    from gendistill.analysis.scores import paired_table
    from gendistill.analysis.tables import PAIRED_HEADER, paired_cells, to_rich
    from gendistill.run.evaluate import evaluate_student, evaluate_teacher

    teacher, student = evaluate_teacher(run), evaluate_student(run, stage)
    if teacher is None or student is None:  # only the first process has scores, and prints
        return
    rows = paired_table(teacher, {stage: student})[stage]
    run.console.print(to_rich(f"teacher and student after {stage}", PAIRED_HEADER, paired_cells(rows)))
