"""Question sets: from records to items that can be asked, and the chat that both protocols put to the model."""

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gendistill.data.sources import read_records
from gendistill.errors import UserError
from gendistill.evaluate.parsing import (
    Answer,
    last_number,
    normalise,
    number_flexibly,
    parse_letter,
    parse_letter_flexibly,
    parse_short,
    parse_short_flexibly,
)
from gendistill.evaluate.records import Record, read_record
from gendistill.names import LETTERS
from gendistill.recipe.data import Source
from gendistill.recipe.evaluation import Task

DISTRACTORS = 3  # with the right answer, four candidates: chance is 25 %
UNRANKED = ("code", "instructions")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: index of the record in its source, those that are dropped counted too.
        question: the user's turn, but for the options.
        candidates: the replies that ranking compares; none if the item is not ranked.
        gold: indices of the right candidates.
        answers: accepted answers.
        choices: texts of a multiple_choice question's options.
        checks: what marking needs beyond answers. code: {"prefix": code a reply may go on from, "entry_point": name of
            the function or None, "tests": program that raises if the reply's is wrong}; instructions:
            {"instruction_ids": names, "kwargs": their arguments}; long contexts: {"length", "depth"}.
        shots: few-shot examples, as pairs of a user's and an assistant's turn.
        worked: the right answer as an assistant would put it, or the worked solution; empty if there is none.
    """

    id: int
    kind: str
    question: str
    candidates: tuple[str, ...]
    gold: tuple[int, ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    checks: dict[str, Any] = field(default_factory=dict)
    shots: tuple[tuple[str, str], ...] = ()
    worked: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the reply asked for: the few-shot examples, then the question."""
        turns = []
        for user, assistant in self.shots:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return turns + [{"role": "user", "content": user_turn(self.question, self.choices)}]

    def rotations(self) -> list["Item"]:
        """A multiple_choice question with its options moved up by 0, 1, ... places: each option once at each letter."""
        return [
            replace(
                self,
                choices=self.choices[by:] + self.choices[:by],
                gold=(gold := tuple((place - by) % len(self.choices) for place in self.gold)),
                worked=self.candidates[gold[0]],
            )
            for by in range(len(self.choices))
        ]

    def parse(self, reply: str) -> Answer:
        """Reads the answer off a generated reply, strictly, and marks it.

        Programs and instructions are marked many at a time instead, by `gendistill.evaluate.grading`.
        """
        match self.kind:
            case "multiple_choice":
                letter = parse_letter(reply, self.choices)
                return Answer(letter, letter in [self.candidates[place] for place in self.gold])
            case "short_answer":
                return parse_short(reply, self.answers, self.candidates)
            case "last_word":
                return parse_short(" ".join(reply.split()[:1]), self.answers, ())
            case "last_number":
                number = last_number(reply)
                return Answer(number, number in self.answers)
            case "needle" | "recall":
                from gendistill.evaluate.long_context import parse_value  # which makes items of this class

                return parse_value(reply, self.answers)
        raise NotImplementedError(f"replies of kind {self.kind} are marked by gendistill.evaluate.grading")

    def parse_flexibly(self, reply: str) -> Answer:
        """Reads and marks what a patient person would take for the answer, wherever it stands in the reply."""
        match self.kind:
            case "multiple_choice":
                letter = parse_letter_flexibly(reply, self.choices)
                return Answer(letter, letter in [self.candidates[place] for place in self.gold])
            case "short_answer":
                return parse_short_flexibly(reply, self.answers, self.candidates)
            case "last_word":
                return parse_short_flexibly(reply, self.answers, ())
            case "last_number":
                number = number_flexibly(reply)
                return Answer(number, number in self.answers)
        return self.parse(reply)


def user_turn(question: str, choices: tuple[str, ...] = ()) -> str:
    """The user's turn: the question, with lettered options and the form of the reply if there are any."""
    if not choices:
        return question
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question}\n{options}\nAnswer with the letter."


def load_items(name: str, task: Task, seed: int, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Item]:
    """Reads a task's questions, in the order of their source, or makes them where the kind has no source.

    Which items, few-shot examples and distractors are drawn depends on the seed and the task's name alone. The worked
    examples are the same for all items (of a subject, with `shots_by`); a record whose question is in the test source
    is never one.

    Args:
        tokenizer: for kinds that are made on the spot.

    Raises:
        UserError: the source cannot be read, a field is missing or of the wrong form, or there are fewer items or
            few-shot examples than asked for.
    """
    if task.is_made:
        from gendistill.evaluate.long_context import long_context_items  # which makes items of the class above

        return long_context_items(name, task, seed, tokenizer)
    records = _read(name, task, _sources(task), seed)
    if task.items is not None and task.items > len(records):
        raise UserError(f"task '{name}' asks for {task.items} items; its source has {len(records)}")
    drawn = records
    if task.items is not None:
        rng = random.Random(f"{seed}/{name}/items")
        drawn = [records[index] for index in sorted(rng.sample(range(len(records)), task.items))]
    shots = _shots(name, task, seed, records)
    pools = defaultdict(dict)  # answers that other items have, by subject
    for record in records:
        for answer in record.answers[:1]:
            pools[record.subject][normalise(answer)] = answer
    return [_item(name, task.kind, record, pools[record.subject], seed, shots[record.subject]) for record in drawn]


def _sources(task: Task) -> list[Source]:
    subsets = task.subset or (None,)
    return [Source(path=task.path, hub=task.hub, subset=subset, split=task.split) for subset in subsets]


def _shots_sources(name: str, task: Task) -> list[Source]:
    if task.shots_path is None and task.shots_hub is None and task.path is not None and not Path(task.path).is_dir():
        raise UserError(
            f"task '{name}' asks for {task.shots} few-shot examples, and {task.path} holds its test items. Give a file "
            "with examples as shots_path, a folder with both splits as path, or shots: 0"
        )
    elsewhere = task.shots_path is not None or task.shots_hub is not None
    path, hub = (task.shots_path, task.shots_hub) if elsewhere else (task.path, task.hub)
    subsets = task.shots_subset or (() if elsewhere else task.subset) or (None,)
    return [Source(path=path, hub=hub, subset=subset, split=task.shots_split) for subset in subsets]


def _shots(name: str, task: Task, seed: int, records: list[Record]) -> dict[str | None, tuple[tuple[str, str], ...]]:
    """The few-shot examples for each subject that the records have."""
    subjects = list(dict.fromkeys(record.subject for record in records))
    if not task.shots:
        return dict.fromkeys(subjects, ())
    sources = _shots_sources(name, task)
    try:
        # Corrections say what to do with test items; the examples' source need not know them.
        examples = _read(name, task.model_copy(update={"corrections": None}), sources, seed)
    except UserError as error:
        raise UserError(
            f"task '{name}' asks for {task.shots} few-shot examples, which cannot be read: {error}. Give their source "
            "by shots_split and shots_path or shots_hub, or set shots: 0"
        ) from None
    asked = {_fingerprint(record) for record in records}
    unseen = [record for record in examples if record.worked and _fingerprint(record) not in asked]
    if len(unseen) < task.shots:
        raise UserError(
            f"task '{name}' asks for {task.shots} few-shot examples; {sources[0].label} has {len(unseen)} "
            f"({len(examples) - len(unseen)} more are questions of the test itself, or without an answer)"
        )
    return {subject: _draw_shots(name, task, seed, unseen, subject) for subject in subjects}


def _draw_shots(name: str, task: Task, seed: int, examples: list[Record], subject: str | None):
    own = [record for record in examples if record.subject == subject]
    if not own:
        raise UserError(f"task '{name}': no few-shot example has '{subject}' in field '{task.shots_by}'")
    rng = random.Random(f"{seed}/{name}/shots" + (f"/{subject}" if task.shots_by else ""))
    drawn = rng.sample(own, min(task.shots, len(own)))
    if missing := task.shots - len(drawn):  # the count is a promise: too few of the subject, so some of the others
        drawn = rng.sample([record for record in examples if record.subject != subject], missing) + drawn
    with_options = task.kind == "multiple_choice"
    return tuple(
        (user_turn(record.question, record.options if with_options else ()), record.worked) for record in drawn
    )


def _fingerprint(record: Record) -> tuple[str, ...]:
    """The same for a question asked twice, options in any order. A stem alone ("Which is true?") may come again."""
    return normalise(record.question), *sorted(map(normalise, record.options))


def _read(name: str, task: Task, sources: list[Source], seed: int) -> list[Record]:
    records = []
    fields = ((source, each) for source in sources for each in read_records(source, seed))
    for index, (source, each) in enumerate(fields):
        if len(sources) > 1:
            each = {"subject": source.subset} | each
        record = read_record(f"task '{name}', record {index} of {source.label}", index, task, each)
        if record is not None:
            records.append(_lettered(name, task, record, seed))
    return records


def _lettered(name: str, task: Task, record: Record, seed: int) -> Record:
    """A multiple_choice record with its options in the order they are shown, and its letter as the worked answer."""
    if task.kind != "multiple_choice":
        return record
    order = list(range(len(record.options)))
    if task.shuffle:
        random.Random(f"{seed}/{name}/{record.index}/options").shuffle(order)
    gold = tuple(place for place, option in enumerate(order) if option in record.gold)
    options = tuple(record.options[option] for option in order)
    return replace(record, options=options, gold=gold, worked=LETTERS[gold[0]])


def _item(name: str, kind: str, record: Record, pool: dict[str, str], seed: int, shots: tuple) -> Item:
    shared = {"id": record.index, "kind": kind, "question": record.question, "answers": record.answers}
    shared |= {"shots": shots, "worked": record.worked, "checks": record.checks}
    if kind in UNRANKED:
        return Item(candidates=(), gold=(), **shared)
    if kind == "multiple_choice":
        letters = tuple(LETTERS[: len(record.options)])
        return Item(candidates=letters, gold=record.gold, choices=record.options, **shared)
    if record.options:
        return Item(candidates=record.options, gold=record.gold, **shared)
    right = record.answers[0]
    candidates = [right, *_distractors(name, kind, record, pool, seed)]
    random.Random(f"{seed}/{name}/{record.index}/order").shuffle(candidates)
    gold = candidates.index(right)
    if kind == "last_number":
        candidates = [f"The answer is {number}." for number in candidates]
    return Item(candidates=tuple(candidates), gold=(gold,), **shared)


def _distractors(name: str, kind: str, record: Record, pool: dict[str, str], seed: int) -> list[str]:
    """Other items' answers; for numbers those with as many digits, so that length does not give the right one away."""
    accepted = {normalise(answer) for answer in record.answers}
    others = [text for key, text in pool.items() if key not in accepted]
    if not others:
        raise UserError(f"task '{name}': all items have the same answer, so there is nothing to rank it against")
    rng = random.Random(f"{seed}/{name}/{record.index}/distractors")
    if kind != "last_number":
        return rng.sample(others, min(DISTRACTORS, len(others)))
    rng.shuffle(others)
    return sorted(others, key=lambda number: abs(len(number) - len(record.answers[0])))[:DISTRACTORS]
