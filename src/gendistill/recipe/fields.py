"""The base of every section of a recipe, marks on settings, and types that several sections share."""

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ValidationInfo,
)

from gendistill.files import located

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# Told apart by hand, so that an error is about the alternative that is meant and no other.
ONE, MAPPING = "(one)", "(mapping)"
one_or_mapping = Discriminator(lambda value: MAPPING if isinstance(value, dict | BaseModel) else ONE)


def _as_tuple(value: Any) -> Any:
    # What is no text is left for pydantic to judge.
    return () if value is None else (value,) if isinstance(value, str) else value


class _OneOrSeveral:
    """Tells the JSON schema what `_as_tuple` takes besides a list."""

    def __get_pydantic_json_schema__(self, core_schema, handler) -> dict[str, Any]:
        several = handler(core_schema)
        return {"anyOf": [several, several["items"], {"type": "null"}]}


# One name or several, kept as a tuple.
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), _OneOrSeveral()]
# One text or several at which a reply ends; an empty one would end it before its first token.
StopTexts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple), _OneOrSeveral()]


def _names_files(name: str) -> str:
    # No separator and no dot in front, so that it cannot lead out of its folder; no ending of unfinished files.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name.endswith(".partial"):
        raise ValueError(
            f"{name!r} names files, so it may hold letters, digits, '_', '-' and '.' only, 100 at most, not begin with "
            "'.' or '-', and not end in '.partial'"
        )
    return name


FileName = Annotated[str, AfterValidator(_names_files)]  # what names a file or folder of the run


def recipe_folder(info: ValidationInfo) -> Path | None:
    """The folder of the recipe that is being checked; None for settings that come from no file."""
    return (info.context or {}).get("folder")


def _from_recipe_folder(path: str, info: ValidationInfo) -> str:
    folder = recipe_folder(info)
    return path if folder is None else located(path, folder)


# A path as written in a recipe; relative to the recipe's folder, and absolute once the recipe is loaded.
LocalPath = Annotated[str, AfterValidator(_from_recipe_folder)]


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after loading."""

    # A misspelt setting that is passed over would silently leave the default in force.

    model_config = ConfigDict(extra="forbid", frozen=True)


class _KeepsResults:
    """The type of the mark below; a class of its own, so that no other annotation can equal it."""


# Mark of a setting that changes speed, memory or safety and no number, so that a rerun may change it, set on the whole
# type: `micro_batch: Annotated[PositiveInt, KEEPS_RESULTS]`. pydantic passes over annotations that it does not know. A
# setting without the mark counts as one that changes results: forgetting it refuses too much, never too little.
KEEPS_RESULTS = _KeepsResults()


def drop_marked(values: Any, settings: Any) -> Any:
    """`values` without the settings that are marked KEEPS_RESULTS, at any depth.

    Args:
        values: JSON values, of `settings` or of an earlier version of them.
        settings: the section (or mapping or list of sections) whose classes say what is marked; values that it lacks
            stay.
    """
    if isinstance(settings, BaseModel) and isinstance(values, Mapping):
        fields = type(settings).model_fields
        marked = {name for name, field in fields.items() if KEEPS_RESULTS in field.metadata}
        return {
            name: drop_marked(value, getattr(settings, name, None))
            for name, value in values.items()
            if name not in marked
        }
    if isinstance(settings, Mapping) and isinstance(values, Mapping):
        return {key: drop_marked(value, settings.get(key)) for key, value in values.items()}
    if isinstance(settings, list | tuple) and isinstance(values, list) and len(settings) == len(values):
        return [drop_marked(value, section) for value, section in zip(values, settings, strict=True)]
    return values  # a plain value, or one that has no counterpart


def result_settings(settings: Settings) -> dict[str, Any]:
    """The settings that results depend on, as JSON values."""
    return drop_marked(settings.model_dump(mode="json"), settings)


def settings_key(settings: Settings) -> str:
    """Hash of the settings that results depend on."""
    return hashlib.sha256(json.dumps(result_settings(settings), sort_keys=True).encode()).hexdigest()


def check_one_of(settings: Settings, *names: str) -> None:
    """Raises ValueError unless exactly one of the named settings is given."""
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

    return Annotated[str, AfterValidator(check), _Known(table)]


class _Known:
    """Tells the JSON schema which names a table has, when it is asked for."""

    def __init__(self, table: Collection[str]):
        self.table = table

    def __get_pydantic_json_schema__(self, core_schema, handler) -> dict[str, Any]:
        return handler(core_schema) | {"enum": list(self.table)}
