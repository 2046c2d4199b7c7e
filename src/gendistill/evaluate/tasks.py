"""Question sets: from records to items that can be ranked, and the chat that both protocols put to the model."""

import random
import re
from dataclasses import dataclass, replace

from gendistill.data.sources import read_records
from gendistill.errors import UserError
from gendistill.evaluate.parsing import LETTERS, Answer, last_number, normalise, parse_letter, parse_short
from gendistill.recipe import Source, Task

DISTRACTORS = 3  # with the right answer, four candidates: chance is 25 %


@dataclass(frozen=True)
class Item:
    """One question.

    `candidates` are the replies that ranking compares, `candidates[gold]` the right one. `answers` are the accepted
    answers. `choices` are the option texts of a multiple_choice question. `shots` are worked examples, as pairs of a
    user's and an assistant's turn. `worked` is the right answer as an assistant would put it, or the worked solution.
    `id` is the index of the record in its source.
    """

    id: int
    kind: str
    question: str
    candidates: tuple[str, ...]
    gold: int
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    shots: tuple[tuple[str, str], ...] = ()
    worked: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the reply asked for: the worked examples, then the question."""
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
                gold=(self.gold - by) % len(self.choices),
                worked=self.candidates[(self.gold - by) % len(self.choices)],
            )
            for by in range(len(self.choices))
        ]

    def parse(self, reply: str) -> Answer:
        """Reads the answer off a generated reply and marks it."""
        if self.kind == "short_answer":
            return parse_short(reply, self.answers, self.candidates)
        if self.kind == "multiple_choice":
            letter = parse_letter(reply, self.choices)
            return Answer(letter, letter == self.candidates[self.gold])
        number = last_number(reply)
        return Answer(number, number in self.answers)


@dataclass(frozen=True)
class _Record:
    """A checked record. `options` are the texts of its `choices`, `gold` the index of the right one."""

    index: int
    question: str
    options: tuple[str, ...]
    gold: int | None
    answers: tuple[str, ...]
    worked: str


def user_turn(question: str, choices: tuple[str, ...] = ()) -> str:
    """The user's turn: the question, with lettered options and the form of the reply if there are any."""
    if not choices:
        return question
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question}\n{options}\nAnswer with the letter."


def load_items(name: str, task: Task, seed: int) -> list[Item]:
    """Reads a task's questions, in the order of their source.

    Which items, worked examples and distractors are drawn depends on the seed and the task's name alone. The worked
    examples are the same for all items; a record whose question is in the test source is never one.

    Raises:
        UserError: the source cannot be read, a field is missing or of the wrong form, or there are fewer items or
            worked examples than asked for.
    """
    records = _read(name, task, Source(path=task.path, hub=task.hub, subset=task.subset, split=task.split), seed)
    if task.items is not None and task.items > len(records):
        raise UserError(f"task '{name}' asks for {task.items} items; its source has {len(records)}")
    shots = _draw_shots(name, task, seed, records)
    drawn = records
    if task.items is not None:
        rng = random.Random(f"{seed}/{name}/items")
        drawn = [records[index] for index in sorted(rng.sample(range(len(records)), task.items))]
    pool = {normalise(record.answers[0]): record.answers[0] for record in records}
    return [_item(name, task.kind, record, pool, seed, shots) for record in drawn]


def _draw_shots(name: str, task: Task, seed: int, records: list[_Record]) -> tuple[tuple[str, str], ...]:
    if not task.shots:
        return ()
    source = Source(
        path=task.shots_path, hub=None if task.shots_path else task.hub, subset=task.subset, split=task.shots_split
    )
    asked = {normalise(record.question) for record in records}
    examples = _read(name, task, source, seed)
    unseen = [record for record in examples if normalise(record.question) not in asked]
    if len(unseen) < task.shots:
        raise UserError(
            f"task '{name}' asks for {task.shots} worked examples; {source.label} has {len(unseen)} "
            f"({len(examples) - len(unseen)} more are questions of the test itself)"
        )
    drawn = random.Random(f"{seed}/{name}/shots").sample(unseen, task.shots)
    with_options = task.kind == "multiple_choice"
    return tuple(
        (user_turn(record.question, record.options if with_options else ()), record.worked) for record in drawn
    )


def _read(name: str, task: Task, source: Source, seed: int) -> list[_Record]:
    return [
        _READERS[task.kind](f"task '{name}', record {index} of {source.label}", index, task, fields)
        for index, fields in enumerate(read_records(source, seed))
    ]


def _field(where: str, fields: dict, name: str):
    if name not in fields:
        raise UserError(f"{where}: no field '{name}'; it has: {', '.join(map(str, fields))}")
    return fields[name]


def _question(where: str, task: Task, fields: dict) -> str:
    question = _field(where, fields, task.question)
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: field '{task.question}' should be a question, it is {question!r}")
    return question.strip()


def _options(where: str, task: Task, fields: dict) -> tuple[str, ...]:
    options = _field(where, fields, task.choices)
    if not isinstance(options, list | tuple) or not 2 <= len(options) <= len(LETTERS):
        raise UserError(
            f"{where}: field '{task.choices}' should be a list of 2 to {len(LETTERS)} texts, it is {options!r}"
        )
    return tuple(str(option) for option in options)


def _multiple_choice(where: str, index: int, task: Task, fields: dict) -> _Record:
    options = _options(where, task, fields)
    answer = _field(where, fields, task.answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        raise UserError(
            f"{where}: field '{task.answer}' should be the index of the right choice, 0 to {len(options) - 1}; "
            f"it is {answer!r}"
        )
    question = _question(where, task, fields)
    return _Record(index, question, options, answer, (options[answer],), LETTERS[answer])


def _short_answer(where: str, index: int, task: Task, fields: dict) -> _Record:
    answers = _field(where, fields, task.answer)
    answers = tuple(str(answer) for answer in (answers if isinstance(answers, list | tuple) else [answers]))
    if not answers or not all(normalise(answer) for answer in answers):
        raise UserError(f"{where}: field '{task.answer}' should be a text or a list of texts, it is {list(answers)!r}")
    options, gold = (), None
    if fields.get(task.choices) is not None:
        options = _options(where, task, fields)
        if not all(option.strip() for option in options):
            raise UserError(f"{where}: an empty text in '{task.choices}': {list(options)!r}")
        accepted = {normalise(answer) for answer in answers}
        right = [position for position, option in enumerate(options) if normalise(option) in accepted]
        if len(right) != 1:
            raise UserError(
                f"{where}: exactly one of '{task.choices}' should be an accepted answer, {len(right)} are; "
                f"choices: {list(options)!r}, accepted: {list(answers)!r}"
            )
        gold = right[0]
    return _Record(index, _question(where, task, fields), options, gold, answers, answers[0])


def _last_number(where: str, index: int, task: Task, fields: dict) -> _Record:
    answer = str(_field(where, fields, task.answer))
    number = last_number(answer)
    if number is None:
        raise UserError(f"{where}: no number in field '{task.answer}': {answer!r}")
    return _Record(index, _question(where, task, fields), (), None, (number,), worked_answer(answer))


_READERS = {"multiple_choice": _multiple_choice, "short_answer": _short_answer, "last_number": _last_number}


def worked_answer(answer: str) -> str:
    """GSM8K's solution as an assistant would put it: no <<calculator notes>>, "The answer is 18." for "#### 18"."""
    return re.sub(r"####\s*(.+?)\s*$", r"The answer is \1.", re.sub(r"<<[^<>]*>>", "", answer)).strip()


def _item(name: str, kind: str, record: _Record, pool: dict[str, str], seed: int, shots: tuple) -> Item:
    shared = {"id": record.index, "kind": kind, "question": record.question, "answers": record.answers}
    shared |= {"shots": shots, "worked": record.worked}
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
    return Item(candidates=tuple(candidates), gold=gold, **shared)


def _distractors(name: str, kind: str, record: _Record, pool: dict[str, str], seed: int) -> list[str]:
    """Other items' answers; for numbers those with as many digits, so that length does not give the right one away."""
    accepted = {normalise(answer) for answer in record.answers}
    others = [text for key, text in pool.items() if key not in accepted]
    if not others:
        raise UserError(f"task '{name}': all items have the same answer, so there is nothing to rank it against")
    rng = random.Random(f"{seed}/{name}/{record.index}/distractors")
    if kind == "short_answer":
        return rng.sample(others, min(DISTRACTORS, len(others)))
    rng.shuffle(others)
    return sorted(others, key=lambda number: abs(len(number) - len(record.answers[0])))[:DISTRACTORS]
