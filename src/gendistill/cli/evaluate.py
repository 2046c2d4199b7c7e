"""gendistill evaluate: teacher and student on the same items, by ranking and by generation."""

from typing import Annotated

import typer

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run
from gendistill.errors import UserError


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Output = None,
    point: Annotated[
        str | None, typer.Option(help="'conversion' or a stage; the latest that is there if not given")
    ] = None,
) -> None:
    """Ask teacher and student the recipe's questions and print the pair."""
    run = open_run(recipe, overrides, output)
    reached = [name for name in run.folder.points if run.folder.has_student(name)]
    if point is not None and point not in run.folder.points:
        raise UserError(f"--point {point}: the points of this run are {', '.join(run.folder.points)}")
    if not reached:
        raise UserError(f"{run.folder.root} holds no student yet; run 'gendistill convert' or 'gendistill run' first")
    point = point or reached[-1]

    from gendistill.analysis.scores import paired_table
    from gendistill.analysis.tables import PAIRED_HEADER, paired_cells, to_rich

    teacher, student = run.evaluate_teacher(), run.evaluate_student(point)
    if teacher is None or student is None:  # the first process does the talking
        return
    rows = paired_table(teacher, {point: student})[point]
    run.console.print(to_rich(f"teacher and student after {point}", PAIRED_HEADER, paired_cells(rows)))
