"""What an ablation will cost: each variant by `plan`, less what another runs for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gendistill.ablation.result import SharedStage
from gendistill.ablation.sharing import Sharing
from gendistill.ablation.variants import Planned
from gendistill.compute import compute_to_price
from gendistill.models.loading import load_config
from gendistill.plan.price import Planner
from gendistill.plan.refusal import gib
from gendistill.recipe.loading import Recipe
from gendistill.recipe.stage import Stage
from gendistill.report.evaluations import TEACHER
from gendistill.run.checks import check_shapes
from gendistill.run.probe import Probe

LONGEST = 120  # characters of what a variant changes


@dataclass(frozen=True)
class RowPrice:
    """One variant.

    Attributes:
        tokens: that it trains on itself, in stages that nobody runs for it.
        hours: of its own training; None where nothing was measured.
    """

    planned: Planned
    tokens: int
    hours: float | None

    def describe(self) -> str:
        """One line."""
        variant = self.planned.variant
        changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in variant.overrides.items()) or "the base"
        # A control changes whole sections.
        changes = changes if len(changes) <= LONGEST else changes[:LONGEST] + "..."
        hours = "" if self.hours is None else f", {self.hours:.3g} hours"
        return f"{variant.name}: {changes}; {self.tokens:,} tokens{hours}"


@dataclass(frozen=True)
class AblationPrice:
    """All variants, and what they share."""

    rows: list[RowPrice]
    shared: list[SharedStage]
    disk_bytes: int  # if nothing were shared

    def notes(self) -> list[str]:
        tokens = sum(row.tokens for row in self.rows)
        alone = sum(stage.whole_tokens for row in self.rows for stage in row.planned.recipe.stages.values())
        # Of n that need a stage, n - 1 do not run it.
        spared = sum(len(stage.variants) - 1 for stage in self.shared)
        lines = [
            f"{len(self.shared)} stages are run once for several variants, which spares {spared} runs of them: "
            f"{tokens:,} tokens are trained on in place of {alone:,}",
            f"disk: at most {gib(self.disk_bytes)} GiB; shared stages are linked, not copied",
        ]
        hours = [row.hours for row in self.rows]
        # A sum over some variants only would be taken for all.
        if None not in hours:
            lines.append(
                f"training in all: {sum(hours):.3g} hours on one device, from a probe of the base and each variant's "
                "arithmetic; without preparing data, conversion and evaluation"
            )
        return lines


def price(variants: Sequence[Planned], probes: Mapping[str, Probe]) -> AblationPrice:
    """Prices variants that have not begun.

    Args:
        probes: of the base's stages, by name; empty if nothing was measured.
    """
    runs = [each for each in variants if each.variant.control != TEACHER]
    shared = Sharing(runs, {}).shared()
    planners = {each.variant.name: _planner(each.recipe) for each in runs}
    base, base_planner = runs[0].recipe, planners[runs[0].variant.name]
    rows = []
    for each in runs:
        name = each.variant.name
        taken = [s.stage for s in shared if name in s.variants and s.run_once_in != each.variant.folder]
        own = {stage: settings for stage, settings in each.recipe.stages.items() if stage not in taken}
        hours = None
        if probes and own.keys() <= probes.keys():
            # By the base's own rate: to measure every variant's would take longer than many of them.
            hours = sum(
                probes[stage].hours(settings)
                * _work(planners[name], settings)
                / _work(base_planner, base.stages[stage])
                for stage, settings in own.items()
            )
        rows.append(RowPrice(each, sum(stage.whole_tokens for stage in own.values()), hours))
    # Of what variants write themselves; how much of it is shared depends on who fails.
    disk = sum(planners[each.variant.name].whole_disk(each.recipe) for each in runs)
    return AblationPrice(rows, shared, disk)


def _planner(recipe: Recipe) -> Planner:
    return Planner(load_config(recipe.teacher), check_shapes(recipe), compute_to_price(recipe))


def _work(planner: Planner, stage: Stage) -> float:
    """FLOPs of one packed sequence: a probe's time is taken to grow with them."""
    return planner.price(stage).flops_per_token * stage.sequence_length
