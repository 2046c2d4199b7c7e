"""Small sums with their steps written out, and the pairs of numbers held out for the evaluation."""

import random
import zlib
from typing import NamedTuple

HELD_OUT_SHARE = 10  # one pair of operands in this many is never seen in training


class Sum(NamedTuple):
    """Two operands and what is done with them; never below zero."""

    sign: str  # "+", "-" or "x"
    left: int
    right: int

    @property
    def result(self) -> int:
        return {"+": self.left + self.right, "-": self.left - self.right, "x": self.left * self.right}[self.sign]


# Ways to ask for a sum. The held-out ones are asked in the evaluation only, and are near to those trained on: what is
# examined is the sum, not whether the question is understood.
QUESTIONS = {
    "+": (
        "What is {left} + {right}?",
        "Calculate {left} + {right}.",
        "What is {left} plus {right}?",
        "Add {left} and {right}.",
        "What is the sum of {left} and {right}?",
        "{left} + {right} = ?",
        "How much is {left} and {right} together?",
    ),
    "-": (
        "What is {left} - {right}?",
        "Calculate {left} - {right}.",
        "What is {left} minus {right}?",
        "Take {right} from {left}.",
        "What is the difference of {left} and {right}?",
        "{left} - {right} = ?",
        "How much is {left} less {right}?",
    ),
    "x": (
        "What is {left} x {right}?",
        "Calculate {left} x {right}.",
        "What is {left} times {right}?",
        "Multiply {left} and {right}.",
        "What is the product of {left} and {right}?",
        "{left} x {right} = ?",
        "How much is {left} multiplied by {right}?",
    ),
}
HELD_OUT_QUESTIONS = {
    "+": (
        "How much is {left} + {right}?",
        "Calculate the sum of {left} and {right}.",
        "How much is {left} plus {right}?",
    ),
    "-": ("How much is {left} - {right}?", "Calculate {left} minus {right}.", "How much is {left} minus {right}?"),
    "x": ("How much is {left} x {right}?", "Calculate {left} times {right}.", "How much is {left} times {right}?"),
}
# {name} and {other} are people, {thing} a plural that can be counted.
STORIES = {
    "+": (
        "{name} has {left} {thing} and buys {right} more. How many {thing} does {name} have now?",
        "{name} has {left} {thing}. {other} gives {name} {right} more. How many {thing} does {name} have?",
        "There are {left} {thing} in one box and {right} {thing} in another. How many {thing} are there together?",
        "{name} has {left} {thing} and {other} has {right}. How many {thing} do they have together?",
    ),
    "-": (
        "{name} has {left} {thing} and sells {right} of them. How many {thing} does {name} have now?",
        "{name} had {left} {thing}. {name} gives {right} to {other}. How many {thing} are left?",
        "There are {left} {thing} in a box. {name} takes {right} of them. How many {thing} are left in the box?",
        "{name} has {left} {thing} and {other} has {right}. How many more {thing} does {name} have?",
    ),
    "x": (
        "{name} has {left} boxes with {right} {thing} in each. How many {thing} does {name} have?",
        "There are {left} bags with {right} {thing} in each bag. How many {thing} are there together?",
        "{name} buys {right} {thing} on each of {left} days. How many {thing} does {name} have now?",
        "Each of {left} children has {right} {thing}. How many {thing} do they have together?",
    ),
}
HELD_OUT_STORIES = {
    "+": ("{name} had {left} {thing} and buys {right} more. How many {thing} does {name} have?",),
    "-": ("{name} had {left} {thing} and sells {right} of them. How many {thing} are left?",),
    "x": ("{name} buys {left} boxes with {right} {thing} in each. How many {thing} does {name} have now?",),
}
NAMES = (
    "Tom",
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jack",
    "Laura",
    "Max",
    "Nina",
    "Oscar",
    "Rosa",
)
THINGS = (
    "apples",
    "books",
    "pens",
    "coins",
    "stamps",
    "marbles",
    "eggs",
    "cards",
    "shells",
    "stones",
    "nuts",
    "flowers",
    "tickets",
    "oranges",
)


def is_held_out(sign: str, left: int, right: int) -> bool:
    """Whether this pair is for the evaluation only; a commutative sum is so with both orders alike."""
    if sign != "-":
        left, right = sorted((left, right))
    # By a checksum and not by `hash`, which is another one in every process.
    return zlib.crc32(f"{left}{sign}{right}".encode()) % HELD_OUT_SHARE == 0


def draw_sum(rng: random.Random, held_out: bool) -> Sum:
    """A random sum: two-digit + two-digit, two-digit - smaller two-digit, or one-digit x two-digit in either order."""
    while True:
        sign = rng.choice("+-x")
        left, right = rng.randint(10, 99), rng.randint(10, 99)
        if sign == "-":  # no result below zero
            left, right = max(left, right), min(left, right)
        elif sign == "x":
            left = rng.randint(2, 9)  # one digit, so that the steps are as few as those of other sums
            if rng.random() < 0.5:
                left, right = right, left
        if is_held_out(sign, left, right) == held_out:
            return Sum(sign, left, right)


def draw_table_entry(rng: random.Random) -> Sum:
    """An entry of the small multiplication table; these are facts the longer sums stand on, so none is held out."""
    return Sum("x", rng.randint(2, 9), rng.randint(2, 9))


def solution(task: Sum) -> str:
    """The sum, its steps from the units upwards, and "The answer is N."."""
    # Steps before the result: the model writes from left to right, and each step needs only digits already written.
    steps = {"+": _addition, "-": _subtraction, "x": _multiplication}[task.sign](task.left, task.right)
    return f"{task.left} {task.sign} {task.right}: {steps} The answer is {task.result}."


def _addition(left: int, right: int) -> str:
    units = left % 10 + right % 10
    tens = left // 10 + right // 10
    first = f"{left % 10} + {right % 10} = {units}"
    second = f"{left // 10} + {right // 10}"
    if units < 10:  # nothing to carry
        return f"{first}. {second} = {tens}."
    return f"{first}, carry 1. {second} + 1 = {tens + 1}."


def _subtraction(left: int, right: int) -> str:
    units, tens = left % 10 - right % 10, left // 10 - right // 10
    second = f"{left // 10} - {right // 10}"
    if units >= 0:  # nothing to borrow
        return f"{left % 10} - {right % 10} = {units}. {second} = {tens}."
    return f"{left % 10 + 10} - {right % 10} = {units + 10}, borrow 1. {second} - 1 = {tens - 1}."


def _multiplication(left: int, right: int) -> str:
    digit, number = sorted((left, right))  # one digit times up to two
    if number < 10:  # an entry of the table, known by heart
        return f"{digit} x {number} = {digit * number}."
    units, tens = digit * (number % 10), digit * (number // 10)
    first = f"{digit} x {number % 10} = {units}"
    second = f"{digit} x {number // 10} = {tens}"
    if units < 10:  # nothing to carry
        return f"{first}. {second}."
    return f"{first}, carry {units // 10}. {second}, {tens} + {units // 10} = {tens + units // 10}."


def question(task: Sum, rng: random.Random, held_out: bool) -> str:
    """A question for this sum, one in three a little story."""
    # Entries of the multiplication table are asked for plainly.
    table = task.sign == "x" and task.left < 10 and task.right < 10
    if table or rng.random() < 0.67:
        questions = HELD_OUT_QUESTIONS if held_out else QUESTIONS
        return rng.choice(questions[task.sign]).format(left=task.left, right=task.right)
    if task.sign == "x":  # a story has few boxes with many things in each
        task = Sum("x", *sorted((task.left, task.right)))
    stories = HELD_OUT_STORIES if held_out else STORIES
    name, other = rng.sample(NAMES, 2)
    return rng.choice(stories[task.sign]).format(
        left=task.left, right=task.right, thing=rng.choice(THINGS), name=name, other=other
    )
