"""The JSON schema of recipes, by which editors complete settings and mark mistakes.

It says what stands in one place: names, types, bounds. What settings say together is checked when a recipe is loaded.
"""

from typing import Any

from gendistill.evaluate.kinds import KINDS
from gendistill.recipe.loading import Recipe

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Of a whole recipe, descriptions of its settings among them."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    properties: dict[str, Any] = {}  # of any kind: a task file may say which kind it is
    kinds = []
    for name, kind in KINDS.items():
        own = kind.model_json_schema()
        definitions |= own.pop("$defs", {})
        properties = own["properties"] | properties
        # Only where `kind` says so: what another kind would make of the settings is nothing to warn of.
        kinds.append(own | {"required": ["kind", *own.get("required", [])], "title": f"Task of kind {name}"})
    started = {
        "title": "Task that starts from a task file",
        "type": "object",
        "properties": properties | {"kind": {"enum": list(KINDS)}},
        "required": ["task"],
        "additionalProperties": False,
    }
    # pydantic knows what all kinds have in common; here are the kinds themselves.
    definitions["TaskSettings"] = {"anyOf": [started, *kinds]}
    return {"$schema": DRAFT} | schema
