"""What is true of a parameter whatever its value. A layer declares its own once, in a table beside it.

Conversion, roles, optimizer, sharding and plan read these tables; `gendistill.models.modeling.describe` finds the row
of a parameter by its name.
"""

from typing import NamedTuple


class Parameter(NamedTuple):
    """A row of such a table.

    Attributes:
        role: of `gendistill.names.ROLES`, by which stages choose what trains and how fast.
        is_new: the teacher has none, so it is initialised; all others are copied.
        of_key_heads: its rows belong to the heads of keys and values, which grouped attention has fewer of.
        stays_float32: whatever the model's dtype, and never decayed by the optimizer.
    """

    role: str
    is_new: bool = False
    of_key_heads: bool = False
    stays_float32: bool = False


def linear(name: str, parameter: Parameter) -> dict[str, Parameter]:
    """Rows of a projection or convolution, whose bias is declared even where a configuration leaves it out."""
    return {f"{name}.weight": parameter, f"{name}.bias": parameter}


def within(path: str, table: dict[str, Parameter]) -> dict[str, Parameter]:
    """A table's rows, named from further up in the model."""
    return {f"{path}.{name}": parameter for name, parameter in table.items()}
