"""How the runs came about: their recipes word for word, and in what recipes and versions differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gendistill.report.page.parts import Column, Listing, Part, Table
from gendistill.report.page.reading import RunRecords

NOT_SET = "(not set)"
NOT_RECORDED = "(not recorded)"
NO_DIFFERENCE = ("name",)  # a run is called something, which is no setting of it


def recipe_parts(runs: Sequence[RunRecords], results: Sequence[str]) -> list[Part]:
    """What differs, then every recipe as it stands in its run's folder.

    Args:
        results: names of the runs whose settings are compared: a control lacks whole sections.
    """
    # Word for word, with its hash: the exact recipe, to be copied out and run again.
    listings = [
        Listing(f"Recipe of {run.name}", (run.root / "recipe.yaml").read_text(encoding="utf-8")) for run in runs
    ]
    return [*differing_settings([run for run in runs if run.name in results]), *_versions(runs), *listings]


def differing_settings(runs: Sequence[RunRecords]) -> list[Table]:
    """Dotted settings that not all runs share, a column for each run; none for a single one."""
    flat = [dict(flattened(run.settings)) for run in runs]
    # In the order of the recipe; a section that only some have comes behind.
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = []
    for name in names:
        values = [_shown(settings.get(name, NOT_SET)) for settings in flat]
        if len(set(values)) > 1 and name not in NO_DIFFERENCE:
            rows.append([name, *values])
    if not rows:
        return []
    columns = [Column("setting", "setting"), *(Column(run.name, run.name) for run in runs)]
    return [Table("differences", "Settings that differ", columns, rows, "All others are the same in every run.")]


def _shown(value: Any) -> str:
    """As in YAML, where a person would look for it."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "null" if value is None else str(value)


def flattened(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("stages.one.tokens", 1000), ...: the leaves of nested settings; an empty section is a leaf."""
    if isinstance(settings, Mapping):
        below: Any = settings.items()
    elif isinstance(settings, list) and any(isinstance(each, Mapping) for each in settings):
        below = enumerate(settings)  # a list of sections; one of numbers or names is a value
    else:
        below = ()
    # Nothing below: a value, or a section that is empty, which another run's may not be.
    entries = [entry for key, value in below for entry in flattened(value, f"{prefix}{key}.")]
    yield from entries or [(prefix.removesuffix("."), settings)]


def _versions(runs: Sequence[RunRecords]) -> list[Table]:
    """With what every stage was trained; stages of a run may have been on different days."""
    # By stage: a run may have been resumed on another machine, or after an upgrade.
    columns = [Column("run", "run"), Column("stage", "stage")]
    names = ("gendistill", "torch", "transformers")
    columns += [Column(name, name) for name in names]
    rows = []
    for run in runs:
        for stage, report in run.reports.items():
            # Not in reports of earlier versions.
            versions = report.get("machine", {}).get("versions", {})
            rows.append([run.name, stage, *(versions.get(name, NOT_RECORDED) for name in names)])
    return [Table("versions", "Versions", columns, rows)] if rows else []
