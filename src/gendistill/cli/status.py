"""gendistill status: how far a run is, and who works on it; loads nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gendistill.errors import UserError
from gendistill.files import SUMS, damage_of


def command(run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")]) -> None:
    """Say which stages of a run are done, how far the others are, and which process works there."""
    from gendistill.console import Console
    from gendistill.recipe.reading import is_as_signed, read_yaml
    from gendistill.run.lock import holder_of

    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is no run folder (no recipe.yaml); give one that 'gendistill run' made")
    if not is_as_signed(run / "recipe.yaml"):
        raise UserError(
            f"{run / 'recipe.yaml'}: changed since the run wrote it. Any other verb, with the recipe that the run was "
            "made from, writes it anew."
        )
    recipe = read_yaml(run / "recipe.yaml", "recipe")
    console = Console()
    console.print(f"{run}: {holder_of(run) or 'no process works there'}")
    for place, name in enumerate(["conversion", *recipe["stages"]]):
        folder = run / f"{place}-{name}"
        tasks = len(list((run / "evaluation" / folder.name).glob("*.meta.json")))
        evaluated = f", evaluated on {tasks} of {len(recipe['evaluation']['tasks'])} tasks" if tasks else ""
        console.print(f"{folder.name}: {_progress(folder)}{evaluated}")


def _progress(folder: Path) -> str:
    """'done', 'step 12, loss 0.5', or 'not begun'; steps as in metrics.jsonl."""
    log = folder / "metrics.jsonl"
    is_done = (folder / "student").is_dir()
    if is_done and log.is_file() and (folder / SUMS).is_file() and (damage := damage_of(folder, only=log.name)):
        raise UserError(f"{folder}: {damage}")
    lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []  # without half a line
    try:
        last = json.loads(lines[-1]) if lines else None
        steps = f"step {last['step']:,}, loss {last['loss']:.4f}" if last is not None else ""
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{log}: its last line is damaged") from None
    if last is not None and isinstance(last.get("held_out_loss"), float):
        steps += f", held out {last['held_out_loss']:.4f}"
    if is_done:
        return f"done{', ' if steps else ''}{steps}"
    return steps or "not begun"
