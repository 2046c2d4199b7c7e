"""Needles in a haystack, as in RULER (Hsieh et al. 2024, arXiv 2404.06654): sentences that give magic numbers, hidden
in other text; some are asked for."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from gendistill.evaluate.kinds.item import Draws
from gendistill.evaluate.kinds.shared.distractors import DISTRACTORS
from gendistill.evaluate.kinds.shared.haystack import HaystackTask
from gendistill.evaluate.kinds.shared.keys import KEYS
from gendistill.evaluate.kinds.shared.long_context import Draft, enumerated, spread

VALUES = range(1_000_000, 10_000_000)

NEEDLE = " One of the special magic numbers for {key} is {value}."
PROMPT = (
    "Some special magic numbers are hidden in the following text. Remember them: you will be asked for {some} of them "
    "afterwards.\n\n{{text}}\n\nWhat {question}"
)


class Needle(HaystackTask):
    """`keys` needles are hidden in a haystack, `asked` of them are asked for. Ranked are their numbers and three other
    answers, in each of which one is another needle's number or, if all are asked for, one that is nowhere in the
    prompt."""

    kind: Literal["needle"] = "needle"
    asked: PositiveInt = Field(1, description="how many of the needles are asked for")

    @model_validator(mode="after")
    def check_asked(self) -> Self:
        if self.asked > self.keys:
            raise ValueError(f"asked: {self.asked} is more than there are needles (keys: {self.keys})")
        return self

    def drafts(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """Drafts with `keys` needles, the first of which are asked for."""
        self.check_keys(draws, len(KEYS))
        haystack = self.read_haystack(draws, tokenizer)
        # No needle may give a number of the haystack.
        taken = set(re.findall("(?<![0-9])[0-9]{7}(?![0-9])", haystack.text))
        for index, depth, rng in self.indices(draws):
            # The order of the draws is what makes an item the same in every version of this code.
            keys = rng.sample(KEYS, self.keys)
            wanted = self.keys + DISTRACTORS
            # As many more as may be taken, so that enough are left.
            drawn = map(str, rng.sample(VALUES, wanted + len(taken)))
            values = [value for value in drawn if value not in taken][:wanted]
            depths = [*spread(depth, self.asked), *(rng.random() for _ in keys[self.asked :])]
            start = haystack.start(rng)
            item = self.make_item(index, values[: self.asked], values[self.asked : self.asked + DISTRACTORS], rng)
            needles = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=False)]
            yield Draft(item, partial(haystack.write, _prompt(keys[: self.asked]), start, needles, depths))


def _prompt(keys: Sequence[str]) -> str:
    """The prompt that asks for these keys, with a place for {text}."""
    if len(keys) == 1:
        question = (
            f"is the special magic number for {keys[0]} mentioned in the text above? Answer with the number only."
        )
        return PROMPT.format(some="one", question=question)
    question = (
        f"are the special magic numbers for {enumerated(keys)} mentioned in the text above? Answer with the numbers "
        "only, in this order, separated by commas."
    )
    return PROMPT.format(some="some", question=question)
