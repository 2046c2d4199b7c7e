"""gendistill status: how far a run is, and who works on it; loads nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gendistill.errors import UserError


def command(run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")]) -> None:
    """Say which stages of a run are done, how far the others are, and which process works there."""
    from gendistill.console import Console
    from gendistill.recipe.reading import read_yaml
    from gendistill.run.lock import holder_of

    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is no run folder (no recipe.yaml); give one that 'gendistill run' made")
    recipe = read_yaml(run / "recipe.yaml", "recipe")
    console = Console(soft_wrap=True)
    console.print(f"{run}: {holder_of(run) or 'no process works there'}")
    for place, name in enumerate(["conversion", *recipe["stages"]]):
        folder = run / f"{place}-{name}"
        tasks = len(list((run / "evaluation" / folder.name).glob("*.meta.json")))
        evaluated = f", evaluated on {tasks} of {len(recipe['evaluation']['tasks'])} tasks" if tasks else ""
        console.print(f"{folder.name}: {_progress(folder)}{evaluated}")


def _progress(folder: Path) -> str:
    """'done', 'step 12, loss 0.5', or 'not begun'; steps as in metrics.jsonl."""
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.is_file() else []  # without half a line
    try:
        last = json.loads(lines[-1]) if lines else None
    except ValueError:
        raise UserError(f"{log}: its last line is damaged") from None
    steps = f"step {last['step']:,}, loss {last['loss']:.4f}" if last is not None else ""
    if last is not None and last.get("held_out_loss") is not None:
        steps += f", held out {last['held_out_loss']:.4f}"
    if (folder / "student").is_dir():
        return f"done{', ' if steps else ''}{steps}"
    return steps or "not begun"
