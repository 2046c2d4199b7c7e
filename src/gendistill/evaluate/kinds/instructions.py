"""Instructions that a program can check (IFEval)."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from gendistill.errors import UserError
from gendistill.evaluate.kinds.base import SourcedTask
from gendistill.evaluate.kinds.item import Answer, Draws, Grades, Item
from gendistill.evaluate.kinds.shared.constraints import check_instruction, followed
from gendistill.evaluate.kinds.shared.fields import Fields


# Not a FewShotTask: records hold no solutions to show.
class Instructions(SourcedTask):
    """The reply must follow instructions that a program can check. Not ranked, and without few-shot examples.

    An item's `checks`: "instruction_ids", names; "kwargs", the arguments of each.
    """

    kind: Literal["instructions"] = "instructions"
    instruction_ids: str = Field("instruction_id_list", description="field with names of instructions")
    kwargs: str = Field("kwargs", description="field with the arguments of each instruction")

    def read(self, fields: Fields, draws: Draws) -> Item:
        names, arguments = fields.get([self.instruction_ids]), fields.get([self.kwargs])
        if not isinstance(names, list) or not isinstance(arguments, list) or not 0 < len(names) == len(arguments):
            raise UserError(
                f"{fields.where}: '{self.instruction_ids}' and '{self.kwargs}' should be lists of the same length, a "
                f"mapping of arguments for each instruction; they are {names!r} and {arguments!r}"
            )
        # The hub's tables give every instruction all arguments there are, those of others as null.
        arguments = [{name: value for name, value in each.items() if value is not None} for each in arguments]
        for name, settings in zip(names, arguments, strict=True):
            try:
                check_instruction(name, settings)  # now, not when hundreds of replies have been generated
            except UserError as error:
                raise type(error)(f"{fields.where}: {error}") from None
        return Item(
            id=fields.index,
            kind=self.kind,
            question=self.user_text(fields),
            checks={"instruction_ids": names, "kwargs": arguments},  # all that grading needs; there is no answer
        )

    @classmethod
    def grade(cls, items: Sequence[Item], replies: Sequence[str], truncated: Sequence[bool] = ()) -> list[Grades]:
        """Checks each reply against its item's instructions; correct is one that follows all.

        Strict takes the reply as it is. Flexible takes also what is left of it without its first line, its last, both,
        or its asterisks, and each instruction may be followed by another of these. `parsed` says how many are followed
        ("2 of 3"); the notes say under "followed" which, strictly.
        """
        return [_graded(item.checks, reply) for item, reply in zip(items, replies, strict=True)]

    @classmethod
    def right_reply(cls, item: Item) -> str:
        each = zip(item.checks["instruction_ids"], item.checks["kwargs"], strict=True)
        return "To be followed: " + "; ".join(f"`{name}` {json.dumps(arguments)}" for name, arguments in each) + "."


def _graded(checks: dict[str, Any], reply: str) -> Grades:
    # Correct only if all are followed: the benchmark's accuracy by prompt.
    found = followed(checks["instruction_ids"], checks["kwargs"], reply)
    return Grades(_answer(found.strict), _answer(found.flexible), {"followed": list(found.strict)})


def _answer(followed: Sequence[bool]) -> Answer:
    return Answer(f"{sum(followed)} of {len(followed)}", all(followed))
