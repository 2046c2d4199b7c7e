"""The variants of an ablation: their settings, checked against the base before anything runs."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gendistill.ablation.file import AblationFile, Overrides, as_written
from gendistill.ablation.result import BASE, JOINED, Control, Variant
from gendistill.compute import compute_to_price
from gendistill.errors import UserError
from gendistill.models.loading import load_config, load_tokenizer
from gendistill.plan.price import Planner
from gendistill.plan.refusal import refusal
from gendistill.recipe.fields import result_settings, settings_key
from gendistill.recipe.loading import Recipe, load_recipe
from gendistill.recipe.stage import Stage
from gendistill.run.checks import check_recipe, check_roles, check_shapes, check_tasks

VARIANTS = "variants"  # the folder of their runs
LONGEST_NAME = 70  # characters of a folder's name, before the seed


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
    # In this order, so that the command line has the last word.
    common = [*as_written(file.settings), *overrides]
    base = load_recipe(file.base, common)
    _check_runs(base)
    # Of the base alone: no variant asks anything else.
    config = check_shapes(base)
    check_tasks(base, config, load_tokenizer(base.teacher, config.vocab_size))
    found, problems = [], []
    for row in _rows(file):
        try:
            changes = row.overrides
            if row.control is not None:  # what it is, then what the file says of it
                changes = CONTROLS[row.control](base) | changes
            planned = [_plan(file, row, common, changes, seed) for seed in file.seeds]
            # Of one seed: what does not fit does not fit any.
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
    made = [planned for row in found for planned in row]
    _check_names([planned.variant.name for planned in made])
    return made


def _check_names(names: Sequence[str]) -> None:
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        # "a-b" of axis "c", say, and "b" of axis "c-a".
        raise UserError(f"two values come to the same name of a folder: {', '.join(doubled)}; give one another name")


def _rows(file: AblationFile) -> Iterator[_Row]:
    # First, so that it is the base that makes what the others share.
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
        if not chosen:  # the base
            continue
        overrides: Overrides = {}
        for axis, value in chosen:
            overrides |= file.axes[axis][value]
        names = (JOINED.join(names) for names in zip(*chosen, strict=True))
        where = ", ".join(f"axes.{axis}.{value}" for axis, value in chosen)
        yield _Row(*names, overrides, where)


def _plan(file: AblationFile, row: _Row, common: Sequence[str], changes: Overrides, seed: int) -> Planned:
    recipe = load_recipe(file.base, [*common, *as_written(changes), f"seed={seed}"])
    name = _folder_name(row.value if row.axis is None else f"{row.axis}-{row.value}", seed)
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


def _folder_name(label: str, seed: int) -> str:
    name = label.replace(JOINED, "-")
    if len(name) > LONGEST_NAME:
        # Of many axes crossed; what is cut off is told apart by its hash.
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return f"{name}-seed{seed}"


def _check_comparable(planned: Planned, base: Recipe, seed: int) -> None:
    """Raises UserError for a variant whose results could not be compared with the base's, or would be the same."""
    recipe = planned.recipe
    if not recipe.evaluated_stages:
        raise UserError("evaluation.stages is empty, and an ablation compares what is evaluated: name a stage there")
    changed = [name for name in ("teacher", "name") if getattr(recipe, name) != getattr(base, name)]
    # Where to evaluate may change; what, and how replies are sampled, may not.
    asked = [result_settings(each.evaluation) | {"stages": None} for each in (recipe, base)]
    changed += [f"evaluation.{key}" for key in asked[0] if asked[0][key] != asked[1].get(key)]
    # Its value is gone by now: the ablation's own seeds come last.
    changed += [name for name in planned.variant.overrides if name == "seed"]
    if changed:
        raise UserError(
            f"changes {', '.join(changed)}: results of other teachers, seeds or items are not comparable with the "
            "base's; make that an ablation of its own"
        )
    # A value that is the base's own, or changes speed alone, would be a second row of the same figures.
    of_base = settings_key(base.model_copy(update={"seed": seed}))
    if planned.variant.axis is not None and settings_key(recipe) == of_base:
        raise UserError("is what the base has already, whose row is in every table; leave it out")


def _check_runs(recipe: Recipe) -> None:
    """Raises UserError for a recipe that `gendistill run` would refuse: its settings, its files, its memory."""
    config = check_recipe(recipe)
    compute = compute_to_price(recipe)
    planner = Planner(load_config(recipe.teacher), config, compute)
    check_roles(recipe, planner)
    device, memory = compute.memory()
    if memory is None:  # the device is not here: on a cluster, say, jobs run elsewhere
        return
    refused = (refusal(name, stage, planner, device, memory) for name, stage in recipe.stages.items())
    if reasons := [reason for reason in refused if reason is not None]:
        raise UserError("\n".join(reasons))


def _window(base: Recipe) -> Overrides:
    """The layers that lose their attention see a window of the text, with the teacher's weights; nothing is trained."""
    # Exceptions go, which would leave a mixer untrained, and so does what only a recurrence has; of the base's stages
    # none is left to be evaluated.
    student = {"student.mixer": "window", "student.mixer_in_layer": {}, "student.log_decay_bound": None}
    return student | {"stages": {}, "evaluation.stages": None}


def _teacher(base: Recipe) -> Overrides:
    return {}


def _trained_teacher(base: Recipe) -> Overrides:
    """Every layer keeps its attention, and what the student learns replies from is learnt by likelihood.

    From itself a teacher has nothing to learn: the divergence from its own distributions is zero.
    """
    learns = {name: stage for name, stage in base.stages.items() if stage.loss_on == "completion"}
    if not learns:
        raise UserError("controls.trained_teacher: the base has no stage with loss_on: completion to train it in")
    # Of the teacher's own configuration: the base may name no layer at all.
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
    # Attention takes the mixers' place, and their rate.
    if isinstance(rates, dict):
        others = {role: rate for role, rate in rates.items() if not role.startswith("mixer")}
        rates = {"attention": rates.get("mixer") or max(rates.values())} | others
    roles = ["attention", *(role for role in stage.train if role != "attention" and not role.startswith("mixer"))]
    # What goes with divergences, with the student's own replies or with windows does not go with likelihood.
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


def last_evaluated(recipe: Recipe) -> str:
    """The stage whose student is a run's result: the last one that is evaluated."""
    # They may be listed in any order.
    return max(recipe.evaluated_stages, key=recipe.all_stages.index)
