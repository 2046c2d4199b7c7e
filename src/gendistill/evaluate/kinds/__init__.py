"""Task kinds by name. Adding one is a file in this folder, with a class derived from one in `base`, and a line here."""

from collections.abc import Sequence

from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.evaluate.kinds.code import Code
from gendistill.evaluate.kinds.fact import Fact
from gendistill.evaluate.kinds.instructions import Instructions
from gendistill.evaluate.kinds.item import Grades, Item
from gendistill.evaluate.kinds.last_number import LastNumber
from gendistill.evaluate.kinds.last_word import LastWord
from gendistill.evaluate.kinds.multiple_choice import MultipleChoice
from gendistill.evaluate.kinds.needle import Needle
from gendistill.evaluate.kinds.needle_sum import NeedleSum
from gendistill.evaluate.kinds.recall import Recall
from gendistill.evaluate.kinds.shared.statements import answer_part
from gendistill.evaluate.kinds.short_answer import ShortAnswer

# Errors list kinds in this order.
KINDS: dict[str, type[TaskSettings]] = {
    "multiple_choice": MultipleChoice,
    "short_answer": ShortAnswer,
    "last_number": LastNumber,
    "last_word": LastWord,
    "code": Code,
    "instructions": Instructions,
    "needle": Needle,
    "needle_sum": NeedleSum,
    "fact": Fact,
    "recall": Recall,
}


def grade(items: Sequence[Item], replies: Sequence[str], truncated: Sequence[bool] = ()) -> list[Grades]:
    """Grades a reply to each item; the items are of one kind, at least one.

    What a model thinks before it answers (`<think>...</think>` and its like) is cut off here, for all kinds: no kind
    reads it, and no program in it is run.

    Args:
        truncated: of each reply, whether it ran out of its budget; none did if absent.

    Raises:
        UserError: this machine cannot grade such replies.
    """
    answers = [answer_part(reply) for reply in replies]
    # Items come from a task of a kind in the table, so there is nothing to check.
    return KINDS[items[0].kind].grade(items, answers, truncated or [False] * len(answers))
