"""Wrong candidates for items whose records have none: other items' answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gendistill.errors import UserError
from gendistill.evaluate.kinds.item import Draws, Item
from gendistill.evaluate.kinds.shared.words import normalise

DISTRACTORS = 3  # with the right answer, four candidates: chance is 25 %


def other_answers(item: Item, others: Mapping[str, str], draws: Draws) -> list[str]:
    """The answers of other items that are not accepted for this one, each once, in their source's order.

    Args:
        others: normalised text -> text.

    Raises:
        UserError: there are none.
    """
    # No alias of the right answer may stand among the wrong ones.
    accepted = {normalise(answer) for answer in item.answers}
    found = [text for key, text in others.items() if key not in accepted]
    if not found:
        raise UserError(f"task '{draws.name}': all items have the same answer, so there is nothing to rank it against")
    return found


def sampled(item: Item, answers: Sequence[str], draws: Draws) -> list[str]:
    """As many of the answers as an item is given, drawn for this item."""
    return draws.of(item.id, "distractors").sample(answers, min(DISTRACTORS, len(answers)))


def among(item: Item, wrong: Sequence[str], draws: Draws) -> Item:
    """The item with its first answer as a candidate among the wrong ones, in an order drawn for it."""
    right = item.answers[0]
    candidates = [right, *wrong]
    # Shuffled with its own stream: the order does not change when another number of wrong candidates is drawn.
    draws.of(item.id, "order").shuffle(candidates)
    return replace(item, candidates=tuple(candidates), gold=(candidates.index(right),))
