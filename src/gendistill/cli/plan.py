"""gendistill plan: what a run will cost, before it starts."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.options import Overrides, RecipeFile
from gendistill.errors import UserError

EXAMPLES = ("gendistill plan recipes/demo.yaml --no-probe --json plan.json",)


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option(help="measure throughput and memory with a few steps of each stage")] = True,
    processes: Annotated[
        int, typer.Option(min=1, help="price a run of so many processes, on one host, a GPU for each")
    ] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write every figure here, sizes in bytes")
    ] = None,
) -> None:
    """Print tokens, memory, disk and hours of each stage; writes no run folder."""
    # Before minutes of probing, not after.
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}")

    from gendistill.console import Console
    from gendistill.recipe.loading import load_recipe

    settings = load_recipe(recipe, overrides or ())

    report = show_plan(settings, Console(), processes=processes, probe=probe)
    if json_file is not None:
        from gendistill.files import write_atomically

        write_atomically(json_file, json.dumps(report, indent=1) + "\n")


def show_plan(settings, console, *, processes: int = 1, probe: bool = True, probes: dict | None = None) -> dict:
    """Prints what a recipe costs; returns every figure of it, sizes in bytes.

    Args:
        processes: that share the run.
        probe: measure stages.
        probes: those that were measured before, so that none is measured now.
    """
    # Only now, so that a mistake in the recipe shows at once: torch takes seconds to import.
    from gendistill.compute import compute_to_price
    from gendistill.console import Console
    from gendistill.distill.sharding import check_divisible
    from gendistill.models.loading import load_config
    from gendistill.plan.price import Planner
    from gendistill.plan.refusal import refusal
    from gendistill.run.checks import check_shapes
    from gendistill.run.probe import probe_stages

    compute = compute_to_price(settings, processes)
    name, memory = compute.memory()
    for stage_name, stage in settings.stages.items():
        check_divisible(stage_name, stage, processes)
    planner = Planner(load_config(settings.teacher), check_shapes(settings), compute, memory)
    prices = {name: planner.price(stage) for name, stage in settings.stages.items()}
    refusals = {}
    if memory is not None:  # else the device is not here, or the system does not say
        reasons = {stage: refusal(stage, settings.stages[stage], planner, name, memory) for stage in prices}
        refusals = {stage: reason for stage, reason in reasons.items() if reason is not None}
    if probes is None:
        # What cannot fit would end the probe, and with it the whole plan; it is of one process, with whole models.
        fits = [name for name, stage in settings.stages.items() if planner.fits(stage, "whole")]
        probed = fits if probe and compute.is_present else []
        probes = probe_stages(settings, probed, Console(stderr=True))  # the plan on stdout can be piped

    # One report, for the notes and for --json, so that the two cannot differ.
    report = describe(settings, planner, prices, probes, refusals, (name, memory))
    if prices:
        console.print(to_table(settings, planner, prices, probes, report))
    for line in notes(report, settings, probes, asked=probe, present=compute.is_present):
        console.print(line)
    return report


def describe(settings, planner, prices: dict, probes: dict, refusals: dict, device: tuple) -> dict:
    """Everything that is printed, for --json; sizes in bytes."""
    from dataclasses import asdict

    from gendistill.plan.scaling import bytes_sent, link_of, step_time

    stages = {}
    for name, price in prices.items():
        parameters, probe = planner.parameters(settings.stages[name]), probes.get(name)
        stages[name] = price.to_dict() | {
            "parameters": parameters._asdict(),
            "hours": None,
            "probe": None,
            "step": None,  # seconds of one, and of what
            "refusal": refusals.get(name),
        }
        if probe is not None:
            stage = settings.stages[name]
            throughput = {"tokens_per_second": probe.tokens_per_second(stage)}
            # The probe is of one process; what the others add to it is worked out.
            sent = bytes_sent(price.strategy, parameters, stage, planner.size, planner.compute.processes)
            link = link_of(device[0])
            times = step_time(probe.seconds_of(stage), sent, link, price.strategy, planner.compute.processes)
            hours = probe.hours(stage) * times.seconds / times.alone
            step = asdict(times) | {"seconds": times.seconds, "bytes_sent": sent}
            stages[name] |= {
                "hours": hours,
                "step": step,
                "probe": vars(probe) | throughput,
            }
    caches = {tokens: cache._asdict() | {"saving": cache.saving} for tokens, cache in planner.caches().items()}
    hours = [stage["hours"] for stage in stages.values()]
    return {
        "recipe": settings.name,
        "device": {"kind": planner.compute.device, "name": device[0], "memory_bytes": device[1]},
        "dtype": planner.compute.dtype_name,
        "processes": planner.compute.processes,
        "stages": stages,
        "cache_bytes": caches,
        "disk_bytes": planner.whole_disk(settings),
        "hours": None if None in hours else sum(hours),  # a sum over some stages only would be taken for all
    }


def to_table(settings, planner, prices: dict, probes: dict, report: dict):
    """A column for each stage."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = f"{settings.name} on {planner.compute.device}, {planner.compute.dtype_name}"
    if planner.compute.processes > 1:
        title += f", each of {planner.compute.processes} processes"
    table = Table("", title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in prices:
        table.add_column(name.replace("_", "\n"), justify="right")  # whole, in 80 columns too
    table.add_row("tokens", *(f"{price.tokens:,}" for price in prices.values()))
    table.add_row("steps", *(f"{price.steps:,}" for price in prices.values()))
    if planner.compute.processes > 1:
        table.add_row("strategy", *(price.strategy for price in prices.values()))
    sections = {
        "memory, GiB": memory_rows(prices, probes),
        "disk, GiB": disk_rows(prices),
        "time": time_rows(settings, prices, probes, report),
    }
    for heading, rows in sections.items():
        if not rows:  # nothing was measured
            continue
        table.add_section()
        table.add_row(Text(heading, "bold"))
        for label, cells in rows.items():
            table.add_row(f"  {label}", *cells)
    return table


def memory_rows(prices: dict, probes: dict) -> dict[str, list[str]]:
    """Cells of each row, one per stage: the parts, their sum at the peak, and what a probe measured."""
    from gendistill.plan.refusal import gib

    # Every stage has the same parts, some of them 0; only sharded ones gather layers.
    parts = dict.fromkeys(part for price in prices.values() for part in price.parts)
    rows = {part: [gib(price.parts.get(part, 0)) for price in prices.values()] for part in parts}
    rows["total, at its peak"] = [gib(price.total) for price in prices.values()]
    rows["the peak is"] = [price.peak for price in prices.values()]
    rows["device needs"] = [gib(price.needed) for price in prices.values()]
    if not any(probe.peak_bytes for probe in probes.values()):  # on a CPU nothing counts it
        return rows
    # What a replayed graph uses torch does not count, but the warm-ups before its capture.
    rows["total that torch counts"] = [gib(price.counted) for price in prices.values()]
    rows["the same, measured"] = [gib(probes[name].peak_bytes) if name in probes else "" for name in prices]
    return rows


def disk_rows(prices: dict) -> dict[str, list[str]]:
    """Cells of each row, one per stage."""
    from gendistill.plan.refusal import gib

    labels = ["data_set", "checkpoints", "student"]  # fields of `Disk`
    if any(price.disk.replies for price in prices.values()):
        labels.append("replies")
    return {label.replace("_", " "): [gib(getattr(price.disk, label)) for price in prices.values()] for label in labels}


def time_rows(settings, prices: dict, probes: dict, report: dict) -> dict[str, list[str]]:
    """Cells of each row, one per stage, blank for stages that were not probed; no rows if none was."""
    if not probes:
        return {}
    rows = {"tokens a second": [], "start-up, seconds": [], "hours": []}
    for name in prices:
        cells = ["", "", ""]  # of a stage that cannot fit
        if name in probes:
            probe, step = probes[name], report["stages"][name]["step"]
            throughput = probe.tokens_per_second(settings.stages[name]) * step["alone"] / step["seconds"]
            cells = [f"{throughput:,.0f}", f"{probe.start_up_seconds:.1f}", f"{report['stages'][name]['hours']:.3g}"]
        for row, cell in zip(rows.values(), cells, strict=True):
            row.append(cell)
    return rows


def notes(report: dict, settings, probes: dict, *, asked: bool, present: bool) -> list[str]:
    """What is to be said under the table."""
    from gendistill.plan.refusal import gib
    from gendistill.plan.scaling import REACHED

    lines = []
    for tokens, cache in report["cache_bytes"].items():
        sizes = f"teacher {gib(cache['teacher'])} GiB, student {gib(cache['student'])} GiB"
        lines.append(f"cache of one text of {tokens:,} tokens: {sizes}, {cache['saving']:.1%} less")
    lines.append(f"disk in all, with the converted student: {gib(report['disk_bytes'])} GiB")
    for name, stage in report["stages"].items():
        if (writing := stage["writing"]) is not None:
            lines.append(
                f"{name} writes up to {writing['replies']:,} replies at a time, with caches of "
                f"{gib(writing['cache_bytes'])} GiB; fewer where they do not fit"
            )
    if not report["stages"]:
        return [*lines, "no stages: nothing is trained"]
    device, refusals = report["device"], [stage["refusal"] for stage in report["stages"].values() if stage["refusal"]]
    if device["memory_bytes"] is not None:
        verdict = "a run would be refused:" if refusals else "every stage fits"
        lines.append(f"{device['name']} has {gib(device['memory_bytes'])} GiB: {verdict}")
        lines += [f"  {refusal}" for refusal in refusals]
    # There layers are not compiled, and the factors for that come from few measurements.
    if device["kind"] == "cpu":
        lines.append("on a CPU, activations and loss are rough estimates")
    for name, probe in probes.items():
        whole = settings.stages[name].sequences_per_step
        # A probe takes fewer micro-batches a step than the stage, and its time is scaled up: worth saying.
        part = f"{probe.sequences_per_step} of its {whole}" if probe.sequences_per_step < whole else f"its {whole}"
        lines.append(f"probe of {name}: {probe.steps} steps of {part} sequences, an untrained student")
    # None where a stage was not probed: a sum without it would mislead.
    if report["processes"] > 1 and probes:
        lines.append(
            f"hours on {report['processes']} processes: a probe of one, shared out, and what they exchange at "
            f"{REACHED:.0%} of the GPU's links, where those are known (docs/many-gpus.md)"
        )
    if report["hours"] is not None:
        lines.append(f"training in all: {report['hours']:.3g} hours, without preparing data, conversion and evaluation")
    elif asked and not present:
        lines.append("hours need a device: torch sees no CUDA device here; memory is what one would need")
    return lines
