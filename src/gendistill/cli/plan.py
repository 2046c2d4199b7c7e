"""gendistill plan: what a run will cost, before it starts."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.options import Overrides, RecipeFile
from gendistill.errors import UserError


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option(help="measure throughput and memory with a few steps of each stage")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write every figure here, sizes in bytes")
    ] = None,
) -> None:
    """Print tokens, memory, disk and hours of each stage; writes no run folder."""
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}")

    from rich.console import Console

    from gendistill.recipe.loading import load_recipe

    settings = load_recipe(recipe, overrides or ())

    from gendistill.compute import compute_to_price
    from gendistill.models.loading import load_config
    from gendistill.plan.price import Planner
    from gendistill.plan.refusal import refusal
    from gendistill.run.checks import check_shapes

    console = Console(highlight=False)
    compute = compute_to_price(settings)
    planner = Planner(load_config(settings.teacher), check_shapes(settings), compute)
    prices = {name: planner.price(stage) for name, stage in settings.stages.items()}
    name, memory = compute.memory()
    refusals = {}
    if memory is not None:  # else the device is not here, or the system does not say
        reasons = {stage: refusal(stage, settings.stages[stage], planner, name, memory) for stage in prices}
        refusals = {stage: reason for stage, reason in reasons.items() if reason is not None}
    # What cannot fit would end the probe, and with it the whole plan.
    probed = [stage for stage in prices if stage not in refusals] if probe and compute.is_present else []
    probes = measure(settings, probed, console)

    report = describe(settings, planner, prices, probes, refusals, (name, memory))
    console.print(to_table(settings, planner, prices, probes))
    for line in notes(report, settings, probes, asked=probe, present=compute.is_present):
        console.print(line, markup=False)
    if json_file is not None:
        from gendistill.files import write_atomically

        write_atomically(json_file, json.dumps(report, indent=1) + "\n")


def measure(settings, stages: list[str], console) -> dict:
    """Probes of the stages by name, made in a folder that is gone afterwards."""
    if not stages:
        return {}
    from rich.console import Console

    from gendistill.run.probe import probe_stage
    from gendistill.run.run import Run

    # On a terminal progress is shown; in a file it would only be in the way of the table.
    bars = console if console.is_terminal else Console(quiet=True)
    with tempfile.TemporaryDirectory(prefix="gendistill-plan-") as folder:
        run = Run(settings, Path(folder) / "run", bars)
        return {name: probe_stage(run, name) for name in stages}


def describe(settings, planner, prices: dict, probes: dict, refusals: dict, device: tuple) -> dict:
    """Everything that is printed, for --json; sizes in bytes."""
    stages = {}
    for name, price in prices.items():
        parameters, probe = planner.parameters(settings.stages[name]), probes.get(name)
        stages[name] = price.to_dict() | {
            "parameters": parameters._asdict(),
            "hours": None,
            "probe": None,
            "refusal": refusals.get(name),
        }
        if probe is not None:
            stage = settings.stages[name]
            speed = {"tokens_per_second": probe.tokens_per_second(stage)}
            stages[name] |= {"hours": probe.hours(stage), "probe": vars(probe) | speed}
    hours = [stage["hours"] for stage in stages.values()]
    return {
        "recipe": settings.name,
        "device": {"kind": planner.compute.device, "name": device[0], "memory_bytes": device[1]},
        "dtype": planner.compute.dtype_name,
        "stages": stages,
        "disk_bytes": planner.whole_disk(settings),
        "hours": None if None in hours else sum(hours),
    }


def to_table(settings, planner, prices: dict, probes: dict):
    """A column for each stage."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from gendistill.plan.refusal import gib

    title = f"{settings.name} on {planner.compute.device}, {planner.compute.dtype_name}"
    table = Table("", title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in prices:
        table.add_column(name, justify="right")

    def row(label: str, cells, **options) -> None:
        table.add_row(label, *cells, **options)

    def heading(text: str) -> None:
        table.add_section()
        row(f"[bold]{text}[/bold]", [""] * len(prices))

    row("tokens", (f"{price.tokens:,}" for price in prices.values()))
    row("steps", (f"{price.steps:,}" for price in prices.values()))
    heading("memory, GiB")
    for part in next(iter(prices.values())).parts:
        row(f"  {part}", (gib(price.parts[part]) for price in prices.values()))
    row("  total, at its peak", (gib(price.total) for price in prices.values()))
    row("  the peak is", (price.peak for price in prices.values()))
    row("  device needs", (gib(price.needed) for price in prices.values()))
    if any(probe.peak_bytes for probe in probes.values()):
        measured = [gib(probes[name].peak_bytes) if name in probes else "" for name in prices]
        if planner.graphs:
            row("  total in warm-ups", (gib(price.counted) for price in prices.values()))
            row("  warm-ups as measured", measured)
        else:
            row("  total as measured", measured)
    heading("disk, GiB")
    for label in ("data_set", "checkpoints", "student"):
        row(f"  {label.replace('_', ' ')}", (gib(getattr(price.disk, label)) for price in prices.values()))
    if probes:
        heading("time")
        speeds = {name: probe.tokens_per_second(settings.stages[name]) for name, probe in probes.items()}
        hours = {name: probe.hours(settings.stages[name]) for name, probe in probes.items()}
        row("  tokens a second", (f"{speeds[name]:,.0f}" if name in probes else "" for name in prices))
        start_up = (f"{probes[name].start_up_seconds:.1f}" if name in probes else "" for name in prices)
        row("  start-up, seconds", start_up)
        row("  hours", (f"{hours[name]:.3g}" if name in probes else "" for name in prices))
    return table


def notes(report: dict, settings, probes: dict, *, asked: bool, present: bool) -> list[str]:
    """What is to be said under the table."""
    from gendistill.plan.refusal import gib

    lines = [f"disk in all, with the converted student: {gib(report['disk_bytes'])} GiB"]
    device, refusals = report["device"], [stage["refusal"] for stage in report["stages"].values() if stage["refusal"]]
    if device["memory_bytes"] is not None:
        verdict = "a run would be refused:" if refusals else "every stage fits"
        lines.append(f"{device['name']} has {gib(device['memory_bytes'])} GiB: {verdict}")
        lines += [f"  {refusal}" for refusal in refusals]
    if device["kind"] == "cpu":
        lines.append("on a CPU, activations and loss are rough estimates")
    for name, probe in probes.items():
        whole = settings.stages[name].sequences_per_step
        said = f"{probe.sequences_per_step} of its {whole}" if probe.sequences_per_step < whole else f"its {whole}"
        lines.append(f"probe of {name}: {probe.steps} steps of {said} sequences, an untrained student")
    if report["hours"] is not None:
        lines.append(f"training in all: {report['hours']:.3g} hours, without preparing data, conversion and evaluation")
    elif asked and not present:
        lines.append("hours need a device: torch sees no CUDA device here; memory is what one would need")
    return lines
