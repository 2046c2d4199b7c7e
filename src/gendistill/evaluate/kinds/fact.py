"""A fact stated once in other text, and asked for in other words: to find it takes what it says, not how it is said."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from gendistill.errors import UserError
from gendistill.evaluate.kinds.item import Answer, Draws, Item
from gendistill.evaluate.kinds.shared.distractors import DISTRACTORS
from gendistill.evaluate.kinds.shared.haystack import HaystackTask
from gendistill.evaluate.kinds.shared.hedges import committed
from gendistill.evaluate.kinds.shared.long_context import Draft
from gendistill.evaluate.kinds.shared.phrases import flexible_phrase, strict_phrase

# Made up, so that no model has read anything about a person of such a name.
FIRST_NAMES = """

Abrel Bastor Cindra Dovrin Elmira Farrow Gilda Hestin Ivarra Jorvik Kestra Lorvane Mirel Nestor Odalis Perrin Quilla
Rostam Sevrin Tamsin Ulmer Vesna Wendrik Yorick Zelda
""".split()
SURNAMES = """

Abernoll Brackwith Candelor Drossmoor Eskendale Farquint Gromfield Hathersal Istrabel Jessomar Kelvaston Lindemoor
Marwick Nollinger Osterbrand Pellivane Quarndon Rathbone Stavermoor Thistlecott Umberlane Vandermeld Wexcombe Yardling
Zimmerlo
""".split()


class Relation(NamedTuple):
    """Something to be known about a person.

    Attributes:
        statement: the fact, with {name} and {value}.
        question: asks for the value in other words, with {name}.
        values: all as likely.
    """

    statement: str
    question: str
    values: tuple[str, ...]


RELATIONS = (
    Relation(
        "{name} spent the whole of childhood in a small house in {value}.",
        "In which city did {name} grow up?",
        (
            "Lisbon", "Oslo", "Cairo", "Lima", "Prague", "Dublin", "Athens", "Nairobi", "Toronto", "Havana", "Vienna",
            "Helsinki", "Seoul", "Warsaw", "Bogota", "Manila",
        ),
    ),
    Relation(
        "To earn a living, {name} works as a {value} in the town.",
        "What is the profession of {name}?",
        (
            "baker", "carpenter", "dentist", "tailor", "plumber", "nurse", "barber", "butcher", "lawyer", "gardener",
            "shoemaker", "librarian", "blacksmith", "fisherman", "teacher", "pharmacist",
        ),
    ),
    Relation(
        "Every evening {name} practises the {value} for an hour before going to bed.",
        "Which musical instrument does {name} play?",
        (
            "violin", "piano", "trumpet", "flute", "cello", "harp", "clarinet", "guitar", "banjo", "saxophone", "oboe",
            "accordion", "trombone", "mandolin", "tuba", "bassoon",
        ),
    ),
    Relation(
        "Last spring {name} had the front door painted {value}.",
        "What is the colour of the front door of {name}?",
        (
            "red", "blue", "green", "yellow", "purple", "orange", "black", "white", "brown", "pink", "grey",
            "turquoise", "silver", "crimson", "beige", "violet",
        ),
    ),
    Relation(
        "In the garden behind the house {name} keeps a {value} and feeds it by hand.",
        "Which animal is the pet of {name}?",
        (
            "parrot", "rabbit", "tortoise", "cat", "dog", "goat", "hamster", "lizard", "pony", "goose", "hedgehog",
            "snake", "canary", "ferret", "peacock", "donkey",
        ),
    ),
    Relation(
        "For breakfast {name} always eats {value} with a cup of tea.",
        "Which food does {name} start the day with?",
        (
            "porridge", "toast", "pancakes", "yogurt", "sausages", "bacon", "cheese", "waffles", "soup", "rice",
            "herring", "strawberries", "bananas", "cornflakes", "biscuits", "oranges",
        ),
    ),
)  # fmt: skip
PROMPT = (
    "One sentence of the following text is about {name}. Remember it: you will be asked about it afterwards.\n\n"
    "{{text}}\n\nAccording to the text above: {question} Answer with one word only."
)


class Fact(HaystackTask):
    """Facts about `keys` people are stated in other text, each once, and one is asked for in other words. They are of
    one sort, and another one for each. Ranked is it against three of its sort, those in the prompt first."""

    kind: Literal["fact"] = "fact"

    def drafts(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """Drafts with facts about `keys` people, the first of which is asked for."""
        self.check_keys(draws, min(len(relation.values) for relation in RELATIONS) - DISTRACTORS)
        haystack = self.read_haystack(draws, tokenizer)
        told = set(re.findall(r"\w+", haystack.text))
        # A family of the text's own would be someone else of that name.
        surnames = [name for name in SURNAMES if name not in told]
        if len(surnames) < self.keys:
            raise UserError(
                f"task '{draws.name}': the haystack {self.haystack} holds too many of the surnames that facts are "
                f"made with: {self.keys} are needed, {len(surnames)} are left. Give another text"
            )
        for index, depth, rng in self.indices(draws):
            relation = rng.choice(RELATIONS)
            firsts, lasts = rng.sample(FIRST_NAMES, self.keys), rng.sample(surnames, self.keys)
            people = [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]
            values = rng.sample(relation.values, self.keys + DISTRACTORS)
            depths = [depth, *(rng.random() for _ in people[1:])]
            start = haystack.start(rng)
            item = self.make_item(index, values[:1], values[1 : 1 + DISTRACTORS], rng)
            facts = [
                f" {relation.statement.format(name=name, value=value)}"
                for name, value in zip(people, values, strict=False)
            ]
            prompt = PROMPT.format(name=people[0], question=relation.question.format(name=people[0]))
            yield Draft(item, partial(haystack.write, prompt, start, facts, depths))

    # Without the question, which holds all of the text: what stands there would count as asked about.

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        part = committed(reply, options=(*item.answers, *item.candidates))
        return strict_phrase(part, item.answers, item.candidates, truncated=truncated)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        return flexible_phrase(reply, item.answers, item.candidates, truncated=truncated)
