"""Long contexts made on the spot: prompts filled to a given length with what is asked for and padding around it.

An item depends on the seed, the task's name and its own index: it is the same however many are asked. Depths advance by
the golden ratio from item to item, so that any number of items is spread evenly over the context.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from gendistill.errors import UserError
from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.evaluate.kinds.item import Answer, Draws, Grades, Item
from gendistill.evaluate.kinds.shared.distractors import DISTRACTORS
from gendistill.evaluate.kinds.shared.hedges import committed
from gendistill.evaluate.kinds.shared.phrases import strict_phrase
from gendistill.evaluate.kinds.shared.statements import denied, plain

FULL = 0.97  # share of the length asked for that a prompt has at least
AT_ONCE = 32  # prompts that are tokenised together
MOST_NUMBERS = 1000  # of a reply are read; one with more is a loop
# Steps of this part of the context spread any number of items over it more evenly than chance does.
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Draft:
    """An item whose length is still open.

    Attributes:
        item: without its question.
        write: from the padding's size, in tokens by estimate, to the question and the depth (0 to 1) of what it asks
            for.
    """

    item: Item
    write: Callable[[int], tuple[str, float]]


@dataclass(frozen=True)
class Padding:
    """Text in pieces, with estimates of their tokens.

    Attributes:
        pieces: texts, white space in front.
        sizes: [pieces] tokens.
        gaps: indices of pieces before which something may be put, in rising order.
    """

    pieces: Sequence[str]
    sizes: np.ndarray
    gaps: np.ndarray

    def hide(self, texts: Sequence[str], depths: Sequence[float]) -> tuple[str, float]:
        """The padding with each text in the gap nearest to its depth (0 to 1); and the depth of the first of them."""
        before = np.concatenate([[0], np.cumsum(self.sizes)])  # [pieces + 1] tokens before each piece, and in all
        depth_at = before[self.gaps] / max(before[-1], 1)  # [gaps] 0 to 1; without any padding all are 0
        nearest = [int(np.abs(depth_at - depth).argmin()) for depth in depths]  # [texts] into gaps
        parts, done = [], 0
        # From front to back. Texts in the same gap stand in alphabetical order, whatever order they came in.
        for index, text in sorted(zip(self.gaps[nearest].tolist(), texts, strict=True)):
            parts += [*self.pieces[done:index], text]
            done = index
        parts += self.pieces[done:]
        return "".join(parts).strip(), float(depth_at[nearest[0]])


class LongContextTask(TaskSettings):
    """A task whose prompts, as the model sees them (chat template and all), have at most `length` tokens, and 97 % of
    them or more unless a single word or line takes more than the rest.

    An item's `checks`: "length", as the task says, and "depth": the share of the padding's tokens that stand before
    what is asked for (before the first, if several are).
    """

    is_made = True

    items: PositiveInt = Field(50, description="number of items; the first of them are the same for any number")
    length: PositiveInt = Field(description="tokens of the prompt, template and all")
    # More of them make a task harder at the same length.
    keys: PositiveInt = Field(1, description="needles in the haystack, or pairs that are asked for")

    @model_validator(mode="before")
    @classmethod
    def check_length(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and settings.get("length") is None:
            kind = cls.model_fields["kind"].default
            raise ValueError(f"kind {kind} needs length: how many tokens a prompt should have")
        return settings

    def drafts(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """An item of any length, for each index.

        Raises:
            UserError: there are more keys than names or values; the haystack cannot be read.
        """
        raise NotImplementedError(f"kind {self.kind} does not say what is hidden where")

    def make_items(self, draws: Draws, tokenizer: Any) -> list[Item]:
        """Makes the items for one tokenizer.

        Raises:
            UserError: the length is too short for the question and what it asks for, or longer than any list of names;
                there are more keys than names or values; the haystack cannot be read.
        """
        drafts = list(self.drafts(draws, tokenizer))
        # Every prompt without padding, before any is filled: a length that one item cannot have fails at once.
        bare = _measure(tokenizer, [(draft, 0) for draft in drafts])
        shortest = max(tokens for _, tokens in bare)
        # Refused by the largest bare prompt: all items of a task should have the same length.
        if shortest > self.length:
            raise UserError(
                f"task '{draws.name}': a prompt of {self.length} tokens cannot hold its question and keys "
                f"({self.keys}), which take up to {shortest} with this tokenizer. Give a length of at least {shortest}"
            )
        fits = [_Fit(self.length, draft, *start) for draft, start in zip(drafts, bare, strict=True)]
        while unfinished := [fit for fit in fits if not fit.is_done]:
            measured = _measure(tokenizer, [(fit.draft, fit.room) for fit in unfinished])
            for fit, (item, tokens) in zip(unfinished, measured, strict=True):
                fit.learn(item, tokens)
        return [fit.best for fit in fits]

    def notes(self, item: Item, forms: Sequence[tuple[str, Grades]]) -> dict[str, Any]:
        return {"checks": item.checks}

    @classmethod
    def strict(cls, item: Item, reply: str, truncated: bool) -> Answer:
        return grade_values(committed(reply), item.answers, truncated)

    @classmethod
    def flexible(cls, item: Item, reply: str, truncated: bool) -> Answer:
        return grade_values(reply, item.answers, truncated)  # numbers are found anywhere in a reply as it is

    def check_keys(self, draws: Draws, most: int) -> None:
        if self.keys > most:
            raise UserError(f"task '{draws.name}': keys: {self.keys} is more than there are; give at most {most:,}")

    def indices(self, draws: Draws) -> Iterator[tuple[int, float, random.Random]]:
        """Of each item the index, the depth, and what it is drawn with."""
        start = draws.of("depth").random()  # another one for each task, or all would ask for the same depths
        for index in range(self.items):
            yield index, (start + index * GOLDEN) % 1, draws.of(index)

    def make_item(self, index: int, values: Sequence[str], others: Sequence[str], rng: random.Random) -> Item:
        """An item that asks for `values`. In each wrong candidate one of them is replaced by one of `others`."""
        candidates = [list(values) for _ in range(1 + DISTRACTORS)]
        for number, other in enumerate(others):  # each replaces another position, as far as there are some
            candidates[1 + number][number % len(values)] = other
        # As text, in the form that the question asks for.
        joined = [", ".join(candidate) for candidate in candidates]
        right = joined[0]
        rng.shuffle(joined)
        return Item(
            id=index,
            kind=self.kind,
            question="",
            candidates=tuple(joined),
            gold=(joined.index(right),),
            answers=(right,),
            solution=right,
            checks={"length": self.length},
        )


def spread(depth: float, count: int) -> list[float]:
    """So many depths (0 to 1) evenly apart, from `depth` on: an item asks for something early and something late."""
    return [(depth + number / count) % 1 for number in range(count)]


def enumerated(keys: Sequence[str]) -> str:
    """Two or more keys as a question names them: "a, b and c"."""
    return f"{', '.join(keys[:-1])} and {keys[-1]}"


def token_counts(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Tokens of each text by itself. Most tokenizers cut before white space, so that such counts can be added up."""
    distinct = list(dict.fromkeys(texts))  # each word once: a haystack of millions has some ten thousand
    ids = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    counts = dict(zip(distinct, map(len, ids), strict=True))
    return np.array([counts[text] for text in texts])  # [texts]


def grade_values(reply: str, answers: Sequence[str], truncated: bool = False) -> Answer:
    """Grades the numbers of a reply: right if they are those of `answers[0]`, in its order, and no others.

    Only numbers with as many digits count, or any if there are none. A number may be repeated and may hold thousands
    separators. A reply with too many or too few numbers is unparsed; those that it denies do not count, nor one at its
    end that was cut off.
    """
    wanted = re.findall("[0-9]+", answers[0])
    if not wanted:  # a value in words
        return strict_phrase(reply, answers, (), truncated=truncated)
    digits = len(wanted[0])
    text = plain(re.sub(r"\{,\}|\\,", ",", reply))
    if digits > 3:  # of shorter ones, commas separate values ("140,274")
        text = re.sub(
            "(?<![0-9])[0-9]{1,3}(?:[, '’_][0-9]{3})+(?![0-9])", lambda match: re.sub("[^0-9]", "", match[0]), text
        )
    numbers = [
        match[0]
        for match in islice(re.finditer("(?<![A-Za-z0-9])[0-9]+", text), MOST_NUMBERS)
        if not denied(text, match.start(), match.end())
        and not (truncated and match.end() == len(text) and match.end() - match.start() < digits)
    ]
    alike = [number for number in numbers if len(number) == digits]
    # Of a reply that was cut off only what can be a value counts: others are of its way there.
    found = list(dict.fromkeys(alike if alike or truncated else numbers))
    # The order counts: the question names the keys in it.
    return Answer(", ".join(found) if len(found) == len(wanted) else None, found == wanted)


class _Fit:
    """The search for the padding that fills an item's prompt.

    The padding's size is an estimate, off by a token or two for most tokenizers. Where it is off by more, what one
    prompt measures says what to try next, and bisection sees to it that this ends.

    Attributes:
        best: the item with as much padding as is known to fit.
        room: the padding to try next, in tokens by estimate.
    """

    def __init__(self, length: int, draft: Draft, best: Item, bare: int):
        """`best` is the item without any padding, its prompt of `bare` tokens."""
        self.length, self.draft, self.best, self.bare = length, draft, best, bare
        # A little less than `length`, or long prompts would be measured again for a token.
        self.target = round(length * (9 + FULL) / 10)
        self.fits, self.exceeds = 0, math.inf  # the largest size known to fit, the smallest known not to
        self.room = self.target - bare
        self.is_full = False

    @property
    def is_done(self) -> bool:
        return self.is_full or not self.fits < self.room < self.exceeds

    def learn(self, item: Item, tokens: int) -> None:
        """Takes in that the item with padding of `room` has a prompt of so many tokens."""
        if tokens > self.length:
            self.exceeds = self.room
        else:
            self.best, self.fits = item, self.room
            self.is_full = tokens >= FULL * self.length
        # Padding of `room` estimated tokens took `tokens - bare` real ones: the same rate for the next.
        self.room = max(self.room * (self.target - self.bare) // max(tokens - self.bare, 1), self.fits + 1)
        if self.room >= self.exceeds:
            self.room = (self.fits + self.exceeds) // 2


def _measure(tokenizer: Any, trials: Sequence[tuple[Draft, int]]) -> list[tuple[Item, int]]:
    """Each draft as an item with so much padding, and the tokens of its prompt."""
    # Here, not above: it imports transformers, and a recipe with long contexts is read without them.
    from gendistill.data.chat import render_prompts

    measured = []
    # Several in one call of the tokenizer, which uses all cores; not all, or their tokens would fill the memory.
    for start in range(0, len(trials), AT_ONCE):
        items = []
        for draft, room in trials[start : start + AT_ONCE]:
            question, depth = draft.write(room)
            items.append(replace(draft.item, question=question, checks=draft.item.checks | {"depth": round(depth, 4)}))
        prompts = [prompt.ids for prompt in render_prompts(tokenizer, [item.messages for item in items])]
        measured += [(item, len(ids)) for item, ids in zip(items, prompts, strict=True)]
    return measured
