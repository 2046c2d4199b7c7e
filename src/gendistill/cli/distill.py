"""gendistill distill: the stages of a recipe, from the converted student on."""

from typing import Annotated

import typer

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run
from gendistill.errors import UserError

EXAMPLES = ("gendistill distill recipes/demo.yaml --stage qk_alignment",)


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Output = None,
    stage: Annotated[str | None, typer.Option(help="this stage only; all that are not done if not given")] = None,
) -> None:
    """Distil the converted student, stage by stage; resumes where it stopped."""
    # Only what is to be trained now must fit into memory.
    run = open_run(recipe, overrides, output, trains=[stage] if stage else None, evaluates=True)
    if not run.recipe.stages:
        raise UserError("the recipe has no stages, so there is nothing to distil; 'gendistill run' does the rest")

    from gendistill.run.distill import distil_stage
    from gendistill.run.reply_kl import measure_replies

    # A stage that is done returns at once, so this is also how a killed run resumes.
    for name in [stage] if stage else run.recipe.stages:
        distil_stage(run, name)
        measure_replies(run, name)
        run.console.print(f"{name}: {run.folder.student(name)}")
