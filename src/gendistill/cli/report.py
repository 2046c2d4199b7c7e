"""gendistill report: a page of a run, or of several, that needs no network; tables and plots as files beside it."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, of one teacher")],
    output: Annotated[
        Path | None,
        typer.Option(help="folder to write; report/ in the run's, or in this one for several. A report is replaced"),
    ] = None,
) -> None:
    """Write an HTML page of what runs have come to, with every table and plot as files beside it."""
    # Imported here, so that `gendistill --help` need not wait for it.
    from gendistill.console import Console
    from gendistill.report.page.make import page_of_run, page_of_runs
    from gendistill.report.page.write import check_folder, write_page

    folder = output or (runs[0] / "report" if len(runs) == 1 else Path("report"))
    check_folder(folder)  # before anything is read at length
    console = Console()
    page = page_of_run(runs[0]) if len(runs) == 1 else page_of_runs(runs, console)
    path = write_page(page, folder)
    console.print(page.lead)
    console.print(f"{path}: {path.stat().st_size:,} bytes; tables and plots lie beside it")
