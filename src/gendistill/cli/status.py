"""gendistill status: how far a run is, and who works on it; loads nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gendistill.errors import UserError
from gendistill.files import SUMS, damage_of

EXAMPLES = (
    "gendistill status runs/demo",
    "gendistill status runs/demo --json",
)


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    as_json: Annotated[bool, typer.Option("--json", help="print one object of JSON")] = False,
) -> None:
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
    process = holder_of(run)
    stages = [_look_at(run, place, name, recipe) for place, name in enumerate(["conversion", *recipe["stages"]])]
    if as_json:
        # Not by the console, which would wrap the line.
        print(json.dumps({"run": str(run), "process": process, "stages": stages}))
        return
    console = Console()
    console.print(f"{run}: {process or 'no process works there'}")
    for stage in stages:
        console.print(_in_words(stage))


def _look_at(run: Path, place: int, name: str, recipe: dict) -> dict:
    """How far a stage is; step and losses as in metrics.jsonl, null where there are none."""
    folder = run / f"{place}-{name}"
    log = folder / "metrics.jsonl"
    is_done = (folder / "student").is_dir()
    if is_done and log.is_file() and (folder / SUMS).is_file() and (damage := damage_of(folder, only=log.name)):
        raise UserError(f"{folder}: {damage}")
    lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []  # without half a line
    try:
        last = json.loads(lines[-1]) if lines else {}
        figures = {"step": int(last["step"]), "loss": float(last["loss"])} if lines else {"step": None, "loss": None}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{log}: its last line is damaged") from None
    evaluated = len(list((run / "evaluation" / folder.name).glob("*.meta.json")))
    held_out = {"held_out_loss": last.get("held_out_loss")}
    tasks = {"tasks_evaluated": evaluated, "tasks": len(recipe["evaluation"]["tasks"])}
    return {"stage": folder.name, "done": is_done} | figures | held_out | tasks


def _in_words(stage: dict) -> str:
    """'1-qk_alignment: done, step 12, loss 0.5000, evaluated on 2 of 3 tasks', or 'not begun'."""
    parts = ["done"] if stage["done"] else []
    if stage["step"] is not None:
        parts += [f"step {stage['step']:,}", f"loss {stage['loss']:.4f}"]
    if isinstance(stage["held_out_loss"], float):
        parts.append(f"held out {stage['held_out_loss']:.4f}")
    if stage["tasks_evaluated"]:
        parts.append(f"evaluated on {stage['tasks_evaluated']} of {stage['tasks']} tasks")
    return f"{stage['stage']}: {', '.join(parts) or 'not begun'}"
