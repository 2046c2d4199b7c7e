"""Two numbers of a haystack to be found and added: small ones, so that finding them is what decides."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pydantic import Field

from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.haystack import HaystackTask
from gendistill.evaluate.kinds.shared.hedges import committed
from gendistill.evaluate.kinds.shared.keys import KEYS
from gendistill.evaluate.kinds.shared.long_context import Draft, spread
from gendistill.evaluate.kinds.shared.numbers import last_number, stated_number

PRICES = range(10, 50)  # of two digits; so have their sums

NEEDLE = " The price of the {key} is {value} coins."
EQUATION = "{} + {} = {}"
PROMPT = (
    "The prices of some things are hidden in the following text. Remember them: you will be asked about two of them "
    "afterwards.\n\n{{text}}\n\nHow many coins do the {first} and the {second} cost in total? Answer with one equation "
    f'of the form "{EQUATION.format("price", "price", "total")}", with the prices in the text above.'
)


class NeedleSum(HaystackTask):
    """The prices of `keys` things are hidden in a haystack, the sum of two of them is asked for, as an equation. Ranked
    is it against three that are true of other prices, those of other things in the prompt first."""

    kind: Literal["needle_sum"] = "needle_sum"
    keys: int = Field(2, ge=2, description="prices in the haystack; two of them are added")

    def drafts(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """Drafts with `keys` prices, the first two of which are to be added."""
        self.check_keys(draws, len(KEYS))
        haystack = self.read_haystack(draws, tokenizer)
        for index, depth, rng in self.indices(draws):
            keys = rng.sample(KEYS, self.keys)
            # The first four are different, so that no wrong equation has the right sum; the others may repeat.
            prices = rng.sample(PRICES, 4) + rng.choices(PRICES, k=self.keys)
            first, second, *others = prices[:4]
            depths = [*spread(depth, 2), *(rng.random() for _ in keys[2:])]
            start = haystack.start(rng)
            wrong = [(first, others[0]), (first, others[1]), (others[0], second)]
            item = self.make_item(index, [_equation(first, second)], [_equation(*pair) for pair in wrong], rng)
            item = replace(item, answers=(str(first + second),), checks=item.checks | {"prices": [first, second]})
            needles = [NEEDLE.format(key=key, value=price) for key, price in zip(keys, prices, strict=False)]
            prompt = PROMPT.format(first=keys[0], second=keys[1])
            yield Draft(item, partial(haystack.write, prompt, start, needles, depths))

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        number = last_number(committed(reply), truncated, _prices(item))
        return Answer(number, number in item.answers)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        number = stated_number(reply, truncated, _prices(item))
        return Answer(number, number in item.answers)


def _equation(first: int, second: int) -> str:
    return EQUATION.format(first, second, first + second)


def _prices(item: Item) -> str:
    """What a reply may say besides its answer; all of the question would take long to read."""
    return " ".join(map(str, item.checks["prices"]))
