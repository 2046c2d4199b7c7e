"""gendistill synthesize: data that the teacher writes."""

from typing import Annotated

import typer

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run

SetName = Annotated[str | None, typer.Option("--set", help="one set of the synthesis section; all if not given")]

EXAMPLES = ("gendistill synthesize recipe.yaml", "gendistill synthesize recipe.yaml --set answers")


def command(recipe: RecipeFile, overrides: Overrides = None, output: Output = None, name: SetName = None) -> None:
    """Have the teacher write replies to the prompts of the synthesis section; resumes where it stopped."""
    run = open_run(recipe, overrides, output)

    from gendistill.errors import UserError
    from gendistill.run.synthesize import synthesize_set

    # A set that is done gives its statistics again at once.
    names = [name] if name else list(run.recipe.synthesis)
    if not names:
        raise UserError(f"{recipe}: has no synthesis section, so there is nothing for the teacher to write")
    for each in names:
        stats = synthesize_set(run, each)
        run.console.print(_table(each, stats))
        run.console.print(f"records: {run.folder.synthesis(each) / 'records.jsonl'}")


def _table(name: str, stats: dict):
    from rich.table import Table

    table = Table(title=f"{name}: {stats['kept']:,} of {stats['replies']:,} replies kept", title_justify="left")
    table.add_column("check")
    for column in ("seen", "rejected", "passed"):
        table.add_column(column, justify="right")
    # Prompts are left out before the teacher sees them, replies rejected after: each counts its own total.
    for reason, count in stats["left_out"].items():
        table.add_row(f"left out: {reason}", f"{stats['prompts']:,}", f"{count:,}", _share(stats["prompts"], count))
    for check, count in stats["checks"].items():
        table.add_row(check, f"{count['seen']:,}", f"{count['rejected']:,}", _share(count["seen"], count["rejected"]))
    if stats["letters"]:
        table.caption = "letters: " + ", ".join(f"{letter} {count:,}" for letter, count in stats["letters"].items())
    return table


def _share(seen: int, rejected: int) -> str:
    return f"{1 - rejected / seen:.1%}" if seen else ""  # a check that no reply has reached
