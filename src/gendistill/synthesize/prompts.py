"""What the teacher is asked: records of the prompts' sources as chats, questions under all rotations, or bare text."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from gendistill.data.chat import render_prompt
from gendistill.data.sources import read_records
from gendistill.errors import UserError
from gendistill.evaluate.items import Item, load_items
from gendistill.recipe.data import Prompts, Synthesis
from gendistill.recipe.evaluation import Task

QUESTIONS = ("multiple_choice", "short_answer", "last_number")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: "SOURCE/RECORD/ROTATION", numbers from 0: unique in a set.
        group: "SOURCE/RECORD": the rotations of a question have it in common.
        ids: what the model sees.
        user: the user's turn; for a continuation the text to go on from.
        asked: what duplicates and overlap are looked for in: the question, its options in a fixed order.
        item: of a question, with its options as asked.
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
    asked: str
    item: Item | None = None
    reference: str | None = None
    tests: str | None = None


def prefill(synthesis: Synthesis, tokenizer, seed: int) -> list[Prompt]:
    """All prompts of a set, in the order of their sources.

    Raises:
        UserError: a source cannot be read, a field is missing or of the wrong form, or there are too few records.
    """
    return [
        prompt
        for number, prompts in enumerate(synthesis.prompts)
        for prompt in _READERS[prompts.kind](number, prompts, tokenizer, seed)
    ]


def _questions(number: int, prompts: Prompts, tokenizer, seed: int) -> Iterator[Prompt]:
    fields = prompts.model_dump(include={"kind", "path", "hub", "subset", "question", "choices", "answer"})
    task = Task(**fields, split=prompts.split or "train", items=prompts.records)
    for item in load_items(f"prompts {number}", task, seed):
        turned = item.rotations() if item.kind == "multiple_choice" else [item]
        for rotation, question in enumerate(turned):
            (message,) = question.messages
            yield _prompt(
                number,
                prompts,
                item.id,
                rotation,
                ids=render_prompt(tokenizer, question.messages),
                user=message["content"],
                asked="\n".join([item.question, *item.choices]),
                item=question,
                reference=question.worked,
            )


def _instructions(number: int, prompts: Prompts, tokenizer, seed: int) -> Iterator[Prompt]:
    for record, fields in _drawn(prompts, seed):
        where = f"{prompts.source.label}: record {record}"
        user = _text(where, fields, prompts.prompt)
        if prompts.input is not None and fields.get(prompts.input):
            user += "\n\n" + _text(where, fields, prompts.input)
        yield _prompt(
            number,
            prompts,
            record,
            ids=render_prompt(tokenizer, [{"role": "user", "content": user}]),
            user=user,
            asked=user,
            reference=_text(where, fields, prompts.completion) if prompts.completion is not None else None,
            tests=_text(where, fields, prompts.tests) if prompts.kind == "code" else None,
        )


def _continuations(number: int, prompts: Prompts, tokenizer, seed: int) -> Iterator[Prompt]:
    for record, fields in _drawn(prompts, seed):
        text = _text(f"{prompts.source.label}: record {record}", fields, prompts.text)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: prompts.prompt_tokens]
        start = tokenizer.decode(ids)
        yield _prompt(
            number,
            prompts,
            record,
            ids=ids,
            user=start,
            asked=start,
            reference=text,
        )


_READERS = dict.fromkeys(QUESTIONS, _questions) | dict.fromkeys(("instruction", "code"), _instructions)
_READERS["continuation"] = _continuations


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
    """(index, record) of the records to ask, in their source's order."""
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
