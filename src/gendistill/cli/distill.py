"""gendistill distill: the stages of a recipe, from the converted student on."""

from typing import Annotated

import typer

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run
from gendistill.errors import UserError


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Output = None,
    stage: Annotated[str | None, typer.Option(help="this stage only; all that are not done if not given")] = None,
) -> None:
    """Distil the converted student, stage by stage; goes on where it stopped."""
    run = open_run(recipe, overrides, output)
    stages = list(run.recipe.stages)
    if stage is not None and stage not in stages:
        raise UserError(f"--stage {stage}: the recipe's stages are {', '.join(stages)}")
    for name in [stage] if stage else stages:
        run.distil(name)
        run.console.print(f"{name}: {run.folder.student(name)}")
