"""Associative recall, in the sense of Arora et al. 2023 (arXiv 2312.04927): a list of names and values, of which some
are asked for."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from gendistill.errors import UserError
from gendistill.evaluate.kinds.item import Draws
from gendistill.evaluate.kinds.shared.distractors import DISTRACTORS
from gendistill.evaluate.kinds.shared.haystack import PARAGRAPH, HaystackTask
from gendistill.evaluate.kinds.shared.keys import FIRST, KEYS, SECOND
from gendistill.evaluate.kinds.shared.long_context import Draft, Padding, enumerated, spread, token_counts

VALUES = range(100, 1000)
SHORTEST_LINE = 3  # no line of a list takes fewer tokens
TAIL = 3  # lines at the end of a list that give way to lines of fitting sizes

PLACEMENT = "placement"  # as a task's name: prompts that layers are placed by are in no evaluation

PAIR = "\n{key}: {value}"
PROMPT = "Here is a list of names and their values.\n\n{{text}}\n\nWhat {question}."
PROMPT_WITHIN = "In the following text there is a list of names and their values.\n\n{{text}}\n\nWhat {question}."


class Recall(HaystackTask):
    """The values of `keys` names of a list are asked for, the rest of the list is pairs like them. The list is all of
    the prompt or, with `pairs`, a part of it that stands in other text. Ranked are the values and three lists in which
    one value is that of another line."""

    kind: Literal["recall"] = "recall"
    pairs: PositiveInt | None = Field(None, description="lines of the list, within other text; all if absent")

    @model_validator(mode="after")
    def check_pairs(self) -> Self:
        if self.pairs is None and self.haystack is not None:
            raise ValueError("haystack is the text around a list of so many pairs: give pairs, too")
        if self.pairs is not None and self.pairs < self.keys + DISTRACTORS:
            raise ValueError(
                f"pairs: {self.pairs} is too short a list for keys: {self.keys}; wrong answers take {DISTRACTORS} "
                f"more, so give at least {self.keys + DISTRACTORS}"
            )
        return self

    def drafts(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """Drafts with a list, of which the values of `keys` names are asked for."""
        self.check_keys(draws, len(VALUES) - DISTRACTORS)
        return self._lists(draws, tokenizer) if self.pairs is None else self._lists_within(draws, tokenizer)

    def _lists(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """Lists that are all of the prompt."""
        # A line's tokens by its two words: far fewer texts to tokenise than there are lines.
        starts = token_counts(tokenizer, [f"\n{first}" for first in FIRST])  # [FIRST]
        ends = token_counts(tokenizer, [f" {second}: {VALUES[0]}" for second in SECOND])  # [SECOND]
        sizes = np.add.outer(starts, ends).ravel()  # [KEYS] in their order
        most = min(len(KEYS), self.keys + DISTRACTORS + self.length // SHORTEST_LINE)
        for index, depth, rng in self.indices(draws):
            keys, values, lines = self._pairs(rng, most)
            item = self.make_item(index, values[: self.keys], values[self.keys : self.keys + DISTRACTORS], rng)
            # [lines]; gaps are not needed before it is known which lines are chosen.
            others = Padding(lines[self.keys :], sizes[keys[self.keys :]], np.array([0]))
            question = _question([KEYS[key] for key in keys[: self.keys]])
            depths = spread(depth, self.keys)
            yield Draft(item, partial(_write, draws.name, others, lines[: self.keys], depths, question))

    def _lists_within(self, draws: Draws, tokenizer: Any) -> Iterator[Draft]:
        """Lists of `pairs` lines in other text: `depth` is where the list stands, not the line."""
        if self.pairs > len(KEYS):
            raise UserError(f"task '{draws.name}': pairs: {self.pairs} is more than there are names ({len(KEYS):,})")
        haystack = self.read_haystack(draws, tokenizer)
        for index, depth, rng in self.indices(draws):
            keys, values, lines = self._pairs(rng, self.pairs)
            item = self.make_item(index, values[: self.keys], values[self.keys : self.keys + DISTRACTORS], rng)
            prompt = PROMPT_WITHIN.format(question=_question([KEYS[key] for key in keys[: self.keys]]))
            start = haystack.start(rng)
            rng.shuffle(lines)  # those asked for stand among the others
            yield Draft(item, partial(haystack.write, prompt, start, ["\n" + "".join(lines) + PARAGRAPH], [depth]))

    def _pairs(self, rng: random.Random, count: int) -> tuple[list[int], list[str], list[str]]:
        """Keys (as indices), values and lines of so many pairs; the first `keys` of them are those asked for."""
        keys = rng.sample(range(len(KEYS)), count)
        # Values asked for, and those of wrong candidates, are all different; the rest may repeat.
        values = [str(number) for number in rng.sample(VALUES, self.keys + DISTRACTORS)]
        values += [str(number) for number in rng.choices(VALUES, k=count - len(values))]
        return keys, values, [PAIR.format(key=KEYS[key], value=value) for key, value in zip(keys, values, strict=True)]


class AnsweredPrompt(NamedTuple):
    """A prompt as generation sees it, and the right reply as generation would give it, without the end of the turn.

    Attributes:
        prompt: [T] token ids, chat template and all.
        answer: [A] token ids, at least one.
    """

    prompt: list[int]
    answer: list[int]


def recall_prompts(tokenizer: Any, length: int, items: int, seed: int = 0, **settings: Any) -> list[AnsweredPrompt]:
    """Recall prompts of at most `length` tokens, 97 % of them or more, with the right answers.

    They are others than those of any evaluation with the same seed, and the first of them are the same for any number.

    Args:
        settings: others of the kind's, such as `keys`.

    Raises:
        UserError: as `LongContextTask.make_items`; the tokenizer has no chat template.
    """
    # Here, not above: they import transformers, and a recipe with long contexts is read without them.
    from gendistill.data.chat import render_prompts
    from gendistill.data.replies import reply_ids

    made = Recall(length=length, items=items, **settings).make_items(Draws(seed, PLACEMENT), tokenizer)
    prompts = render_prompts(tokenizer, [item.messages for item in made])
    answers = reply_ids(tokenizer, prompts, [[item.solution] for item in made])
    return [AnsweredPrompt(prompt.ids, answer) for prompt, (answer,) in zip(prompts, answers, strict=True)]


def _question(keys: Sequence[str]) -> str:
    if len(keys) == 1:
        return f"is the value of {keys[0]} in the list above? Answer with the value only"
    return (
        f"are the values of {enumerated(keys)} in the list above? Answer with the values only, in "
        "this order, separated by commas"
    )


def _write(
    name: str, others: Padding, asked: Sequence[str], depths: Sequence[float], question: str, room: int
) -> tuple[str, float]:
    """The list as text; the lines that wrong candidates are taken from are there at any size."""
    most = int(others.sizes[DISTRACTORS:].sum())
    if room > most:
        raise UserError(
            f"task '{name}': there are names for a list of some {most:,} tokens with this tokenizer. Give a shorter "
            "length"
        )
    chosen = [*range(DISTRACTORS), *_lines_for(others.sizes, DISTRACTORS, room)]
    random.Random(question).shuffle(chosen)  # the same order for the same question, whatever the seed
    pieces = [others.pieces[index] for index in chosen]
    between_lines = np.arange(len(chosen) + 1)
    text, depth = Padding(pieces, others.sizes[chosen], between_lines).hide(asked, depths)
    return PROMPT.format(question=question).format(text=text), depth


def _lines_for(sizes: np.ndarray, start: int, room: int) -> list[int]:
    """Console from `start` on that take `room` tokens or as little less as can be.

    They are taken in order but for the last few, which are picked by size: a whole line is much of a short prompt.

    Args:
        sizes: [lines] tokens.
    """
    ends = np.concatenate([[0], np.cumsum(sizes[start:])])  # [lines - start + 1] tokens of so many lines
    fitting = int(np.searchsorted(ends, room, side="right")) - 1
    count = max(0, fitting - TAIL)
    room -= int(ends[count])
    by_size: dict[int, list[int]] = {}  # the lines that are left
    for line in range(start + count, len(sizes)):
        by_size.setdefault(int(sizes[line]), []).append(line)
    sums = _sums({size: len(lines) for size, lines in by_size.items()}, room)
    tail = [by_size[size].pop(0) for size in sums[max(sums)]]
    return [*range(start, start + count), *tail]


def _sums(counts: dict[int, int], most: int) -> dict[int, list[int]]:
    """For each total up to `most` that can be made of the sizes, at most so many of each, one way to make it."""
    made: dict[int, list[int]] = {0: []}
    for total in range(1, most + 1):
        for size, count in counts.items():
            # A smaller total that leaves a line of this size unused.
            part = made.get(total - size)
            if part is not None and part.count(size) < count:
                made[total] = [*part, size]
                break
    return made
