"""What is kept of a model between calls: weights put together, caches, graphs. It goes when the model goes."""

from typing import Any

from gendistill.models.modeling import GendistillForCausalLM

_NAME = "_kept_for_inference"


class _Kept(dict):
    """Belongs to one model: a copy of the model begins with none of it."""

    def __deepcopy__(self, memo: dict) -> "_Kept":
        return _Kept()

    def __reduce__(self):
        return _Kept, ()


def release(student: GendistillForCausalLM) -> None:
    """Gives back the memory of all that is kept."""
    kept(student).clear()


def kept(student: GendistillForCausalLM) -> dict[str, Any]:
    """The model's own dictionary."""
    # An attribute and no weak dictionary: what is kept refers to the model, which would then never go.
    return student.__dict__.setdefault(_NAME, _Kept())
