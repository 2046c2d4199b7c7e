"""gendistill report: a page of a run, or of several, that needs no network; tables and plots as files beside it."""

from pathlib import Path
from typing import Annotated

import typer

from gendistill.errors import UserError

EXAMPLES = ("gendistill report runs/demo", "gendistill report runs/first runs/second --output comparison")


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN|ABLATION...", help="run folders of one teacher, or an ablation's")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="folder to write; report/ in the run's, or in this one for several. A report is replaced"),
    ] = None,
) -> None:
    """Write an HTML page of what runs have come to, with every table and plot as files beside it."""
    # Imported here, so that `gendistill --help` need not wait for it.
    from gendistill.ablation.result import FILE
    from gendistill.console import Console
    from gendistill.report.page.ablation import page_of_ablation
    from gendistill.report.page.make import page_of_run, page_of_runs
    from gendistill.report.page.write import check_folder, write_page

    ablations = [run for run in runs if (run / FILE).is_file()]
    if ablations and len(runs) > 1:
        raise UserError(
            f"{ablations[0]} is an ablation, which has a page of its own; give it alone, or run folders only"
        )
    folder = output or (runs[0] / "report" if len(runs) == 1 else Path("report"))
    check_folder(folder)  # before anything is read at length
    console = Console()
    if ablations:
        page = page_of_ablation(runs[0], console)
    elif len(runs) == 1:
        page = page_of_run(runs[0])
    else:
        page = page_of_runs(runs, console)
    path = write_page(page, folder)
    console.print(page.lead)
    console.print(f"{path}: {path.stat().st_size:,} bytes; tables and plots lie beside it")
