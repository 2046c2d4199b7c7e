"""The base of every section of a recipe, and types that several sections share."""

import difflib
from collections.abc import Collection, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
)

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# Told apart by hand, so that an error is about the form that is meant and no other.
ONE, MAPPING = "(one)", "(mapping)"
one_or_mapping = Discriminator(lambda value: MAPPING if isinstance(value, dict) else ONE)


def _as_tuple(value: Any) -> Any:
    return () if value is None else (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]  # one name or several, kept as a tuple


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_one_of(settings: Settings, *names: str) -> None:
    if sum(getattr(settings, name) is not None for name in names) != 1:
        *others, last = (f"'{name}'" for name in names)
        raise ValueError(f"give exactly one of {', '.join(others)} and {last}")


def hint(given: str, known: Sequence[str]) -> str:
    """What to say of a name that is not known: the nearest that is, or all of them."""
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"


def one_of(table: Collection[str], what: str) -> Any:
    """The type of a setting that names an entry of a table, which is looked into when a recipe is read.

    Args:
        what: what the table lists, for the error message ("mixer").
    """

    def check(name: str) -> str:
        if name not in table:
            near = difflib.get_close_matches(name, list(table), n=1)
            meant = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"unknown {what} '{name}'; {meant}Known: {', '.join(table)}")
        return name

    return Annotated[str, AfterValidator(check)]
