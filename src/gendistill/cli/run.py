"""gendistill run: the whole path, from a checkpoint to a table; of a recipe, or of a model by a recipe made for it."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.options import Chats, Hours, Output, Overrides, Text, open_run
from gendistill.errors import UserError
from gendistill.files import EMBEDDED

EXAMPLES = (
    "gendistill run recipes/demo.yaml",
    "gendistill run embedded --yes",
    "gendistill run /path/to/model --text corpus.txt --chats chats.jsonl --hours 1",
)

FEW_STEPS = 20  # of a stage, below which a price is no offer


def command(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE_OR_MODEL", help="recipe file (YAML); or 'embedded', a folder or a hub id")
    ],
    overrides: Overrides = None,
    output: Output = None,
    text: Text = None,
    chats: Chats = None,
    hours: Hours = None,
    yes: Annotated[bool, typer.Option("--yes", help="with a model: do not ask whether the price is right")] = False,
) -> None:
    """Convert, distil in stages, evaluate after each, and write a summary; resumes where it stopped.

    Of a model a recipe is made and priced first, and lies beside the run's folder. Without --text and --chats nothing
    is trained: most layers see a window of the teacher's own attention, the control that training has to beat.
    """
    if is_model(str(recipe)):
        if overrides:
            raise UserError(
                f"{overrides[0]}: settings are changed in a recipe; make one with 'gendistill init {recipe} > "
                "recipe.yaml', and run that"
            )
        output = output or Path("runs") / name_of(str(recipe))
        recipe = made_recipe(str(recipe), text, chats, hours, output, yes)
    elif yes or (text, chats, hours) != (None, None, None):
        raise UserError(
            f"{recipe} is a recipe, which names its data and budgets; --text, --chats, --hours and --yes "
            "go with a model"
        )
    run = open_run(recipe, overrides, output, trains=None, evaluates=True)

    from gendistill.run.convert import convert_teacher
    from gendistill.run.distill import distil_stage
    from gendistill.run.evaluate import evaluate_student, evaluate_teacher
    from gendistill.run.reply_kl import measure_replies

    run.console.print(f"{run.recipe.name}: {run.recipe.teacher} on {run.compute.device}, {run.compute.dtype_name}")
    convert_teacher(run)
    evaluated = run.recipe.evaluated_stages
    # Its scores are there to be compared with.
    teacher = evaluate_teacher(run) if evaluated else None
    students = {}
    # The summary needs every evaluation, so one that was done before is read again here, not skipped.
    for stage in run.folder.stages:
        if stage != "conversion":  # done above
            distil_stage(run, stage)
        measure_replies(run, stage)
        if stage not in evaluated:
            continue
        scores = evaluate_student(run, stage)
        if scores is None:  # only the first process has scores, and prints
            continue
        students[run.folder.label(stage)] = scores
        run.console.print(f"{stage}: student {_accuracy(scores)} (teacher {_accuracy(teacher)})")
    if students:
        print_results(run, teacher, students)
    if (told := run.times.told()) is not None:
        run.console.print(f"{run.folder.times}: {told}")


def print_results(run, teacher, students: dict) -> None:
    """Tables of all stages and of the last one; writes the summary."""
    from gendistill.analysis.scores import paired_table
    from gendistill.analysis.tables import PAIRED_HEADER, paired_cells, stages_cells, to_rich
    from gendistill.run.summarise import summarise

    last = list(students)[-1]
    rows = paired_table(teacher, {last: students[last]})[last]
    run.console.print(to_rich("stage by stage: ranking/generation, percent", *stages_cells(teacher, students)))
    run.console.print(to_rich("teacher and student, percent", PAIRED_HEADER, paired_cells(rows)))
    run.console.print(f"summary: {summarise(run.folder, teacher, students)}")
    # Of the last stage, whether or not it was evaluated.
    student = run.folder.student(run.folder.stages[-1])
    run.console.print(
        f"talk to it: gendistill chat {shlex.quote(str(student))} --teacher {shlex.quote(run.recipe.teacher)}"
    )


def is_model(name: str) -> bool:
    """Whether it is a model that `run` was given: by its form, so that a mistyped recipe is not asked of the hub."""
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return False
    return name == EMBEDDED or Path(name).is_dir() or "/" in name


def name_of(model: str) -> str:
    """Of the run of a model."""
    from gendistill.run.defaults import Asked

    return Asked(model).name


def made_recipe(model: str, text: str | None, chats: str | None, hours: float | None, output: Path, yes: bool) -> Path:
    """The recipe for the model, a file beside the run's folder: made, priced and agreed to, or of an earlier call."""
    from gendistill.console import Console
    from gendistill.files import make_folder, write_atomically
    from gendistill.run.defaults import Asked, default_recipe

    console, asked = Console(), Asked(model, text, chats, hours)
    file = output.with_name(output.name + ".yaml")  # beside the folder, which takes nothing but a run's own files
    if file.is_file():
        # Measured again, its budgets would differ, and the run could not resume.
        before = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        if before != asked.first_line:
            raise UserError(
                f"{file} was made by another call ({before.removeprefix('# ')}). Run that recipe, delete it, or give "
                "another --output"
            )
        console.print(f"{file}: made by an earlier call; delete it for a new price")
        return file
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"torchrun takes a recipe: make one with 'gendistill init {model} > recipe.yaml', without torchrun"
        )
    # Before minutes of measuring, not after.
    if not yes and not sys.stdin.isatty():
        raise UserError("nobody is there to be asked whether the price is right (stdin is no terminal): give --yes")
    offer = default_recipe(asked, console)
    show_price(offer, console)
    # Nothing is written until the price is agreed to.
    if not yes and not typer.confirm("run it?"):
        raise typer.Exit(1)
    try:
        make_folder(file.parent)
        write_atomically(file, offer.text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}). Give another --output") from None
    console.print(f"recipe: {file}")
    return file


def show_price(offer, console) -> None:
    """The plan of the recipe, then what the whole run takes."""
    from gendistill.cli.plan import show_plan

    show_plan(offer.recipe, console, probes=offer.probes)
    parts = ", ".join(f"{part} {seconds / 60:.1f}" for part, seconds in offer.seconds.items() if seconds)
    total = sum(offer.seconds.values())
    console.print(f"the whole run: about {total / 60:.1f} minutes ({parts})")
    if total > 1.2 * offer.wanted_seconds:
        hours = f"{offer.wanted_seconds / 3600:.3g} hours"
        console.print(f"that is more than the {hours} it was to take: a smaller run of this model says nothing")
    if few := [name for name, stage in offer.recipe.stages.items() if stage.steps < FEW_STEPS]:
        console.print(f"too few steps to learn from in {', '.join(few)}: give more --hours")
    if not offer.recipe.stages:
        console.print("nothing is trained: give --text PATH and --chats PATH (plain text, conversations) for that")


def _accuracy(scores) -> str:
    ranking = "" if scores.ranking is None else f", {scores.ranking:.1%} by ranking"  # None: nothing was ranked
    return f"{scores.generation:.1%} by generation{ranking}"
