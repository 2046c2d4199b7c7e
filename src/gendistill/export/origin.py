"""Where a student comes from: what its own folder and the run around it say, without paths of this machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gendistill.errors import UserError
from gendistill.files import read_json
from gendistill.models.loading import model_folder

CONVERSION_REPORT, STAGE_REPORT = "conversion_report.json", "stage_report.json"
RECIPE, SCORES = "recipe.yaml", "scores.json"


@dataclass(frozen=True)
class Licence:
    """What a teacher's folder states.

    Attributes:
        fields: of its model card's metadata: license, license_name, license_link; those that are there.
        text: the licence itself, where a file of it lies there.
    """

    fields: dict[str, str]
    text: str | None


@dataclass(frozen=True)
class Origin:
    """What is known of a student; None, or empty, where it is not.

    Attributes:
        stage: whose student it is: "conversion", or the name of a stage of the recipe.
        teacher: as the recipe names it; of a folder only its name.
        is_on_hub: whether that is the id of a model on the hub.
        reports: conversion_report.json, and of a trained student stage_report.json, by file name.
        recipe: the run's, as resolved.
        scores: scores.json of the run.
    """

    stage: str | None
    teacher: str | None
    is_on_hub: bool
    licence: Licence
    reports: dict[str, dict[str, Any]]
    recipe: dict[str, Any] | None
    scores: dict[str, Any] | None

    def files(self) -> dict[str, str]:
        """Text by file name, to lie beside the weights."""
        files = {name: json.dumps(report, indent=1) + "\n" for name, report in self.reports.items()}
        if self.recipe is not None:
            files[RECIPE] = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True)
        if self.scores is not None:
            files[SCORES] = json.dumps(self.scores, indent=1) + "\n"
        return files


def origin_of(student: Path) -> Origin:
    """Reads it off the student's folder and the run folder that it lies in, if it lies in one.

    Raises:
        UserError: a file of them is damaged.
    """
    run = student.parent.parent  # runs/NAME/4-STAGE/student
    in_run = (run / RECIPE).is_file()
    beside = run if in_run else student  # an exported folder has them among its own files
    conversion = run / "0-conversion" / "student" if in_run else student
    reports = {
        name: read_json(folder / name)
        for name, folder in ((CONVERSION_REPORT, conversion), (STAGE_REPORT, student))
        if (folder / name).is_file()
    }
    recipe = _read_recipe(beside / RECIPE) if (beside / RECIPE).is_file() else None
    scores = read_json(beside / SCORES) if (beside / SCORES).is_file() else None
    # The conversion report names it where a student was taken out of its run.
    named = (recipe or {}).get("teacher") or reports.get(CONVERSION_REPORT, {}).get("teacher")
    return Origin(
        stage=_stage_of(reports),
        teacher=None if named is None else _without_folder(named),
        is_on_hub=named is not None and "/" in named and not Path(named).is_absolute(),
        licence=_licence_in(student) or _licence_of(named),
        reports=_without_folder(reports),
        recipe=_without_folder(recipe),
        scores=scores,
    )


def _stage_of(reports: Mapping[str, Mapping[str, Any]]) -> str | None:
    if STAGE_REPORT in reports:
        return reports[STAGE_REPORT]["stage"]
    return "conversion" if CONVERSION_REPORT in reports else None


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is damaged ({error})") from None


def _without_folder(value: Any) -> Any:
    """The same with every absolute path cut down to its last name: others have no use for this machine's folders."""
    if isinstance(value, dict):
        return {key: _without_folder(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folder(inner) for inner in value]
    # A chat template or a date is no path; what begins with a slash in a recipe is one.
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _licence_of(teacher: str | None) -> Licence:
    """What a teacher's folder states; of a hub id, that which it was fetched to. One that is gone states nothing."""
    try:
        found = None if teacher is None else _licence_in(model_folder(teacher))
    except (UserError, OSError):
        found = None
    return found or Licence({}, None)


def _licence_in(folder: Path) -> Licence | None:
    """The licence that a folder's model card states, and the file of it; None if there is neither."""
    # LICENSE, LICENSE.txt, LICENSE.md: the hub knows no rule.
    texts = [path for path in sorted(folder.glob("LICENSE*")) if path.is_file()]
    text = texts[0].read_text(encoding="utf-8", errors="replace") if texts else None
    fields = _card_licence(folder / "README.md")
    return Licence(fields, text) if fields or text is not None else None


def _card_licence(card: Path) -> dict[str, str]:
    """What stands in the metadata between the first two lines of three dashes."""
    if not card.is_file():
        return {}
    # The line break in front, so that the first dashes are found like the second.
    _, *parts = f"\n{card.read_text(encoding='utf-8', errors='replace')}".split("\n---\n", 2)
    try:
        metadata = yaml.safe_load(parts[0]) if len(parts) == 2 else None
    except yaml.YAMLError:
        return {}
    known = metadata if isinstance(metadata, dict) else {}
    return {key: str(known[key]) for key in ("license", "license_name", "license_link") if known.get(key)}
