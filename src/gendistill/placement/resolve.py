"""What a recipe's `keep_attention` comes to: a list of layers."""

from pathlib import Path

from transformers import PreTrainedConfig

from gendistill.errors import UserError
from gendistill.models.positions import most_positions
from gendistill.placement.result import read_result
from gendistill.placement.search import fixed
from gendistill.recipe.loading import Recipe
from gendistill.recipe.placement import FromFile, Measured


def placed(recipe: Recipe, teacher: PreTrainedConfig, result: Path | None = None) -> Recipe:
    """The recipe with a list of layers in `student.keep_attention`, for whoever reads it.

    Layers that are yet to be chosen stand evenly spread: what a student costs depends on their number alone.

    Args:
        result: of the run's own placement, if the run has come so far.

    Raises:
        UserError: the result cannot be read, is of a model with another number of layers, or is no longer that of the
            file which the recipe names; or see `check_placement`.
    """
    keep = recipe.student.keep_attention
    if isinstance(keep, list):
        return recipe
    check_placement(recipe, teacher)
    of = teacher.num_hidden_layers
    file = Path(keep.path) if isinstance(keep, FromFile) else None
    if result is not None and result.is_file():
        layers = _layers(result, of)
        # A run resumes with what it was begun with; that the file says something else now must not pass unseen.
        if file is not None and file.is_file() and _layers(file, of) != layers:
            raise UserError(
                f"keep_attention: {file} says {_layers(file, of)} now, and this run was begun with {layers}. Give "
                "another --output, or restore the file."
            )
    elif file is not None:
        layers = _layers(file, of)
    else:
        layers = fixed("uniform", keep.layers, of)
    student = recipe.student.model_copy(update={"keep_attention": layers})
    return recipe.model_copy(update={"student": student})


def check_placement(recipe: Recipe, teacher: PreTrainedConfig) -> None:
    """Raises UserError if a placement asks for more than its teacher has: layers, or positions."""
    keep = recipe.student.keep_attention
    if isinstance(keep, FromFile):
        return
    fixed("uniform", keep.layers, teacher.num_hidden_layers)
    if isinstance(keep, Measured):
        limit = most_positions(teacher)
        for name in ("length", "window"):
            if getattr(keep, name) > limit:
                raise UserError(
                    f"keep_attention.{name} is {getattr(keep, name)}; the teacher's positions end at {limit}"
                )


def _layers(path: Path, of: int) -> list[int]:
    result = read_result(path)
    if result["teacher"]["layers"] != of:
        raise UserError(
            f"{path}: this placement is of another teacher ({result['teacher']['name']}), with "
            f"{result['teacher']['layers']} layers; this one has {of}. Place its own with `gendistill place`."
        )
    return result["layers"]
