"""gendistill inspect: single items of an evaluation, teacher and student side by side."""

from pathlib import Path
from typing import Annotated

import typer

from gendistill.errors import UserError

EXAMPLES = (
    "gendistill inspect runs/demo",
    'gendistill inspect runs/demo --task facts --where "teacher right, student wrong"',
)


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    task: Annotated[str | None, typer.Option(help="task to look at; counts of all tasks if not given")] = None,
    where: Annotated[str | None, typer.Option(help='which items, e.g. "teacher right, student wrong"')] = None,
    stage: Annotated[
        str | None, typer.Option(help="whose student, 'conversion' too; the last evaluated if not given")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="items to show")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="print all matching items as lines of JSON")] = False,
) -> None:
    """Count who is right where, and show the items that match."""
    # Imported here, so that `gendistill --help` need not wait for it.
    from rich.text import Text

    from gendistill.console import Console
    from gendistill.report.evaluations import TEACHER, Evaluations
    from gendistill.report.inspection import counts_table, matching, parse_where, print_item, to_json

    evaluations = Evaluations(run)
    # Before any records are read: those of a large evaluation take seconds.
    if task is not None:
        evaluations.check_task(task)
    elif where is not None or as_json:
        raise UserError(f"items are of one task; choose one with --task: {', '.join(evaluations.tasks)}")
    student = evaluations.label(stage or "student")  # "student": of the last stage that was evaluated
    console = Console()

    # Counts first, items only if asked for: a task may have thousands.
    if where is None and not as_json:
        tasks = [task] if task else evaluations.common_tasks([TEACHER, student])
        records = {name: evaluations.records(name, [TEACHER, student]) for name in tasks}
        console.print(Text(f"items that teacher and {student} get right\n"), counts_table(records, student), sep="\n")
        example = f'gendistill inspect {run} --task {tasks[0]} --where "teacher right, student wrong"'
        console.print(f"\nTo see some: {example}")
        return

    conditions = parse_where(where, evaluations, student) if where is not None else []
    # Models that a condition names are shown as well; a dict keeps the order and names each once.
    labels = list(dict.fromkeys([TEACHER, student, *(condition.label for condition in conditions)]))
    records = evaluations.records(task, labels)
    found = matching(records, conditions)
    if as_json:
        for index in found:
            # Not by the console, which would wrap the lines.
            print(to_json(task, records, index))
        return
    shown = f"; {limit} of them shown (--limit)" if len(found) > limit else ""
    console.print(f"{task}: {len(found):,} of {len(records[student]):,} items match{shown}")
    for index in found[:limit]:
        console.print()
        print_item(console, task, records, index)
