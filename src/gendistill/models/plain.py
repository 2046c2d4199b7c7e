"""Modules whose weights are read instead of calling them, which is faster, and when that may not be.

An adapter's layer holds more than its weight, a hook wants to be called, quantised weights are no tensor of numbers:
such modules are called. Weights that accelerate keeps elsewhere until a module is called are fetched before they are
read.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def is_plain(projection: nn.Module) -> bool:
    """Whether a projection is its weight and bias, and nobody watches it."""
    return _is_its_weight(projection) and not hasattr(projection, "_hf_hook")


def _is_its_weight(projection: nn.Module) -> bool:
    if type(projection) is not nn.Linear or type(projection.weight) not in (nn.Parameter, torch.Tensor):
        return False
    if torch.compiler.is_compiling():  # hooks make a layer a module of its own there
        return True
    return not (projection._forward_hooks or projection._forward_pre_hooks)


def joint_projection(x: torch.Tensor, projections: Sequence[nn.Module]) -> torch.Tensor:
    """What the projections make of x [..., hidden], side by side; all of them have a bias, or none."""
    if not all(map(is_plain, projections)):
        return torch.cat([projection(x) for projection in projections], dim=-1)
    # Putting the weights together costs less than putting their outputs, of which there is one a token.
    weight = torch.cat([projection.weight for projection in projections])
    bias = None if projections[0].bias is None else torch.cat([projection.bias for projection in projections])
    return F.linear(x, weight, bias)


def product(x: torch.Tensor, projection: nn.Linear) -> torch.Tensor:
    """What the projection makes of x [..., N] without its bias, which is added later; weights are fetched already."""
    return F.linear(x, projection.weight) if _is_its_weight(projection) else projection(x) - projection.bias


def fetch(modules: Sequence[nn.Module | None]) -> list[nn.Module]:
    """Has accelerate bring the weights of modules that are read and not called; returns those, for `put_back`."""
    fetched = [module for module in modules if module is not None and hasattr(module, "_hf_hook")]
    for module in fetched:
        module._hf_hook.pre_forward(module)
    return fetched


def put_back(modules: Sequence[nn.Module]) -> None:
    """Lets accelerate take the weights away again."""
    for module in modules:
        module._hf_hook.post_forward(module, None)
