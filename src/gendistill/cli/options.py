"""Arguments that every verb takes."""

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="recipe file (YAML), or the name of a shipped one: demo")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, e.g. stages.qk_alignment.tokens=1000"),
]
Output = Annotated[Path | None, typer.Option(help="folder to work in; runs/NAME of the recipe if not given")]

# Of a model that has no recipe, see `run.defaults`.
Text = Annotated[str | None, typer.Option(metavar="PATH", help="plain text to train on: file, folder or pattern")]
Chats = Annotated[str | None, typer.Option(metavar="PATH", help="conversations to train on: file, folder or pattern")]
Hours = Annotated[
    float | None, typer.Option(min=0.001, help="that the whole run may take, about; 0.5 on a CPU, 2 on a GPU if absent")
]


def open_run(recipe: Path, overrides: list[str] | None, output: Path | None, **how):
    """The run of a recipe; importing torch and transformers only now keeps --help fast.

    Args:
        how: see `Run`: which stages are to be trained, whether the run is to be evaluated, whether it makes results.
    """
    # The recipe first: a mistake in it shows at once, while torch takes seconds to import.
    from gendistill.recipe.loading import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from gendistill.console import Console
    from gendistill.run.run import Run

    return Run(settings, output or Path("runs") / settings.name, Console(), **how)
