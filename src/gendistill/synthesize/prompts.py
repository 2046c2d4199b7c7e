"""Prompts for the teacher: records of the prompts' sources as chats, questions under all rotations, or bare text."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gendistill.data.chat import render_prompt
from gendistill.data.plain import PlainTexts
from gendistill.data.sources import read_records
from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.kinds import KINDS
from gendistill.evaluate.kinds.item import Draws, Item
from gendistill.names import look_up
from gendistill.recipe.data import QUESTIONS, Prompts, Synthesis
from gendistill.recipe.evaluation import make_task


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: "SOURCE/RECORD/ROTATION", numbers from 0: unique in a set.
        group: "SOURCE/RECORD": the rotations of a question have it in common.
        ids: what the model sees.
        user: the user's turn; for a continuation the text to continue.
        asked: what duplicates and overlap are looked for in: the question, its options in a fixed order.
        item: of a question, with its options as shown, and the examples before it.
        reference: the right reply as the source has it, if it has one.
        tests: program to run after the reply's code.
    """

    id: str
    group: str
    kind: str
    source: str
    record: int
    rotation: int
    ids: list[int]
    user: str
    asked: str  # unlike `user`, the same for all rotations
    item: Item | None = None
    reference: str | None = None
    tests: str | None = None

    @property
    def shots(self) -> tuple[tuple[str, str], ...]:
        """What stands before the user's turn, as pairs of a user's and an assistant's."""
        return () if self.item is None else self.item.shots

    @property
    def is_chat(self) -> bool:
        """Whether the reply is an assistant's turn, rather than more of a plain text."""
        return PROMPT_KINDS[self.kind].is_chat

    @property
    def has_options(self) -> bool:
        """Whether the reply picks one of lettered options, under all their rotations."""
        # Asked of the item, so that a new kind of questions with options is checked under rotations too.
        return self.item is not None and bool(self.item.choices)


def all_prompts(synthesis: Synthesis, tokenizer, seed: int) -> list[Prompt]:
    """All prompts of a set, in the order of their sources.

    Raises:
        UserError: a source cannot be read, a field is missing or of the wrong form, or there are too few records.
    """
    return [
        prompt
        for number, prompts in enumerate(synthesis.prompts)
        for prompt in look_up(PROMPT_KINDS, prompts.kind, "kind of prompts").read(number, prompts, tokenizer, seed)
    ]


def _questions(number: int, prompts: Prompts, tokenizer, seed: int) -> Iterator[Prompt]:
    """Questions as tasks ask them, each under all rotations of its options."""
    # Those of the fields that the task kind knows: last_number has no choices.
    shared = {"kind", "path", "hub", "subset", "question", "choices", "answer"}
    fields = prompts.model_dump(include=shared & KINDS[prompts.kind].model_fields.keys())
    task = make_task(**fields, split=prompts.split or "train", items=prompts.records)
    draws = Draws(seed, f"prompts {number}")
    items = load_items(draws.name, task, seed)
    examples = [item for item in items if item.solution]
    for item in items:
        shown = replace(item, shots=_shots(item, examples, prompts, draws))
        # Without options an item has one form, so that all kinds of questions go the same way.
        for rotation, question in enumerate(shown.rotations()):
            yield _prompt(
                number,
                prompts,
                item.id,
                rotation,
                ids=render_prompt(tokenizer, question.messages),
                user=question.user_turn,
                asked="\n".join([item.question, *item.choices]),
                item=question,
                reference=question.solution,
            )


def _shots(item: Item, examples: Sequence[Item], prompts: Prompts, draws: Draws) -> tuple[tuple[str, str], ...]:
    """Other questions with their answers; others for each item, where an evaluation has the same for all."""
    if not prompts.shots:
        return ()
    if len(examples) <= prompts.shots:
        raise UserError(
            f"{prompts.source.label}: {prompts.shots} shots are asked for, and there are {len(examples)} questions "
            "with answers. Give more records, or fewer shots"
        )
    drawn = draws.of("shots", item.id).sample(examples, prompts.shots + 1)  # one more, as it may be the item itself
    others = [each for each in drawn if each.id != item.id][: prompts.shots]
    return tuple((each.user_turn, each.solution) for each in others)


def _instructions(number: int, prompts: Prompts, tokenizer, seed: int) -> Iterator[Prompt]:
    for record, _, content in _user_turns(prompts, tokenizer, seed):
        yield _prompt(number, prompts, record, **content)


def _programs(number: int, prompts: Prompts, tokenizer, seed: int) -> Iterator[Prompt]:
    """Instructions to write Python, with the tests that it must pass."""
    for record, fields, content in _user_turns(prompts, tokenizer, seed):
        tests = _text(f"{prompts.source.label}: record {record}", fields, prompts.tests)
        yield _prompt(number, prompts, record, tests=tests, **content)


def _user_turns(prompts: Prompts, tokenizer, seed: int) -> Iterator[tuple[int, dict, dict]]:
    """(index, fields, what a `Prompt` holds) of the records to prompt with."""
    for record, fields in _drawn(prompts, seed):
        where = f"{prompts.source.label}: record {record}"
        user = _text(where, fields, prompts.prompt)
        # Many records have no input of their own; their instruction stands alone.
        if prompts.input is not None and fields.get(prompts.input):
            user += "\n\n" + _text(where, fields, prompts.input)
        yield (
            record,
            fields,
            {
                "ids": render_prompt(tokenizer, [{"role": "user", "content": user}]),
                "user": user,
                "asked": user,
                "reference": _text(where, fields, prompts.completion) if prompts.completion is not None else None,
            },
        )


def _continuations(number: int, prompts: Prompts, tokenizer, seed: int) -> Iterator[Prompt]:
    # No template: the model is to continue the text as in pretraining, also when tuned to chat.
    plain = PlainTexts(tokenizer)
    for record, fields in _drawn(prompts, seed):
        where = f"{prompts.source.label}: record {record}"
        text = _text(where, fields, prompts.text)
        (ids,) = plain.encode([text])
        if isinstance(ids, UserError):
            raise UserError(f"{where}: {ids}")
        ids = ids[: prompts.prompt_tokens].tolist()
        start = tokenizer.decode(ids[len(plain.start) :])  # what the model sees, which may end within a word
        yield _prompt(
            number,
            prompts,
            record,
            ids=ids,
            user=start,
            asked=start,
            reference=text,  # how the source continues
        )


@dataclass(frozen=True)
class PromptKind:
    """How a source's records become prompts, and whether they are chats."""

    read: Callable[..., Iterator[Prompt]]
    is_chat: bool = True


# Questions are read by the task kinds of the same names; the others are of no use for evaluation.
PROMPT_KINDS = {
    "instruction": PromptKind(_instructions),
    **dict.fromkeys(QUESTIONS, PromptKind(_questions)),
    "code": PromptKind(_programs),
    "continuation": PromptKind(_continuations, is_chat=False),
}


def _prompt(number: int, prompts: Prompts, record: int, rotation: int = 0, **content) -> Prompt:
    """A prompt of a record of the set's source of that number."""
    return Prompt(
        id=f"{number}/{record}/{rotation}",
        group=f"{number}/{record}",
        kind=prompts.kind,
        source=prompts.source.label,
        record=record,
        rotation=rotation,
        **content,
    )


def _drawn(prompts: Prompts, seed: int) -> list[tuple[int, dict]]:
    """(index, record) of the records to prompt with, in their source's order."""
    # Numbered before any are drawn: the number is that of the record in its source.
    records = list(enumerate(read_records(prompts.source, seed)))
    if prompts.records is None:
        return records
    if prompts.records > len(records):
        raise UserError(f"{prompts.source.label}: {prompts.records} records are asked for, there are {len(records)}")
    return sorted(random.Random(f"{seed}/{prompts.source.label}").sample(records, prompts.records), key=lambda r: r[0])


def _text(where: str, fields: dict, name: str) -> str:
    if name not in fields:
        raise UserError(f"{where}: no field '{name}'; it has: {', '.join(fields)}")
    if not isinstance(fields[name], str) or not fields[name].strip():
        raise UserError(f"{where}: field '{name}' should be a text, it is {fields[name]!r}")
    return fields[name].strip()
