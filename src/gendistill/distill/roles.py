"""Which parameters train, said by the part they play."""

from collections.abc import Sequence

from torch import nn

from gendistill.errors import UserError
from gendistill.names import Role

MIXER_ROLES: dict[Role, tuple[str, ...]] = {
    "mixer_qk": ("q_proj", "k_proj"),
    "mixer_value": ("v_proj", "o_proj"),
    "mixer_conv": ("q_conv1d", "k_conv1d", "v_conv1d"),
    "mixer_gate": ("f_a_proj", "f_b_proj", "a_proj", "A_log", "dt_bias", "b_proj", "g_a_proj", "g_b_proj", "o_norm"),
}


def role_of(name: str) -> Role:
    """The role of a student parameter, by its name."""
    parts = name.split(".")
    if "linear_attn" in parts:
        tensor = parts[parts.index("linear_attn") + 1]
        return next(role for role, members in MIXER_ROLES.items() if tensor in members)
    for part, role in {"self_attn": "attention", "mlp": "mlp", "embed_tokens": "embedding", "lm_head": "head"}.items():
        if part in parts:
            return role
    return "norm"


def set_trainable(student: nn.Module, roles: Sequence[Role]) -> dict[Role, tuple[int, bool]]:
    """Lets exactly the named roles train; returns the ledger {role: (parameters, trains)}.

    Raises:
        UserError: a named role has no parameters in this student (a tied head trains as 'embedding').
    """
    chosen = set(roles) | (set(MIXER_ROLES) if "mixer" in roles else set())
    ledger: dict[Role, tuple[int, bool]] = {}
    for name, parameter in student.named_parameters():
        role = role_of(name)
        parameter.requires_grad_(role in chosen)
        ledger[role] = (ledger.get(role, (0, False))[0] + parameter.numel(), role in chosen)
    if absent := [role for role in roles if role != "mixer" and role not in ledger]:
        raise UserError(f"train: {', '.join(absent)}: this student has no such parameters; it has {', '.join(ledger)}")
    return ledger
