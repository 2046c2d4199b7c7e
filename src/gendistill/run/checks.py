"""What can be checked of a recipe before the first computation."""

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedTokenizerBase

import gendistill
from gendistill import distributed
from gendistill.data.sources import read_documents
from gendistill.errors import UserError
from gendistill.evaluate.harness import check_harness
from gendistill.evaluate.run import check_questions
from gendistill.models.configuration import GendistillConfig
from gendistill.models.families import student_config
from gendistill.models.loading import load_config
from gendistill.models.positions import depends_on_length, most_positions
from gendistill.placement.resolve import placed
from gendistill.plan.price import Planner
from gendistill.plan.refusal import gib
from gendistill.recipe.loading import Recipe

PACKAGE = Path(gendistill.__file__).parent


def check_same(recipe: Recipe) -> None:
    """Refuses processes that would not compute the same: they would wait for each other, or average what differs.

    Raises:
        UserError: the processes have another recipe, other overrides, or another version of the code or of a library.
    """
    if distributed.processes() == 1:
        return
    code = hashlib.sha256()
    # Hosts with folders of their own may have been updated one after the other.
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.read_bytes())
    versions = {name: version(name) for name in ("torch", "transformers")}
    distributed.check_equal(
        {"recipe or overrides": recipe.model_dump_json(), "gendistill's code": code.hexdigest()} | versions
    )


def check_recipe(recipe: Recipe, placement: Path | None = None) -> GendistillConfig:
    """Checks a recipe against its teacher and its files; returns the student's configuration.

    Args:
        placement: see `check_shapes`.

    Raises:
        UserError: see `check_shapes`; or a missing file.
    """
    config = check_shapes(recipe, placement)
    # A mixture that nothing uses may name files that are not here.
    used = {recipe.conversion.data} | {stage.mixture for stage in recipe.stages.values()}
    for mixture in used:
        for source in recipe.data[mixture]:
            if source.synthesis is None:  # else the teacher is yet to write it
                next(read_documents(source, recipe.seed))  # one record shows a missing file or field
    return config


def check_shapes(recipe: Recipe, placement: Path | None = None) -> GendistillConfig:
    """Checks a recipe against its teacher's configuration; returns the student's.

    Args:
        placement: the run's own result, if layers are not listed; while it is not there, they stand evenly spread.

    Raises:
        UserError: unsupported family, layer out of range, sequence longer than the model allows, windows dropped that
            are not there, replies that cannot be written; or see `placement.resolve.placed`.
    """
    teacher = load_config(recipe.teacher)
    config = student_config(teacher, **placed(recipe, teacher, placement).student.model_dump())
    _check_dropped_windows(recipe, config)
    _check_writing(recipe, config)
    lengths = {"conversion": recipe.conversion.sequence_length}
    lengths |= {f"stages.{name}": stage.sequence_length for name, stage in recipe.stages.items()}
    limit = most_positions(config)  # beyond it a teacher with rotary positions answers, but badly
    for name, length in lengths.items():
        if length > limit:
            raise UserError(f"{name}.sequence_length is {length}; the teacher's positions end at {limit}")
    return config


def check_roles(recipe: Recipe, planner: Planner) -> None:
    """Raises UserError for a stage that trains what its student does not have."""
    for name, stage in recipe.stages.items():
        try:
            planner.parameters(stage)
        except UserError as error:
            raise UserError(f"stages.{name}: {error}") from None


def _check_dropped_windows(recipe: Recipe, config: GendistillConfig) -> None:
    """Raises UserError for a stage that drops windows where none stands beside a recurrence."""
    if config.has_window_beside:
        return
    for name, stage in recipe.stages.items():
        if stage.window_dropout:
            raise UserError(
                f"stages.{name}: window_dropout is {stage.window_dropout}, but this student has no window beside a "
                "recurrence; give student.window with a linear mixer, or leave window_dropout out"
            )


def _check_writing(recipe: Recipe, config: GendistillConfig) -> None:
    """Raises UserError for an on-policy stage of a student that the decoding loop cannot run."""
    if not depends_on_length(config):
        return
    for name, stage in recipe.stages.items():
        if stage.on_policy is not None:
            raise UserError(
                f"stages.{name}: with RoPE of type {config.rope_parameters['rope_type']} a position means something "
                "else in a longer text, and replies cannot be written token by token in batches; give the stage data "
                "that are not on_policy, or take a teacher with another RoPE"
            )


def check_tasks(recipe: Recipe, config: GendistillConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Reads every evaluation task, so that a mistake in one shows before hours of training.

    Raises:
        UserError: see `check_questions` and `check_harness`.
    """
    check_questions(config, tokenizer, recipe.evaluation, recipe.seed)
    if recipe.evaluation.harness is not None:
        check_harness(recipe.evaluation.harness)


def check_disk(root: Path, needed: int) -> None:
    """Refuses a run that would fill the disk before its end.

    Args:
        needed: bytes that the whole run takes; what lies in its folder already counts as taken.
    """
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) if root.is_dir() else 0
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed - held > free:
        raise UserError(
            f"{root}: the run needs {gib(needed)} GiB of disk, {gib(held)} are written and {gib(free)} are free. Free "
            "some space, or give an --output on another disk."
        )
