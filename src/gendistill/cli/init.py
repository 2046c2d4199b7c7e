"""gendistill init: a recipe for a model, to begin with; or the JSON schema of recipes."""

import json
import sys
from typing import Annotated

import typer

from gendistill.cli.options import Chats, Hours, Text
from gendistill.errors import UserError

EXAMPLES = (
    "gendistill init embedded > recipe.yaml",
    "gendistill init /path/to/model --text corpus.txt --hours 1 > recipe.yaml",
    "gendistill init --schema > recipe.schema.json",
)


def command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="'embedded', a folder or a hub id")] = None,
    text: Text = None,
    chats: Chats = None,
    hours: Hours = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of recipes, for editors")] = False,
) -> None:
    """Print the recipe that `gendistill run MODEL` uses, and nothing else; what it measures goes to stderr."""
    if schema:
        if (model, text, chats, hours) != (None,) * 4:
            raise UserError("--schema is of all recipes: give it alone")
        from gendistill.recipe.schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=1))
        return
    if model is None:
        raise UserError("give a MODEL ('embedded', a folder or a hub id), or --schema")

    # Only now: torch takes seconds to import.
    from gendistill.console import Console
    from gendistill.run.defaults import Asked, default_recipe

    offer = default_recipe(Asked(model, text, chats, hours), Console(stderr=True))
    # Not by the console, which would show a path's odd characters as numbers: this is a file.
    sys.stdout.write(offer.text)
