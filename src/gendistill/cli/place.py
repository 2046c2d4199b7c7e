"""gendistill place: which layers keep softmax attention."""

from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run
from gendistill.errors import UserError

EXAMPLES = (
    'gendistill place recipes/demo.yaml "student.keep_attention={method: beam, layers: 2, length: 512, window: 32}"',
)


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Output = None,
    compare: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="placement.json of another run, to be shown beside it")
    ] = None,
) -> None:
    """Choose the layers that keep attention, and draw what was measured; resumes where it stopped."""
    run = open_run(recipe, overrides, output)
    if isinstance(run.recipe.student.keep_attention, list):
        raise UserError(
            f"{recipe}: student.keep_attention lists the layers, so nothing is to be chosen. Give a method, such as "
            "'student.keep_attention={method: beam, layers: 7}'"
        )

    from gendistill.distributed import is_rank_zero
    from gendistill.placement.result import read_result
    from gendistill.run.place import place_layers

    # Before minutes of measuring, not after.
    others = {str(path): read_result(path) for path in compare or ()}
    place_layers(run)
    if is_rank_zero():
        path = run.folder.placement
        show({str(path): read_result(path)} | others, path.with_suffix(".svg"), run.console)


def show(results: dict, picture: Path, console) -> None:
    """A table and a picture of results by the names of their files; the first one's is the run's own."""
    from gendistill.analysis.tables import to_rich
    from gendistill.report.placement import PLACEMENT_HEADER, placement_cells, plot_placements

    console.print(to_rich("layers that keep attention", PLACEMENT_HEADER, placement_cells(results)))
    plot_placements(picture, results)
    for number, file in enumerate(results, 1):
        console.print(f"{number}: {file}")
    console.print(f"picture: {picture}")
