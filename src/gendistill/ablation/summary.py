"""The comparison of an ablation's rows, as summary.md and summary.json in its folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gendistill.ablation.result import BASE, Ablation, Variant
from gendistill.ablation.variants import Planned, last_evaluated
from gendistill.analysis.ablation import compare_rows
from gendistill.analysis.significance import LEVEL, PROTOCOLS, Records
from gendistill.analysis.tables import NOTHING, to_markdown
from gendistill.errors import UserError
from gendistill.files import read_json, write_atomically
from gendistill.report.evaluations import TEACHER, Evaluations
from gendistill.run.folder import RunFolder

NAME = "summary.md"
HEADER = ["row", "seeds", "protocol", "accuracy", "retention", "difference to base", "p", "p, corrected"]
CERTAIN = 1 - LEVEL  # a corrected p below it is called one


def summarise(root: Path, ablation: Ablation, planned: Mapping[str, Planned]) -> Path | None:
    """Compares what is done, and writes it; returns the path of the Markdown.

    Returns:
        None while the base has no seed done, since there is nothing to compare with.

    Raises:
        UserError: runs are of different teachers, or were evaluated on different items.
    """
    done = [variant for variant in ablation.variants if variant.state == "done"]
    if not any(variant.row == BASE for variant in done):
        return None
    # First, since two teachers may have been asked the same items.
    _check_teachers(root, done)
    rows: dict[str, dict[int, Records]] = {}
    for variant in done:
        rows.setdefault(variant.row, {})[variant.seed] = _records(root, variant, planned[variant.name])
        if variant.row == BASE:
            # In every table, whether or not the file asks for its row.
            rows.setdefault(TEACHER, {})[variant.seed] = _records(root, variant, planned[variant.name], TEACHER)
    found = compare_rows(rows, BASE, TEACHER)
    not_done = [
        {"name": variant.name, "state": variant.state, "reason": variant.reason}
        for variant in ablation.variants
        if variant.state != "done"
    ]
    found |= {"name": ablation.name, "effects": effects(ablation, found), "not_done": not_done}
    # The numbers first, which the text is made of.
    write_atomically(root / "summary.json", json.dumps(found, indent=1) + "\n")
    write_atomically(root / NAME, _markdown(ablation, found))
    return root / NAME


def effects(ablation: Ablation, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each axis the value that moves generation furthest from the base, either way; the largest first."""
    largest = {}
    for variant in ablation.variants:
        row = found["rows"].get(variant.row)
        if variant.axis is None or row is None:
            continue
        # By generation: what a model answers is what it is for.
        points = row["generation"]["difference"]["value"]
        before = largest.get(variant.axis)
        if points is not None and (before is None or abs(points) > abs(before["generation"])):
            certain = row["generation"]["p_corrected"] < CERTAIN
            largest[variant.axis] = {
                "axis": variant.axis,
                "value": variant.value,
                "generation": points,
                "is_certain": certain,
            }
    return sorted(largest.values(), key=lambda effect: -abs(effect["generation"]))


def _records(root: Path, variant: Variant, planned: Planned, label: str | None = None) -> Records:
    """Of the run's result, or of another of its models."""
    folder = root / variant.folder
    recipe = planned.recipe
    if label is None:
        is_teacher = variant.control == TEACHER
        label = TEACHER if is_teacher else RunFolder(folder, recipe).label(last_evaluated(recipe))
    # Records that have changed since they were written are refused there.
    evaluations = Evaluations(folder)
    return {task: evaluations.records(task, [label])[label] for task in recipe.evaluation.tasks}


def _check_teachers(root: Path, done: Sequence[Variant]) -> None:
    """Raises UserError if runs began with different teachers: their students are not comparable."""
    teachers: dict[str, str] = {}
    for variant in done:
        recorded = read_json(root / variant.folder / "teacher.json")
        # By content: where its files lie, and when they were last touched, makes no other teacher.
        files = {name: about["sha256"] for name, about in recorded["files"].items()}
        described = json.dumps([files, recorded["tokenizer"]], sort_keys=True)
        teachers.setdefault(described, variant.name)
    if len(teachers) > 1:
        one, other, *_ = teachers.values()
        raise UserError(
            f"{root}: {one} and {other} have different teachers, so that their students cannot be compared. Give the "
            "teacher back that the ablation began with, and run what is of another one again by --only."
        )


def _markdown(ablation: Ablation, found: Mapping[str, Any]) -> str:
    # An order of nothing where no task is ranked.
    names = {by: ", ".join(order) or NOTHING for by, order in found["orders"].items()}
    parts = [
        f"# {ablation.name}",
        f"Base: {Path(ablation.base).name}; seeds {', '.join(map(str, ablation.seeds))}. Percent, with intervals of "
        f"{LEVEL:.0%}; differences in points. Bootstrap over seeds and items, paired with the base; p corrected by "
        f"{found['correction']}'s method for {found['comparisons']} comparisons.",
        to_markdown(HEADER, [cells for name, row in found["rows"].items() for cells in _cells(name, row)]),
        "## What matters",
        "By axis, the value that moves generation furthest from the base.",
        *_effects(found["effects"]),
        "## Orders",
        *(f"By {by}: {order}." for by, order in names.items()),
        *_flips(found),
        "## What was shared",
        *_shared(ablation),
    ]
    if found["not_done"]:
        listed = [f"- {row['name']}: {row['state']}" + _because(row["reason"]) for row in found["not_done"]]
        parts += ["## Not done", "\n".join(listed)]
    return "\n\n".join(parts) + "\n"


def _because(reason: str | None) -> str:
    # On one line, or the list would end at the first break.
    return "" if reason is None else f": {' '.join(reason.split())}"


def _cells(name: str, row: Mapping[str, Any]) -> list[list[str]]:
    """A line a protocol."""
    lines = []
    for by in PROTOCOLS:
        scored = row[by]
        if scored is None:  # nothing is ranked
            continue
        compared = [NOTHING, NOTHING, NOTHING]  # of the base
        if "difference" in scored:
            p = [f"{scored[key]:.2g}" for key in ("p", "p_corrected")]
            compared = [_figure(scored["difference"], 1), *p]
        accuracy, retention = (_figure(scored[key], 100) for key in ("accuracy", "retention"))
        lines.append([name, str(len(row["seeds"])), by, accuracy, retention, *compared])
    return lines


def _figure(estimate: Mapping[str, Any], scale: float) -> str:
    """ "71.5 [66.0, 77.0]"."""
    if estimate["value"] is None:
        return NOTHING
    low, high = (scale * end for end in estimate["interval"])
    return f"{scale * estimate['value']:.1f} [{low:.1f}, {high:.1f}]"


def _effects(effects: Sequence[Mapping[str, Any]]) -> list[str]:
    if not effects:
        return ["No value of any axis is done."]
    cells = [
        [each["axis"], each["value"], f"{each['generation']:+.1f}", "yes" if each["is_certain"] else "no"]
        for each in effects
    ]
    return [to_markdown(["axis", "value", "generation, points", "beyond chance"], cells)]


def _flips(found: Mapping[str, Any]) -> list[str]:
    if not found["flips"]:
        return ["No two rows change places."]
    lines = []
    for flip in found["flips"]:
        # All are named, also those that another draw of items would turn round again.
        certain = "" if flip["p_corrected"] < CERTAIN else " (within chance)"
        lines.append(
            f"- {flip['rows'][0]} before {flip['rows'][1]} by ranking ({flip['ranking']:+.1f} points), behind it by "
            f"generation ({flip['generation']:+.1f}); p {flip['p']:.2g}, corrected for {found['pairs']} pairs "
            f"{flip['p_corrected']:.2g}{certain}"
        )
    return ["Pairs that change places:", "\n".join(lines)]


def _shared(ablation: Ablation) -> list[str]:
    if not ablation.shared:
        return ["Nothing: every variant ran alone."]
    cells = [[each.stage, str(len(each.variants)), Path(each.run_once_in).name] for each in ablation.shared]
    return [to_markdown(["run once", "for variants", "in"], cells)]
