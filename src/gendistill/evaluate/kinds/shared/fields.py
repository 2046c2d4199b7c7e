"""The fields of a record, by the rules that `base.SourcedTask` states."""

import re
from collections.abc import Sequence
from typing import Any

from gendistill.errors import UserError
from gendistill.names import LETTERS

# {field} or {a.b}; braces around anything else are part of the text.
_PLACEHOLDER = re.compile(r"{([\w.]+)}")


class Fields:
    """The fields of one record.

    Attributes:
        where: names the record in errors.
        index: of the record in its source.
        values: the record.
        left_out: accepted answers of the record that no reply could be held against; whoever reads counts them.
    """

    def __init__(self, where: str, index: int, values: dict):
        self.where = where
        self.index = index
        self.values = values
        self.left_out = 0

    def find(self, names: Sequence[str]) -> Any:
        """Value of the first field that is there and not null, or None."""
        return next((value for name in names if (value := _value(self.values, name)) is not None), None)

    def get(self, names: Sequence[str]) -> Any:
        """As `find`, but what is not there is an error."""
        if (value := self.find(names)) is None:
            null = " (it is null)" if any(name in self.values for name in names) else ""
            raise UserError(f"{self.where}: no field {quoted(names)}{null}; it has: {', '.join(map(str, self.values))}")
        return value

    def texts(self, names: Sequence[str]) -> tuple[str, ...]:
        """One text or several, as a tuple; nulls in a list are none of them.

        Raises:
            UserError: there is nothing else.
        """
        value = self.get(names)
        values = [each for each in (value if isinstance(value, list | tuple) else [value]) if each is not None]
        if isinstance(value, list | tuple) and value and not values:
            raise self.error(names, "a text or a list of texts, not only nulls", value)
        return tuple(map(str, values))

    def text(self, names: Sequence[str], expected: str) -> str:
        """A text that is not blank, without white space around it; `expected` names it in the error."""
        # Not str(): a number or a list here means that the field is another one than the task thinks.
        text = self.get(names)
        if not isinstance(text, str) or not text.strip():
            raise self.error(names, expected, text)
        return text.strip()

    def error(self, names: Sequence[str], expected: str, value: Any) -> UserError:
        return UserError(f"{self.where}: field {quoted(names)} should be {expected}; it is {value!r}")


def quoted(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _value(fields: dict, name: str) -> Any:
    """A field's value, or None: "a.b" is b inside a, "a, b" the values of both in one list."""
    if "," in name:
        parts = [part.strip() for part in name.split(",")]
        values = [_value(fields, part) for part in parts]
        # All or nothing: a list that lacks one of its fields would move every option behind it up by a letter. A field
        # that is null keeps its place as such.
        if all(value is None for value in values) or any(
            value is None and part not in fields for part, value in zip(parts, values, strict=True)
        ):
            return None
        return [text for value in values for text in (value if isinstance(value, list | tuple) else [value])]
    for key in name.split("."):  # None as soon as there is nothing to look into
        fields = fields.get(key) if isinstance(fields, dict) else None
    return fields


def fill_template(templates: Sequence[str], fields: Fields, question: Any) -> str:
    """The first template whose {fields} the record has, filled in; {question} stands for `question`.

    Raises:
        UserError: the record can fill none.
    """
    for template in templates:
        # All fields before any text: a template that can be filled in half is not the one for this record.
        names = set(_PLACEHOLDER.findall(template))
        values = {name: question if name == "question" else fields.find([name]) for name in names}
        missing = [name for name in names if values[name] is None]
        if not missing:
            # Not str.format: braces that name no field, as code has them, stay as they are.
            return _PLACEHOLDER.sub(lambda match, values=values: _shown(values[match[1]]), template).strip()
    raise UserError(
        f"{fields.where}: no field {quoted(sorted(missing))}, which the template asks for; it has: "
        f"{', '.join(map(str, fields.values))}"
    )


def only_fields(template: str) -> str:
    """The template without its own words, each of its {fields} on a line."""
    return "\n".join(match[0] for match in _PLACEHOLDER.finditer(template))


def _shown(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value).strip()


def read_options(
    fields: Fields, names: Sequence[str], given: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> tuple[tuple[str | None, ...], list[str]]:
    """The options' texts, and how the record's answer may call them; an option that is null is None.

    Args:
        names: fields with a list of texts, or with a mapping {text: [...], label: [...]}.
        given: the options of all records, in the place of the field.
        labels: of all records; else the record's own, else letters.

    Raises:
        UserError: they are not 2 to 26 texts besides nulls, or one is empty.
    """
    # Labels beat letters only where there are some: "1", "2" of some ARC records, say.
    texts, own_labels = given or fields.get(names), None
    if isinstance(texts, dict) and "text" in texts:
        # How the hub stores a list of mappings: as a mapping of lists.
        texts, own_labels = texts["text"], texts.get("label")
    if not isinstance(texts, list | tuple) or not 2 <= len(texts) - list(texts).count(None) <= len(LETTERS):
        raise fields.error(names, f"a list of 2 to {len(LETTERS)} texts", texts)
    # Tables give every record as many options as the longest has, the others of it as null: no option says "None".
    texts = tuple(None if text is None else str(text).strip() for text in texts)
    if "" in texts:
        raise UserError(f"{fields.where}: an empty text in {quoted(names)}: {list(texts)!r}")
    return texts, [str(label) for label in labels or own_labels or LETTERS][: len(texts)]
