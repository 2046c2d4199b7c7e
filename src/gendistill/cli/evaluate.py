"""gendistill evaluate: models on items, by ranking and by generation: a recipe's pair, or any one model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gendistill.cli.options import Output, Overrides, open_run
from gendistill.errors import UserError

EXAMPLES = (
    "gendistill evaluate recipe.yaml --stage block_alignment",
    "gendistill evaluate --model embedded --tasks gsm8k --items 100",
)


def command(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="recipe file (YAML), or the name of a shipped one")
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
    stage: Annotated[
        str | None, typer.Option(help="whose student, 'conversion' too; the latest that is there if not given")
    ] = None,
    without_window: Annotated[
        bool, typer.Option("--without-window", help="and the student with its windows switched off, beside it")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_ID", help="any causal model, without a recipe; needs --tasks")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="with --model: task files by name, or paths that end in .yaml")
    ] = None,
    items: Annotated[int | None, typer.Option(min=1, help="with --model: of each task; all if not given")] = None,
    seed: Annotated[int, typer.Option(help="with --model: draws items and few-shot examples")] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="with --model")] = "auto",
) -> None:
    """Evaluate teacher and student on the recipe's tasks and print the pair; or any model on any tasks."""
    if model is not None:
        if recipe is not None or stage is not None or without_window or tasks is None:
            raise UserError("--model takes --tasks, and neither a recipe nor --stage nor --without-window")
        return evaluate_one(model, tasks.split(","), items, seed, device, output)
    if recipe is None or tasks is not None:
        raise UserError("give a recipe, whose tasks are evaluated, or --model FOLDER_OR_ID with --tasks")
    return evaluate_pair(recipe, overrides, output, stage, without_window)


def evaluate_pair(
    recipe: Path, overrides: list[str] | None, output: Path | None, stage: str | None, without_window: bool
) -> None:
    """Teacher and student of a run, its windows switched off as well if wanted; what is answered already stays."""
    run = open_run(recipe, overrides, output)
    done = [name for name in run.folder.stages if run.folder.has_student(name)]
    # That a stage is in the recipe and not done yet is another mistake: `evaluate_student` reports it.
    if stage is not None and stage not in run.folder.stages:
        raise UserError(f"--stage {stage}: the stages of this run are {', '.join(run.folder.stages)}")
    if not done:
        raise UserError(f"{run.folder.root} holds no student yet; run 'gendistill convert' or 'gendistill run' first")
    stage = stage or done[-1]  # in the order of the run, so this is the furthest

    from gendistill.analysis.scores import paired_table
    from gendistill.analysis.tables import PAIRED_HEADER, paired_cells, stages_cells, to_rich
    from gendistill.run.evaluate import evaluate_student, evaluate_teacher

    alone = evaluate_student(run, stage, with_window=False) if without_window else None
    teacher, student = evaluate_teacher(run), evaluate_student(run, stage)
    if teacher is None or student is None:  # only the first process has scores, and prints
        return
    if alone is not None:
        columns = stages_cells(teacher, {"with windows": student, "without": alone})
        run.console.print(to_rich("ranking/generation, percent", *columns))
    rows = paired_table(teacher, {stage: student})[stage]
    run.console.print(to_rich(f"teacher and student after {stage}", PAIRED_HEADER, paired_cells(rows)))


def evaluate_one(model: str, tasks: list[str], items: int | None, seed: int, device: str, output: Path | None) -> None:
    """Any causal model, without a recipe."""
    from gendistill.recipe.loading import parse_evaluation

    names = [Path(task).stem if task.endswith((".yaml", ".yml")) else task for task in tasks]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--tasks names {', '.join(repeated)} more than once")
    asked = {
        name: {"task": task} | ({} if items is None else {"items": items})
        for name, task in zip(names, tasks, strict=True)
    }
    evaluation = parse_evaluation({"tasks": asked}, "--tasks", Path.cwd())

    from gendistill.analysis.tables import SCORES_HEADER, scores_cells, to_rich
    from gendistill.console import Console
    from gendistill.run.evaluate import evaluate_any

    folder = output or Path("evaluations") / Path(model).name
    scores = evaluate_any(model, evaluation, seed=seed, device=device, folder=folder)
    if scores is None:  # only the first process has scores, and prints
        return
    console = Console()
    console.print(to_rich(f"{model}, percent", SCORES_HEADER, scores_cells(scores)))
    console.print(f"records: {folder / scores.label}")
