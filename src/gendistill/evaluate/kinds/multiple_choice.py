"""Options under letters; the reply names one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from gendistill.errors import UserError
from gendistill.evaluate.kinds.base import FewShotTask
from gendistill.evaluate.kinds.item import Answer, Draws, Grades, Item
from gendistill.evaluate.kinds.shared.fields import Fields, read_options
from gendistill.evaluate.kinds.shared.hedges import committed
from gendistill.evaluate.kinds.shared.letters import flexible_letter, strict_letter
from gendistill.names import LETTERS
from gendistill.recipe.fields import Names, Settings

_JOINING = ("and", "or")  # words between the choices that a correction names


class Corrections(Settings):
    """Answers that were checked again, record by record. Records with any other verdict are dropped, as are those
    whose new answer names no choice."""

    verdict: str = Field(description="field with the verdict; '_' and blanks are the same in it")
    keep: list[str] = Field(description="verdicts that leave the answer as it is")
    replace: list[str] = Field(description="verdicts under which `answer` holds the right choices instead")
    answer: str = Field(description="field with the right choices, by letter or index: 'B', '0, 2', '1 or 2'")


class MultipleChoice(FewShotTask):
    """Options under letters; the reply names one. Ranked are the letters, or the options' texts.

    How the options are found: the field `choices` holds a list of texts, or a mapping {text: [...], label: [...]} of
    texts and their labels; or several fields hold an option each ("A, B, C, D"); or `options` are the same for all
    records. The `answer` is one of: an index, from 0; true or false, for the second or the first of two options; a
    label (of `labels`, else of the record, else the option's letter); an option's text; a list with 1 for right and 0
    for wrong options.
    """

    kind: Literal["multiple_choice"] = "multiple_choice"
    # How options and the right one are found in a record.
    choices: Names = Field(("choices",), min_length=1, description="field")
    options: list[str] | None = Field(None, description="options of all records, in the place of `choices`")
    labels: list[str] | None = Field(None, description="how `answer` calls the first, second ... option")
    choice_count: PositiveInt | None = Field(None, description="options of every record; any number if absent")
    shuffle: bool = Field(False, description="options in an order drawn by the recipe's seed")
    answer: Names = Field(("answer",), min_length=1, description="field")
    corrections: Corrections | None = Field(None, description="answers that were checked again")
    # How they are ranked and generated.
    rank_by: Literal["letter", "text", "text_per_token", "text_per_byte"] = Field(
        "letter",
        description="what is ranked: the option's letter, or its text by the sum, or the sum per token or byte",
    )
    rotations: bool = Field(False, description="generation is asked once more under every rotation of the options")

    @model_validator(mode="after")
    def check_options(self) -> Self:
        # Refused now: every record of the source would be refused.
        if self.options is not None and self.choice_count not in (None, len(self.options)):
            raise ValueError(f"choice_count {self.choice_count} contradicts the {len(self.options)} options")
        return self

    def of_examples(self) -> Self:
        # Corrections say what to do with test items; the examples' source need not know them.
        return self.model_copy(update={"corrections": None})

    def read(self, fields: Fields, draws: Draws) -> Item | None:
        options, labels = read_options(fields, self.choices, self.options, self.labels)
        # The others are null; answers count them, so they are left out only of what is shown.
        shown = [index for index, option in enumerate(options) if option is not None]
        if self.choice_count not in (None, len(shown)):
            raise UserError(
                f"{fields.where}: {len(shown)} choices, and the task says choice_count: {self.choice_count}; mend "
                f"the record or take choice_count out of the task: {list(options)!r}"
            )
        gold = _gold(self.answer, fields, options, labels)  # in the record's order
        if self.corrections is not None:
            gold = _corrected(self.corrections, fields, gold, len(options))
            if not gold:
                return None
        # Answers and corrections name options as the record has them, so the order changes only now.
        if self.shuffle:
            draws.of(fields.index, "options").shuffle(shown)
        shown_gold = tuple(position for position, option in enumerate(shown) if option in gold)
        return Item(
            id=fields.index,
            kind=self.kind,
            question=self.user_text(fields),
            candidates=tuple(LETTERS[: len(shown)]),  # letters: what the question asks for
            gold=shown_gold,
            answers=tuple(options[index] for index in gold),
            choices=tuple(options[index] for index in shown),
            solution=LETTERS[shown_gold[0]],  # of several right ones the first
            subject=self.subject_of(fields),
        )

    def other_forms(self, item: Item) -> list[Item]:
        return item.rotations()[1:] if self.rotations else []

    def ranked_first(self, best: int, best_by: Mapping[str, int]) -> int:
        # All ways are scored and recorded whatever `rank_by` says; it only chooses the one that counts.
        return best_by[self.rank_by]

    def notes(self, item: Item, forms: Sequence[tuple[str, Grades]]) -> dict[str, Any]:
        if not self.rotations:  # the key is absent, which is how diagnoses know
            return {}
        return {"rotations": [_rotation(item, by, reply, grades) for by, (reply, grades) in enumerate(forms)]}

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        reply = committed(reply, item.question, item.choices)
        return _graded(item, strict_letter(reply, item.choices, truncated))

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        return _graded(item, flexible_letter(reply, item.choices, truncated))

    @classmethod
    def right_reply(cls, item: Item) -> str:
        right = [f"`{item.candidates[index]}` ({item.choices[index]})" for index in item.gold]
        return f"Right: {' or '.join(right)}."


def _graded(item: Item, letter: str | None) -> Answer:
    # An unparsed reply is None, which is no candidate.
    return Answer(letter, letter in map(item.candidates.__getitem__, item.gold))


def _rotation(item: Item, by: int, reply: str, grades: Grades) -> dict[str, Any]:
    """The answer with the options moved up by so many positions; "choice" counts them in their original order."""
    letter = grades.strict.parsed
    choice = None if letter is None else (item.candidates.index(letter) + by) % len(item.choices)
    return {"reply": reply, "parsed": letter, "choice": choice, "correct": grades.strict.correct}


def _gold(names: Sequence[str], fields: Fields, options: tuple[str | None, ...], labels: list[str]) -> tuple[int, ...]:
    """Indices of the right options, from any of the forms that the class's docstring lists."""
    answer, last = fields.get(names), len(options) - 1
    match answer:
        case bool():  # before int: True is one
            gold = (int(answer),) if len(options) == 2 else ()
        case int():
            gold = (answer,) if 0 <= answer <= last else ()
        case str():
            answer = answer.strip()
            # Labels first: where options are themselves letters or numbers, an answer means the label.
            among = labels if answer in labels else options
            gold = (among.index(answer),) if among.count(answer) == 1 else ()
        case [*flags] if len(flags) == len(options) and set(flags) <= {0, 1, None}:
            gold = tuple(index for index, flag in enumerate(flags) if flag)
        case _:
            gold = ()  # refused below, as is what the cases above could not resolve
    if not gold or any(options[index] is None for index in gold):
        named = ", ".join(map(str, labels))
        ways = f"an index from 0 to {last}, one of the labels {named}, or an option's text, none of them null"
        raise fields.error(names, f"the right choice: {ways}", answer)
    return gold


def _corrected(corrections: Corrections, fields: Fields, gold: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The right choices after the corrections; none if the record is to be dropped."""

    def plain(verdict: Any) -> str:
        return str(verdict).replace("_", " ")

    verdict = plain(fields.get([corrections.verdict]))
    if verdict in map(plain, corrections.keep):
        return gold
    if verdict not in map(plain, corrections.replace):
        return ()  # neither right nor mended: not a question to be graded on
    words = re.findall(r"\w+", str(fields.find([corrections.answer]) or ""))
    named = [word for word in words if word not in _JOINING]
    by_letter = {LETTERS[index]: index for index in range(count)}
    # Both spellings stand in the same data sets ("B", "0, 2").
    indices = by_letter | {str(index): index for index in range(count)}
    # A remark ("depends on interpretation") names no choice, even if some word of it is a letter.
    return tuple(sorted({indices[word] for word in named})) if all(word in indices for word in named) else ()
