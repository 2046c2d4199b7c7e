"""The page of an ablation: its variants beside those of the base, axis by axis, and the controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

from gendistill.ablation.result import BASE, Ablation, Variant, read_ablation
from gendistill.console import Console
from gendistill.errors import UserError
from gendistill.report.evaluations import TEACHER
from gendistill.report.page.evidence import Compared, judge
from gendistill.report.page.make import Material, sections_of
from gendistill.report.page.parts import Column, Note, Page, Part, Table, count, decimals
from gendistill.report.page.reading import Records, RunRecords, check_comparable, read_run
from gendistill.report.page.rows import Rows, headline

CONTROLS = {
    "window": "untrained window",
    "teacher": "teacher",
    "trained_teacher": "teacher trained on the same data",
}

SETTING = 100  # characters of a changed setting in the table of variants


def page_of_ablation(folder: Path, console: Console) -> Page:
    """The page of what is done of an ablation; what is not, and why, stands in its first table.

    Raises:
        UserError: the base is not done yet; or see `read_ablation`, `read_run`, `check_comparable`.
    """
    ablation = read_ablation(folder)
    # The teacher itself is what all others are measured by: a row of its own would say 100 %.
    done = [each for each in ablation.variants if each.state == "done" and each.control != "teacher"]
    if not any(each.row == BASE for each in done):
        raise UserError(
            f"{folder}: the base, which all variants are compared with, is not done yet; 'gendistill ablate' resumes it"
        )
    # Each by itself: seconds of reading in all, of which a line says how far it is.
    runs = {}
    for number, variant in enumerate(done, 1):
        runs[variant.name] = read_run(folder / variant.folder, variant.name)
        console.print(f"{number} of {len(done)} read: {variant.name}")
    check_comparable(list(runs.values()), by_seed=True)
    rows = Rows(_records(done, runs), BASE)
    # A row of the plot for all seeds of a variant.
    controls = {each.row: _control(each) for each in done}
    headed = [rows.row(name, control) for name, control in controls.items()]
    lead, numbers = headline(headed)
    material = Material(
        runs=list(runs.values()),
        rows=rows,
        headed=headed,
        judged=[judge(_compared(each, runs[each.name])) for each in done],
        results=[each.name for each in done if each.control is None],
        groups=_groups(done, runs),
        first={"Variants": _variant_parts(ablation)},
    )
    return Page(f"Ablation {ablation.name}", lead, numbers, sections_of(material))


def _records(done: Sequence[Variant], runs: Mapping[str, RunRecords]) -> dict[str, dict[int, Records]]:
    """By row and seed, as the ablation's own summary compares them: the teacher stands behind the base."""
    # Of the base alone the teacher is taken: all variants of a seed have one, and were asked the same.
    rows: dict[str, dict[int, Records]] = {}
    for each in done:
        rows.setdefault(each.row, {})[each.seed] = runs[each.name].result
        if each.row == BASE:
            rows.setdefault(TEACHER, {})[each.seed] = runs[each.name].teacher
    return rows


def _control(variant: Variant) -> str | None:
    return None if variant.control is None else CONTROLS[variant.control]


def _compared(variant: Variant, run: RunRecords) -> Compared:
    return Compared(variant.name, run.teacher, run.result, variant.seed, _control(variant))


def _groups(done: Sequence[Variant], runs: Mapping[str, RunRecords]) -> dict[str, list[RunRecords]]:
    """By axis: the variants on it behind those of the base; controls by themselves."""
    # Of every seed, so that a curve lies beside that of its own seed.
    bases = [runs[each.name] for each in done if each.axis is None and each.control is None]
    groups: dict[str, list[RunRecords]] = {}
    for each in done:
        if each.axis is not None:
            groups.setdefault(each.axis, list(bases)).append(runs[each.name])
    return groups or {"": bases}  # only the base is done yet


def _variant_parts(ablation: Ablation) -> list[Part]:
    """What was tried, how far it is, and which stages were run once for several."""
    states = [each.state for each in ablation.variants]
    lead = f"{states.count('done')} of {len(states)} variants are done, with {len(ablation.seeds)} "
    lead += ("seed" if len(ablation.seeds) == 1 else "seeds") + f" each, on the axes {', '.join(ablation.axes)}."
    # A variant that failed is a finding: what does not train, or where it stopped.
    lost = [each for each in ablation.variants if each.state in ("failed", "diverged")]
    warnings = [
        Note(f"{each.name} {each.state}: {each.reason or 'no reason is recorded'}", warns=True) for each in lost
    ]
    columns = [
        Column("variant", "variant"),
        Column("axis", "axis"),
        Column("value", "value"),
        Column("seed", "seed", count),
        Column("state", "state"),
        Column("tokens", "tokens", count),
        Column("seconds", "seconds", decimals(1)),
        Column("overrides", "settings changed"),
    ]
    rows = []
    for each in ablation.variants:
        # A control may have stages of its own; whole settings stand among the recipes.
        changed = "; ".join(
            shorten(f"{name}={value}", SETTING, placeholder=" …") for name, value in each.overrides.items()
        )
        # Of a variant of the base it is empty: it changes nothing.
        axis = each.axis if each.control is None else "control"
        rows.append([each.name, axis, each.value, each.seed, each.state, each.tokens, each.seconds, changed or None])
    note = "Seconds: of a variant's processes, from start to end. Controls have no axis."
    return [Note(lead), *warnings, Table("variants", "Variants", columns, rows, note), *_shared(ablation)]


def _shared(ablation: Ablation) -> list[Table]:
    columns = [
        Column("stage", "stage"),
        Column("run_once_in", "run once in"),
        Column("used_by", "variants that use it", count),
    ]
    rows = [[each.stage, each.run_once_in, len(each.variants)] for each in ablation.shared]
    return [Table("shared", "Stages that variants share", columns, rows)] if rows else []
