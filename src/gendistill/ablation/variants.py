"""The variants of an ablation: their settings, checked against the base before anything runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gendistill.ablation.file import AblationFile, Overrides, as_written
from gendistill.ablation.result import BASE, JOINED, Control, Variant
from gendistill.compute import compute_to_price
from gendistill.errors import UserError
from gendistill.models.loading import load_config
from gendistill.plan.price import Planner
from gendistill.recipe.fields import result_settings, settings_key
from gendistill.recipe.loading import Recipe, load_recipe
from gendistill.recipe.stage import Stage
from gendistill.run.checks import check_recipe, check_roles

VARIANTS = "variants"  # the folder of their runs


@dataclass(frozen=True)
class Planned:
    """A variant, and the recipe that it comes to."""

    variant: Variant
    recipe: Recipe


@dataclass(frozen=True)
class _Row:
    """A variant of any seed, as the file has it."""

    axis: str | None
    value: str
    overrides: Overrides
    where: str  # in the file, for errors
    control: Control | None = None


def make_variants(file: AblationFile, overrides: Sequence[str] = ()) -> list[Planned]:
    """All variants in the order of the table, the base's first; every recipe loaded and checked.

    Args:
        overrides: "dotted.key=value", of all variants, behind the file's own settings.

    Raises:
        UserError: the base cannot be run, or values do not fit it: all of these are named.
    """
    common = [*as_written(file.settings), *overrides]
    base = load_recipe(file.base, common)
    _check_runs(base)
    found, problems = [], []
    for row in _rows(file):
        try:
            changes = row.overrides
            if row.control is not None:  # what it is, then what the file says of it
                changes = CONTROLS[row.control](base) | changes
            planned = [_plan(file, row, common, changes, seed) for seed in file.seeds]
            _check_comparable(planned[0], base, file.seeds[0])
            if row.control != "teacher":  # it runs nothing
                _check_runs(planned[0].recipe)
        except UserError as error:
            problems.append(f"  {row.where}: {error}")
            continue
        found.append(planned)
    if problems:
        # All of them: each would otherwise be found hours after the one before.
        raise UserError(f"{len(problems)} value(s) do not fit {file.base}\n" + "\n".join(problems))
    # Seed by seed within a row, as the table shows them.
    return [planned for row in found for planned in row]


def _rows(file: AblationFile) -> Iterator[_Row]:
    yield _Row(None, BASE, {}, "base")
    if file.crossed:
        yield from _crossed(file)
    else:
        for axis, values in file.axes.items():
            for value, overrides in values.items():
                yield _Row(axis, value, overrides, f"axes.{axis}.{value}")
    for control, overrides in file.controls.items():
        yield _Row(None, control, overrides or {}, f"controls.{control}", control)


def _crossed(file: AblationFile) -> Iterator[_Row]:
    """Every choice of a value or none from each axis, but that of none at all, which is the base."""
    axes = [[(axis, None), *((axis, value) for value in values)] for axis, values in file.axes.items()]
    for choice in product(*axes):
        chosen = [(axis, value) for axis, value in choice if value is not None]
        if not chosen:
            continue
        overrides: Overrides = {}
        for axis, value in chosen:
            overrides |= file.axes[axis][value]
        names = (JOINED.join(names) for names in zip(*chosen, strict=True))
        where = ", ".join(f"axes.{axis}.{value}" for axis, value in chosen)
        yield _Row(*names, overrides, where)


def _plan(file: AblationFile, row: _Row, common: Sequence[str], changes: Overrides, seed: int) -> Planned:
    recipe = load_recipe(file.base, [*common, *as_written(changes), f"seed={seed}"])
    label = row.value if row.axis is None else f"{row.axis}-{row.value}"
    name = f"{label}-seed{seed}".replace(JOINED, "-")
    # The teacher is evaluated by every run, the base's first of all.
    run = f"{BASE}-seed{seed}" if row.control == "teacher" else name
    variant = Variant(
        name=name,
        axis=row.axis,
        value=row.value,
        seed=seed,
        overrides=changes,
        folder=f"{VARIANTS}/{run}",
        control=row.control,
    )
    return Planned(variant, recipe)


def _check_comparable(planned: Planned, base: Recipe, seed: int) -> None:
    """Raises UserError for a variant whose results could not be compared with the base's, or would be the same."""
    recipe = planned.recipe
    changed = [name for name in ("teacher", "name") if getattr(recipe, name) != getattr(base, name)]
    # Where to evaluate may change; what, and how replies are sampled, may not.
    asked = [result_settings(each.evaluation) | {"stages": None} for each in (recipe, base)]
    changed += [f"evaluation.{key}" for key in asked[0] if asked[0][key] != asked[1].get(key)]
    changed += ["seed"] if recipe.seed != seed else []
    if changed:
        raise UserError(
            f"changes {', '.join(changed)}: results of other teachers, seeds or items are not comparable with the "
            "base's; make that an ablation of its own"
        )
    if planned.variant.axis is not None and settings_key(recipe) == settings_key(
        base.model_copy(update={"seed": seed})
    ):
        raise UserError("is what the base has already, whose row is in every table; leave it out")


def _check_runs(recipe: Recipe) -> None:
    """Raises UserError for a recipe that `gendistill run` would refuse by its settings."""
    config = check_recipe(recipe)
    check_roles(recipe, Planner(load_config(recipe.teacher), config, compute_to_price(recipe)))


def _window(base: Recipe) -> Overrides:
    """The layers that lose their attention see a window of the text, with the teacher's weights; nothing is trained."""
    return {"student.mixer": "window", "student.mixer_in_layer": {}, "stages": {}, "evaluation.stages": None}


def _teacher(base: Recipe) -> Overrides:
    return {}


def _trained_teacher(base: Recipe) -> Overrides:
    """Every layer keeps its attention, and what the student learns replies from is learnt by likelihood.

    From itself a teacher has nothing to learn: the divergence from its own distributions is zero.
    """
    learns = {name: stage for name, stage in base.stages.items() if stage.loss_on == "completion"}
    if not learns:
        raise UserError("controls.trained_teacher: the base has no stage with loss_on: completion to train it in")
    layers = load_config(base.teacher).get_text_config().num_hidden_layers
    return {
        "student.keep_attention": list(range(layers)),
        "student.mixer_in_layer": {},
        "stages": {name: _by_likelihood(stage) for name, stage in learns.items()},
        "evaluation.stages": [list(learns)[-1]],
    }


def _by_likelihood(stage: Stage) -> dict[str, Any]:
    """The stage on the replies of the data, of a model that has attention where the student has mixers."""
    rates = stage.learning_rate
    if isinstance(rates, dict):
        others = {role: rate for role, rate in rates.items() if not role.startswith("mixer")}
        rates = {"attention": rates.get("mixer") or max(rates.values())} | others
    roles = ["attention", *(role for role in stage.train if role != "attention" and not role.startswith("mixer"))]
    return stage.model_dump(mode="json") | {
        "objective": "cross_entropy",
        "temperature": 1.0,
        "train": roles,
        "data": stage.mixture,
        "learning_rate": rates,
        "window_dropout": 0.0,
        "expected_loss": None,  # of another objective
    }


CONTROLS = {"window": _window, "teacher": _teacher, "trained_teacher": _trained_teacher}


def stages_of(recipe: Recipe) -> Sequence[str]:
    """Of a run, the conversion first."""
    return ["conversion", *recipe.stages]


def last_evaluated(recipe: Recipe) -> str:
    """The stage whose student is a run's result: the last one that is evaluated."""
    order = stages_of(recipe)
    return max(recipe.evaluation.stages or order, key=order.index)
