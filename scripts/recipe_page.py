"""Writes the tables of docs/recipes.md from the sections of a recipe, as src/gendistill/recipe/ declares them.

    python scripts/recipe_page.py

What stands between the page's markers is written anew: a table for each section, and for each kind of task.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gendistill.evaluate.kinds import KINDS
from gendistill.evaluate.kinds.base import FewShotTask, SourcedTask, TaskSettings
from gendistill.recipe.data import Prompts, Source, Synthesis
from gendistill.recipe.evaluation import Evaluation, Harness
from gendistill.recipe.fields import KEEPS_RESULTS
from gendistill.recipe.loading import Recipe
from gendistill.recipe.placement import METHODS, FromFile, Measured, Method, Scored
from gendistill.recipe.stage import OnPolicy, Schedule, Stage
from gendistill.recipe.student import Conversion, Student

PAGE = Path(__file__).resolve().parents[1] / "docs/recipes.md"
# Where each section stands in a recipe.
SECTIONS: dict[str, type[BaseModel]] = {
    "The recipe": Recipe,
    "student": Student,
    "conversion": Conversion,
    "data.NAME, each source": Source,
    "synthesis.NAME": Synthesis,
    "synthesis.NAME.prompts, each": Prompts,
    "stages.NAME": Stage,
    "stages.NAME.schedule": Schedule,
    "stages.NAME.data, of an on-policy stage": OnPolicy,
    "evaluation": Evaluation,
    "evaluation.harness": Harness,
}
# What several of them share, from the most general on; each below shows what it adds.
SHARED_BY_METHODS: dict[str, type[BaseModel]] = {
    "every method": Method,
    "methods that measure": Measured,
    "methods that compare sets by a score": Scored,
}
SHARED_BY_KINDS: dict[str, type[BaseModel]] = {
    "every kind": TaskSettings,
    "kinds that read records": SourcedTask,
    "kinds with few-shot examples": FewShotTask,
}


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """The page with its tables as the sections have them."""
    start, end = "<!-- settings: scripts/recipe_page.py -->", "<!-- end of settings -->"
    head, _, rest = page.partition(start)
    return f"{head}{start}\n\n{settings()}\n\n{end}{rest.partition(end)[2]}"


def settings() -> str:
    parts = []
    for where, section in SECTIONS.items():
        parts += [f"## {where}", table(section)]
        if section is Student:
            parts += ["## student.keep_attention", "A list of layers, `{from: FILE}`, or a method with its settings."]
            parts += ["### from a file", table(FromFile)]
            parts += family("method", METHODS, SHARED_BY_METHODS)
    parts += [
        "## evaluation.tasks.NAME",
        "Its `kind` decides which settings there are; `task` starts from a task file.",
    ]
    parts += family("kind", KINDS, SHARED_BY_KINDS)
    return "\n\n".join(parts)


def family(what: str, members: Mapping[str, type[BaseModel]], shared: Mapping[str, type[BaseModel]]) -> list[str]:
    """Tables of sections that have settings in common: first what they share, then what each adds."""
    parts: list[str] = []
    above: set[str] = set()
    for heading, section in shared.items():
        parts += [f"### {heading}", table(section, without=above)]
        above |= set(section.model_fields)
    for section in dict.fromkeys(members.values()):  # several names may have the same settings
        names = ", ".join(name for name, each in members.items() if each is section)
        bases = [heading for heading, base in shared.items() if issubclass(section, base)]
        own = table(section, without={name for heading in bases for name in shared[heading].model_fields})
        parts += [f"### {what}: {names}", f"{about(section)} With the settings of {', '.join(bases)}.", own]
    return [part for part in parts if part]


def about(section: type[BaseModel]) -> str:
    """The first paragraph of its docstring."""
    return " ".join(section.__doc__.split("\n\n")[0].split())


def table(section: type[BaseModel], without: Collection[str] = ()) -> str:
    """A line for each setting: its key, type, default and meaning; nothing if there are none but those `without`."""
    schema = section.model_json_schema()
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, declared in schema["properties"].items():
        if key in without:
            continue
        cells = (f"`{key}`", type_of(declared), default_of(section, key, declared), meaning_of(section, key, declared))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def meaning_of(section: type[BaseModel], key: str, declared: dict[str, Any]) -> str:
    """What is said of a setting; KeyError if nothing is."""
    field = next(field for name, field in section.model_fields.items() if (field.alias or name) == key)
    kept = ". *Changes no result.*" if KEEPS_RESULTS in field.metadata else ""
    return declared["description"] + kept


def default_of(section: type[BaseModel], key: str, declared: dict[str, Any]) -> str:
    if key in section.model_json_schema().get("required", ()):
        return "*required*"
    default = declared.get("default")
    if isinstance(default, dict) and default:
        return "see there"  # a section of its own
    return "none" if default in (None, [], {}) else f"`{json.dumps(default)}`".replace('"', "")


def type_of(declared: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "anyOf" in declared or "oneOf" in declared:
        options = [option for option in declared.get("anyOf", declared.get("oneOf")) if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(type_of(option) for option in options))
    if "enum" in declared or "const" in declared:
        return ", ".join(f"`{value}`" for value in declared.get("enum", [declared.get("const")]))
    if "$ref" in declared:
        return "section"
    if declared.get("type") == "array":
        return list_type(declared)
    if declared.get("type") == "object":
        return f"mapping to {type_of(declared['additionalProperties'])}"
    names = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
    return names[declared["type"]] + "".join(bounds(declared))


def list_type(declared: dict[str, Any]) -> str:
    if "prefixItems" in declared:
        return f"[{', '.join(type_of(item) for item in declared['prefixItems'])}]"
    return f"list of {type_of(declared['items'])}"


def bounds(declared: dict[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in declared:
            yield f" {sign} {declared[name]:g}"


if __name__ == "__main__":
    main()
