"""gendistill doctor: does this machine compute what it should?"""

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import typer

from gendistill.errors import UserError

WIDTH_OF_REASON = 200  # characters of a kernel's complaint, which can run over pages
CHECKS_LISTED = 12  # of one failure; the tables and --json have them all

EXAMPLES = ("gendistill doctor --json doctor.json",)


def command(
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one")] = "auto",
    backend: Annotated[str, typer.Option(help="of the recurrence, as in a recipe")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write every figure, bound and version here")
    ] = None,
) -> None:
    """Measure this machine's recurrence and a small student against slow, exact references."""
    # Before minutes of measuring, not after.
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}")

    import torch

    from gendistill.compute import present_device
    from gendistill.console import Console
    from gendistill.doctor import machine
    from gendistill.doctor.checks import all_checks
    from gendistill.doctor.measurement import failures
    from gendistill.ops import set_backend

    device = present_device(device)
    if device == "cpu":
        torch.set_num_threads(1)  # small tensors: beside another busy program, threads turn seconds into minutes
    set_backend(backend)

    console = Console()
    this = machine.examine(device, backend)
    known = machine.known_problems(this)
    print_machine(console, this, known)
    outcomes = []
    # `all_checks` lists them table by table, so each table can be printed as soon as it is measured.
    for title, checks in groupby(all_checks(this), lambda check: check.table):
        measured = measure(list(checks))
        print_table(console, title, measured)
        outcomes += measured
    print_failures(console, failures(outcomes))
    failed = sum(not outcome.passed for outcome in outcomes)
    unfit = sum(problem.fatal for problem in known)
    passed = not failed and not unfit
    verdict = f"pass: all {len(outcomes)} checks" if passed else f"FAIL: {failed} of {len(outcomes)} checks"
    verdict += f" and {unfit} requirement(s)" if unfit else ""
    console.print(f"\n{verdict}, {sum(outcome.seconds for outcome in outcomes):.0f} s")
    if json_file is not None:
        write_json(json_file, this, known, outcomes, passed)
    if not passed:
        raise typer.Exit(1)  # so that a script can ask; 2 is for mistakes in the call


def print_machine(console, machine, known) -> None:
    """Versions, hardware, and what is known to go wrong with them."""
    from rich.table import Table

    def free(memory) -> str:
        return "" if memory is None else f", {memory[0]:.1f} of {memory[1]:.1f} GiB memory free"

    gpu = "none in use"
    if machine.gpu is not None:
        gpu = f"{machine.gpu}, sm_{machine.capability[0]}{machine.capability[1]}{free(machine.gpu_memory)}"
    versions = ("python", "torch", "transformers", "triton", "fla_core", "cuda")
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "versions", ", ".join(f"{name.replace('_', '-')} {getattr(machine, name) or 'none'}" for name in versions)
    )
    table.add_row("CPU", f"{machine.cpu_cores} cores{free(machine.memory)}")
    table.add_row("GPU", gpu)
    table.add_row("measured on", f"{machine.device}, backend {machine.backend}")
    table.add_row("launch settings", machine.launch_settings)
    console.print(table)
    for problem in known:
        console.print(f"\n{'FAIL' if problem.fatal else 'note'}: {problem.what}")
        console.print(f"  what to do: {problem.advice}")


def measure(checks) -> list:
    """Runs checks, and says which ones are done."""
    from gendistill.console import Console, Progress

    outcomes = []
    # On stderr: the tables on stdout can be piped.
    with Progress("doctor", len(checks), "checks", Console(stderr=True)) as progress:
        for check in checks:
            outcomes.append(check.run())
            progress.advance(note=f"{check.row}, {check.column}")
    return outcomes


def print_table(console, title: str, outcomes) -> None:
    """The worst relative error of each check, with the name of the tensor it was found in."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console.print(f"\n{title}: worst relative error of each check, bound {outcomes[0].check.bound:.0e}\n")
    columns = list(dict.fromkeys(outcome.check.column for outcome in outcomes))  # each once, in the order of the checks
    table = Table(*("", *columns, ""), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for row, group in groupby(outcomes, lambda outcome: outcome.check.row):
        cells = {outcome.check.column: outcome for outcome in group}
        passed = all(outcome.passed for outcome in cells.values())
        table.add_row(row, *(_cell(cells.get(column)) for column in columns), "pass" if passed else Text("FAIL", "red"))
    console.print(table)


def _cell(outcome):
    """Text of one check's outcome."""
    from rich.text import Text

    if outcome is None:  # this row has no such check
        return "–"
    if outcome.reason is not None:  # it raised; `print_failures` says what
        return Text("error", "red")
    name, error = outcome.worst
    text = f"{error:.0e}" if name == outcome.check.column else f"{error:.0e} {name}"
    return text if outcome.passed else Text(text, "red")


def print_failures(console, failures) -> None:
    """Each failure with what to do about it."""
    for (what, advice), checks in failures.items():
        first_line, *more = what.splitlines()  # compilers print their whole input after it
        cut = " ..." if more or len(first_line) > WIDTH_OF_REASON else ""
        console.print(f"\nFAIL: {first_line[:WIDTH_OF_REASON]}{cut}")
        for check in checks[:CHECKS_LISTED]:
            console.print(f"  {check}")
        if len(checks) > CHECKS_LISTED:
            console.print(f"  and {len(checks) - CHECKS_LISTED} more")
        console.print(f"  what to do: {advice}")


def write_json(path: Path, machine, known, outcomes, passed: bool) -> None:
    """Everything measured, bounds and versions."""
    from gendistill.files import write_atomically

    # Bounds and versions beside the figures: a report is compared with one of another machine.
    report = {
        "passed": passed,
        "machine": asdict(machine),
        "known_problems": [{"what": k.what, "advice": k.advice, "fatal": k.fatal} for k in known],
        "checks": [outcome.to_dict() for outcome in outcomes],
    }
    write_atomically(path, json.dumps(report, indent=1) + "\n")
