"""gendistill show-batch: what a stage's next step will learn, token by token."""

from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run
from gendistill.errors import UserError

EXAMPLES = ("gendistill show-batch recipes/demo.yaml --stage instruction_distillation --page batch.html",)


def command(
    recipe: RecipeFile,
    stage: Annotated[str, typer.Option(help="the stage whose batch to show")],
    overrides: Overrides = None,
    output: Output = None,
    step: Annotated[
        int | None, typer.Option(help="the batch after so many steps; after the newest checkpoint if not given")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="packed sequences to show; totals are of the whole batch")] = 4,
    full: Annotated[bool, typer.Option("--full", help="print long runs of tokens whole, too")] = False,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="write an HTML page, too")] = None,
) -> None:
    """Show the next batch of a stage as it will be trained on; loads no model."""
    # Before data is prepared, which can take minutes.
    if page is not None and not page.parent.is_dir():
        raise UserError(f"--page {page}: there is no folder {page.parent}")
    run = open_run(recipe, overrides, output, makes_results=False)
    stages = run.recipe.stages
    if stage not in stages:
        known = ", ".join(stages) or "none, so no batch is learnt"
        raise UserError(f"--stage {stage}: the recipe's stages are {known}")

    from rich.text import Text

    from gendistill.data.masks import check_masks
    from gendistill.distill.batches import Loader
    from gendistill.report.batch_page import to_page
    from gendistill.report.batch_view import print_view, view_step
    from gendistill.run.prepare import prepare_stage

    settings = stages[stage]
    # Where the run would resume, so that what is shown is what comes next.
    index = next_step(run.folder.stage(stage), settings.steps) if step is None else step
    if not 0 <= index < settings.steps:
        raise UserError(f"--step {index}: stage {stage} has {settings.steps} steps, 0 to {settings.steps - 1}")
    dataset = prepare_stage(run, settings)
    ends = set(dataset.stats["ends"])
    try:
        check_masks(dataset, run.tokenizer)
    except UserError as error:  # training would refuse this data; here it is to be seen
        run.console.print(Text(str(error), "bold red"))
    loaded = Loader(dataset, settings).step(index)  # the very batches that training would get
    # An alignment has no loss tokens of its own: every token of a document counts.
    view = view_step(loaded, run.tokenizer, ends, alignment=settings.compares != "end_to_end")

    title = f"{stage}: the batch after {index:,} of {settings.steps:,} steps"
    print_view(view, run.console, title=title, rows=rows, full=full)
    if settings.on_policy is not None:  # no model is loaded that could write them
        first = index * settings.sequences_per_step
        written = [row for row in range(settings.sequences_per_step) if settings.on_policy.is_written(first + row)]
        numbers = ", ".join(str(row + 1) for row in written) or "none"
        run.console.print(
            f"The student writes the replies of sequences {numbers}, of at most "
            f"{settings.on_policy.most_new_tokens(index, settings.steps)} tokens; shown are the data's.",
        )
    if page is not None:
        from gendistill.files import write_atomically

        write_atomically(page, to_page(view, title=f"{run.recipe.name}, {title}", rows=rows))
        run.console.print(f"\n{page}")


def next_step(folder: Path, steps: int) -> int:
    """Steps that the newest checkpoint in a stage's folder has behind it; 0 if there is none.

    Raises:
        UserError: the checkpoint is of the stage's last step.
    """
    from gendistill.distill.checkpoint import checkpoints

    done = [int(path.name.removeprefix("step-")) for path in checkpoints(folder / "checkpoints")]
    if done and done[-1] >= steps:
        raise UserError(f"{folder}: all {steps} steps are done, so no batch comes next; choose one with --step")
    return done[-1] if done else 0
