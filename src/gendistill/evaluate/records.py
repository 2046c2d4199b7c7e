"""From the fields of a record to a question, its options and its answers, by the rules that `recipe.Task` states."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gendistill.errors import UserError
from gendistill.evaluate.instructions import check_instruction
from gendistill.evaluate.parsing import last_number, normalise
from gendistill.names import LETTERS
from gendistill.recipe.evaluation import Corrections, Task


@dataclass(frozen=True)
class Record:
    """A checked record.

    Attributes:
        index: its place in the source.
        question: the user's turn, but for the options.
        options: texts of the choices, if there are any.
        gold: indices of the right ones.
        answers: accepted answers.
        worked: the right answer as an assistant would put it, or the worked solution; empty if there is none.
        checks: see `tasks.Item`.
        subject: value of the field `shots_by`.
    """

    index: int
    question: str
    options: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    worked: str = ""
    checks: dict[str, Any] = field(default_factory=dict)
    subject: str | None = None


class _Fields:
    """The fields of one record; `where` names it in errors."""

    def __init__(self, where: str, fields: dict):
        self.where = where
        self.fields = fields

    def find(self, names: Sequence[str]) -> Any:
        """Value of the first field that is there and not null, or None."""
        return next((value for name in names if (value := _value(self.fields, name)) is not None), None)

    def get(self, names: Sequence[str]) -> Any:
        """As `find`, but what is not there is an error."""
        if (value := self.find(names)) is None:
            raise UserError(f"{self.where}: no field {_quoted(names)}; it has: {', '.join(map(str, self.fields))}")
        return value

    def texts(self, names: Sequence[str]) -> tuple[str, ...]:
        """One text or several, as a tuple."""
        value = self.get(names)
        return tuple(map(str, value if isinstance(value, list | tuple) else [value]))

    def error(self, names: Sequence[str], expected: str, value: Any) -> UserError:
        return UserError(f"{self.where}: field {_quoted(names)} should be {expected}; it is {value!r}")


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _value(fields: dict, name: str) -> Any:
    """A field's value, or None: "a.b" is b inside a, "a, b" the values of both in one list."""
    if "," in name:
        values = [_value(fields, part.strip()) for part in name.split(",")]
        if any(value is None for value in values):
            return None
        return [text for value in values for text in (value if isinstance(value, list | tuple) else [value])]
    for key in name.split("."):
        fields = fields.get(key) if isinstance(fields, dict) else None
    return fields


def read_record(where: str, index: int, task: Task, fields: dict) -> Record | None:
    """Checks a record; None if the task's corrections drop it.

    Args:
        where: names the record in errors.

    Raises:
        UserError: a field is missing or of the wrong form.
    """
    subject = None if task.shots_by is None else str(_Fields(where, fields).get([task.shots_by]))
    content = _READERS[task.kind](task, _Fields(where, fields))
    return None if content is None else Record(index=index, subject=subject, **content)


def _multiple_choice(task: Task, fields: _Fields) -> dict | None:
    options, labels = _options(task, fields)
    if task.choice_count not in (None, len(options)):
        raise UserError(
            f"{fields.where}: {len(options)} choices, and the task says choice_count: {task.choice_count}; mend the "
            f"record or take choice_count out of the task: {list(options)!r}"
        )
    gold = _gold(task, fields, options, labels)
    if task.corrections is not None:
        gold = _corrected(task.corrections, fields, gold, len(options))
        if not gold:
            return None
    answers = tuple(options[place] for place in gold)
    return {"question": _question(task, fields), "options": options, "gold": gold, "answers": answers}


def _options(task: Task, fields: _Fields) -> tuple[tuple[str, ...], list[str]]:
    """The options' texts, and how `answer` may call them."""
    texts, labels = task.options or fields.get(task.choices), None
    if isinstance(texts, dict) and "text" in texts:
        texts, labels = texts["text"], texts.get("label")
    if not isinstance(texts, list | tuple) or not 2 <= len(texts) <= len(LETTERS):
        raise fields.error(task.choices, f"a list of 2 to {len(LETTERS)} texts", texts)
    texts = tuple(str(text).strip() for text in texts)
    if not all(texts):
        raise UserError(f"{fields.where}: an empty text in {_quoted(task.choices)}: {list(texts)!r}")
    return texts, [str(label) for label in task.labels or labels or LETTERS][: len(texts)]


def _gold(task: Task, fields: _Fields, options: tuple[str, ...], labels: list[str]) -> tuple[int, ...]:
    answer, last = fields.get(task.answer), len(options) - 1
    match answer:
        case bool():
            gold = (int(answer),) if len(options) == 2 else ()
        case int():
            gold = (answer,) if 0 <= answer <= last else ()
        case str():
            answer = answer.strip()
            among = labels if answer in labels else options
            gold = (among.index(answer),) if among.count(answer) == 1 else ()
        case [*marks] if len(marks) == len(options) and set(marks) <= {0, 1}:
            gold = tuple(place for place, mark in enumerate(marks) if mark)
        case _:
            gold = ()
    if not gold:
        ways = f"an index from 0 to {last}, one of the labels {', '.join(map(str, labels))}, or an option's text"
        raise fields.error(task.answer, f"the right choice: {ways}", answer)
    return gold


def _corrected(corrections: Corrections, fields: _Fields, gold: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The right choices after the corrections; none if the record is to be dropped."""

    def plain(verdict) -> str:
        return str(verdict).replace("_", " ")

    verdict = plain(fields.get([corrections.verdict]))
    if verdict in map(plain, corrections.keep):
        return gold
    if verdict not in map(plain, corrections.replace):
        return ()
    named = [word for word in re.findall(r"\w+", str(fields.find([corrections.answer]) or "")) if word not in _JOINING]
    places = {**{LETTERS[place]: place for place in range(count)}, **{str(place): place for place in range(count)}}
    # A remark ("depends on interpretation") names no choice, even if some word of it is a letter.
    return tuple(sorted({places[word] for word in named})) if all(word in places for word in named) else ()


_JOINING = ("and", "or")


def _short_answer(task: Task, fields: _Fields) -> dict:
    answers = fields.texts(task.answer)
    if not answers or not all(normalise(answer) for answer in answers):
        raise fields.error(task.answer, "a text or a list of texts", list(answers))
    answers = tuple(dict.fromkeys(answers))
    content = {"question": _question(task, fields), "answers": answers, "worked": answers[0]}
    if fields.find(task.choices) is None:
        return content
    options, _ = _options(task, fields)
    accepted = {normalise(answer) for answer in answers}
    right = tuple(place for place, option in enumerate(options) if normalise(option) in accepted)
    if len(right) != 1:
        raise UserError(
            f"{fields.where}: exactly one of {_quoted(task.choices)} should be an accepted answer, {len(right)} are; "
            f"choices: {list(options)!r}, accepted: {list(answers)!r}"
        )
    return content | {"options": options, "gold": right}


def _last_number(task: Task, fields: _Fields) -> dict:
    answer = str(fields.get(task.answer))
    number = last_number(answer)
    if number is None:
        raise UserError(f"{fields.where}: no number in field {_quoted(task.answer)}: {answer!r}")
    return {"question": _question(task, fields), "answers": (number,), "worked": worked_answer(answer)}


def _last_word(task: Task, fields: _Fields) -> dict:
    text = _text(fields, task.question, "a text")
    context, _, word = text.rpartition(" ")
    if not context or not normalise(word):
        raise fields.error(task.question, "a text that ends with the word to ask for", text)
    return {"question": _question(task, fields, asked=context), "answers": (word,), "worked": word}


def _code(task: Task, fields: _Fields) -> dict:
    tests = "\n".join(fields.texts(task.tests))
    if not tests.strip():
        raise fields.error(task.tests, "a program, or a list of statements", tests)
    name = None if task.entry_point is None else str(fields.get([task.entry_point]))
    prefix = "" if task.prefix is None else str(fields.get([task.prefix]))
    solution = fields.find(task.answer)
    return {
        "question": _question(task, fields),
        "worked": "" if solution is None else f"```python\n{(prefix + solution).strip()}\n```",
        "checks": {"prefix": prefix, "entry_point": name, "tests": f"{tests}\n\ncheck({name})" if name else tests},
    }


def _instructions(task: Task, fields: _Fields) -> dict:
    names, arguments = fields.get([task.instruction_ids]), fields.get([task.kwargs])
    if not isinstance(names, list) or not isinstance(arguments, list) or not 0 < len(names) == len(arguments):
        raise UserError(
            f"{fields.where}: '{task.instruction_ids}' and '{task.kwargs}' should be lists of the same length, a "
            f"mapping of arguments for each instruction; they are {names!r} and {arguments!r}"
        )
    # The hub's tables give every instruction all arguments there are, those of others as null.
    arguments = [{name: value for name, value in each.items() if value is not None} for each in arguments]
    for name, settings in zip(names, arguments, strict=True):
        try:
            check_instruction(name, settings)
        except UserError as error:
            raise UserError(f"{fields.where}: {error}") from None
    return {"question": _question(task, fields), "checks": {"instruction_ids": names, "kwargs": arguments}}


_READERS = {
    "multiple_choice": _multiple_choice,
    "short_answer": _short_answer,
    "last_number": _last_number,
    "last_word": _last_word,
    "code": _code,
    "instructions": _instructions,
}


def _question(task: Task, fields: _Fields, asked: str | None = None) -> str:
    """The user's turn: the question itself (`asked`, if it is not the whole field), or the template around it."""
    if not task.template:
        return asked or _text(fields, task.question, "a question")

    def value(name: str) -> Any:
        return (asked or fields.find(task.question)) if name == "question" else fields.find([name])

    for template in task.template:
        names = set(re.findall(r"{([\w.]+)}", template))
        values = {name: value(name) for name in names}
        if missing := [name for name in names if values[name] is None]:
            continue
        return re.sub(r"{([\w.]+)}", lambda match, values=values: _shown(values[match[1]]), template).strip()
    raise UserError(
        f"{fields.where}: no field {_quoted(sorted(missing))}, which the template asks for; it has: "
        f"{', '.join(map(str, fields.fields))}"
    )


def _text(fields: _Fields, names: Sequence[str], expected: str) -> str:
    text = fields.get(names)
    if not isinstance(text, str) or not text.strip():
        raise fields.error(names, expected, text)
    return text.strip()


def _shown(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value).strip()


def worked_answer(answer: str) -> str:
    """GSM8K's solution as an assistant would put it: no <<calculator notes>>, "The answer is 18." for "#### 18"."""
    return re.sub(r"####\s*(.+?)\s*$", r"The answer is \1.", re.sub(r"<<[^<>]*>>", "", answer)).strip()
