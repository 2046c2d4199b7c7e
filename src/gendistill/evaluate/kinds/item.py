"""An item, its few-shot examples and its grades: what every task kind makes and everything above it evaluates."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from gendistill.names import LETTERS


class Answer(NamedTuple):
    """What was extracted from a reply: `parsed` is None if no single answer could be read."""

    parsed: str | None
    correct: bool  # never without `parsed`


@dataclass(frozen=True)
class Grades:
    """The strict and the flexible extraction of a reply, and what its record should hold besides."""

    strict: Answer
    flexible: Answer
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """One question, from the checked record to what both protocols put to the model.

    Attributes:
        id: index of the record in its source, those that are dropped counted too.
        kind: the task kind that made it, and that grades replies to it.
        question: the user's turn, but for the options.
        candidates: the replies that ranking compares; none if the item is not ranked.
        gold: indices of the right candidates.
        answers: accepted answers.
        choices: texts of a question's lettered options.
        checks: what grading needs beyond answers, or what a record should say of the item; each kind has its own.
        shots: few-shot examples, as pairs of a user's and an assistant's turn.
        solution: the right answer as an assistant would put it; empty if there is none.
        subject: few-shot examples and wrong candidates are taken from items of the same one.
    """

    id: int
    kind: str  # a name in `KINDS`
    question: str
    candidates: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    checks: dict[str, Any] = field(default_factory=dict)
    shots: tuple[tuple[str, str], ...] = ()
    solution: str = ""
    subject: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the reply: the few-shot examples, then the question."""
        turns = []
        # As turns of a conversation, not as text in one: the template is then applied as in training on chats.
        for user, assistant in self.shots:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return turns + [{"role": "user", "content": self.user_turn}]

    @property
    def user_turn(self) -> str:
        """The question, with lettered options and the form of the reply if it has any."""
        return user_turn(self.question, self.choices)

    def rotations(self) -> list["Item"]:
        """The item with its options moved up by 0, 1, ... positions: each option once at each letter.

        An item without options has one form only.
        """
        # The first is the item itself, so that [1:] are the forms that were not there yet.
        return [self._rotated(by) for by in range(len(self.choices))] or [self]

    def _rotated(self, by: int) -> "Item":
        choices = self.choices[by:] + self.choices[:by]
        gold = tuple((index - by) % len(choices) for index in self.gold)
        # The letters stay where they are, so the right one is another letter in each rotation.
        return replace(self, choices=choices, gold=gold, solution=self.candidates[gold[0]])


def user_turn(question: str, choices: Sequence[str] = ()) -> str:
    """The user's turn: the question, with lettered options and the form of the reply if there are any."""
    if not choices:
        return question
    # Options that are more than letters are an error where they are read, so none is lost here.
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question}\n{options}\nAnswer with the letter."


@dataclass(frozen=True)
class Draws:
    """Random numbers of one task. Each purpose has its own stream, so that an item's draws do not depend on others'."""

    seed: int
    name: str  # of the task

    def of(self, *purpose: object) -> random.Random:
        """The stream of one purpose ("items"; item 7's "options")."""
        # Seeded by a text, which Python hashes the same way on every machine and in every process.
        return random.Random("/".join(map(str, (self.seed, self.name, *purpose))))
