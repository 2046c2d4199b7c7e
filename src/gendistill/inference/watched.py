"""What a student is made of, looked at again before every prefill."""

from itertools import chain
from operator import attrgetter

import torch
from torch import nn

from gendistill.models.modeling import GendistillForCausalLM

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
OF_ACCELERATE = "_hf_hook"  # it puts a function in the place of `forward`


class Watched:
    """The modules of a student, who wants to be told when they are called, and their weights.

    All is read off the dictionaries that modules have of their own: of a model of 28 layers in half the time of a walk
    through its modules, for which the GPU would wait at every short prompt.
    """

    def __init__(self, student: GendistillForCausalLM):
        modules = list(student.modules())
        self.config = student.config
        self.attributes = list(map(vars, modules))
        self.children = [module._modules for module in modules]
        self.hooks = [getattr(module, name) for module in modules for name in HOOKS]
        self.parameters = [module._parameters for module in modules]
        parameters = list(self._parameters())
        self.held = modules, parameters  # so that no id is used again meanwhile
        # Quantised ones have no address. Tensors of inference mode cannot change, and have no version.
        self.weights = [weight for weight in parameters if type(weight) is nn.Parameter]
        self.changeable = [weight for weight in self.weights if not weight.is_inference()]

    def state(self) -> list[int]:
        """Another list once a module, a hook or a weight is another one, or a weight has changed in place."""
        return [
            self.config.window_is_on,
            *map(len, self.children),
            *map(id, chain.from_iterable(map(dict.values, self.children))),
            *map(len, self.hooks),
            *(OF_ACCELERATE in own for own in self.attributes),
            *map(id, self._parameters()),
            *map(torch.Tensor.data_ptr, self.weights),
            *map(attrgetter("_version"), self.changeable),
        ]

    def _parameters(self) -> chain:
        """Of all modules, None for those that a module does without."""
        return chain.from_iterable(map(dict.values, self.parameters))


def is_watched(module: nn.Module) -> bool:
    """Whether somebody wants to be told when the module is called."""
    return OF_ACCELERATE in vars(module) or any(getattr(module, name) for name in HOOKS)
