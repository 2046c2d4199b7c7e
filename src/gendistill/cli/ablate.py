"""gendistill ablate: a base recipe and what becomes of it along several axes, compared under both protocols."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from gendistill.errors import UserError

EXAMPLES = (
    "gendistill ablate recipes/ablation.yaml --dry-run",
    "gendistill ablate recipes/ablation.yaml --only duration-50000",
)
JOBS_OF_A_CLUSTER = 16  # at a time, if --jobs says nothing


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="ablation file (YAML)")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings of all variants, e.g. teacher=FOLDER"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder to work in; ablations/NAME if not given")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="run this variant, or row of all seeds, again; may be given several times"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print variants and price; run none")] = False,
    probe: Annotated[bool, typer.Option(help="with --dry-run: measure throughput by a few steps of the base")] = True,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="variants at a time; one a GPU, or one on a CPU, if not given")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="submit variants as jobs, by submitit: slurm; or local, to try it here")
    ] = None,
    cluster_setting: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="of submitit, e.g. slurm_partition=gpu or timeout_min=600"),
    ] = None,
) -> None:
    """Run a base recipe with one setting or another changed, sharing what they have in common; resumes."""
    settings = _cluster_settings(cluster, cluster_setting or [])

    from gendistill.ablation.file import read_ablation_file

    found = read_ablation_file(file)

    # Only now, so that a mistake in the file shows at once: torch takes seconds to import.
    from gendistill.ablation.launch import Cluster, Local
    from gendistill.ablation.queue import Queue
    from gendistill.ablation.summary import summarise
    from gendistill.ablation.variants import make_variants
    from gendistill.console import Console

    console = Console()
    planned = make_variants(found, overrides or ())
    if dry_run:
        _print_plan(planned, console, probe)
        return
    root = output or Path("ablations") / found.name
    queue = Queue(root, found, planned, console)
    if cluster is None:
        launcher = Local(planned[0].recipe.device, jobs)
    else:
        launcher = Cluster(cluster, root / "cluster", settings, jobs or JOBS_OF_A_CLUSTER)
    queue.run(launcher, only or ())
    # Also of a part of the rows: with --only, or where some have failed.
    ablation = queue.ablation()
    path = summarise(root, ablation, queue.planned)
    counts = Counter(variant.state for variant in ablation.variants)
    console.print(f"{found.name}: {', '.join(f'{number} {state}' for state, number in counts.items())}")
    console.print("no summary: the base is not done" if path is None else f"summary: {path}")
    # One that diverged has a result to show; one that failed has none yet.
    if failed := [variant for variant in ablation.variants if variant.state == "failed"]:
        reasons = "\n".join(f"  {variant.name}: {variant.reason}" for variant in failed)
        raise UserError(f"{len(failed)} variant(s) failed; the same command tries them again\n{reasons}")


def _cluster_settings(cluster: str | None, given: list[str]) -> dict:
    if given and cluster is None:
        raise UserError("--cluster-setting is for --cluster")
    from gendistill.recipe.reading import parse_yaml

    pairs = [setting.partition("=") for setting in given]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"--cluster-setting {wrong[0]}: write it as key=value, e.g. slurm_partition=gpu")
    return {key: parse_yaml(value, f"--cluster-setting {key}") for key, _, value in pairs}


def _print_plan(planned: list, console, probe: bool) -> None:
    """Variants with what each has to run itself, what is shared, and the price of it all."""
    from gendistill.ablation.price import price
    from gendistill.compute import compute_to_price
    from gendistill.run.probe import probe_stages

    base = planned[0].recipe
    # A recipe for a GPU is priced without one as well, but for its hours.
    here = compute_to_price(base).is_present
    probes = probe_stages(base, list(base.stages), console) if probe and here else {}
    found = price(planned, probes)
    console.print(f"{len(found.rows)} variants")
    for row in found.rows:
        console.print(f"  {row.describe()}")
    console.print(f"{len(found.shared)} stages that several variants have in common")
    for each in found.shared:
        console.print(f"  {each.stage}: run once in {Path(each.run_once_in).name}, for {', '.join(each.variants)}")
    for line in found.notes():
        console.print(line)
