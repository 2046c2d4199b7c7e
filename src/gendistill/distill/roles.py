"""Which parameters train, chosen by their role."""

from collections.abc import Sequence

from torch import nn

from gendistill.errors import UserError
from gendistill.models.modeling import describe
from gendistill.names import ROLES, look_up


def set_trainable(student: nn.Module, roles: Sequence[str]) -> dict[str, tuple[int, bool]]:
    """Lets exactly the named roles train; returns the accounting {role: (parameters, trains)}.

    Raises:
        UserError: there is no such role, or it has no parameters in this student (a tied head trains as 'embedding').
    """
    chosen = {part for role in roles for part in look_up(ROLES, role, "role")}
    accounting: dict[str, tuple[int, bool]] = {}
    for name, parameter in student.named_parameters():
        role = describe(name).role  # a ValueError for a tensor that no layer declares: it would train unnoticed
        parameter.requires_grad_(role in chosen)
        accounting[role] = (accounting.get(role, (0, False))[0] + parameter.numel(), role in chosen)
    # `mixer` stands for several roles, and is no mistake in a student that keeps attention everywhere.
    if absent := [role for role in roles if ROLES[role] == (role,) and role not in accounting]:
        raise UserError(
            f"train: {', '.join(absent)}: this student has no such parameters; it has {', '.join(accounting)}"
        )
    return accounting
