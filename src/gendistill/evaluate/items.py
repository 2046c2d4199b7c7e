"""Items of a task: drawn from its source with few-shot examples and candidates, or made on the spot."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from gendistill.data.sources import read_checked_records
from gendistill.errors import MissingPackage, UserError
from gendistill.evaluate.kinds.base import FewShotTask, SourcedTask, TaskSettings
from gendistill.evaluate.kinds.item import Draws, Item
from gendistill.evaluate.kinds.shared.fields import Fields
from gendistill.evaluate.kinds.shared.words import normalise
from gendistill.recipe.data import Source

MOST_MALFORMED = 0.25  # of the records; where more are, the task names the wrong fields
SHOWN = 3  # malformed records of a task that are shown one by one
logger = logging.getLogger(__name__)
Shots = tuple[tuple[str, str], ...]  # few-shot examples, as pairs of a user's and an assistant's turn


class Loaded(NamedTuple):
    """The items of a task, and how many records of their source were skipped as malformed."""

    items: list[Item]
    malformed: int = 0


def load_items(
    name: str, task: TaskSettings, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Item]:
    """Reads a task's items, in the order of their source, or makes them where the kind has no source.

    Which items, few-shot examples and distractors are drawn depends on the seed and the task's name alone. The few-shot
    examples are the same for all items (of a subject, with `shots_by`); a record whose question is in the test source
    is never one. Malformed records are shown and skipped, up to the task's `skip_malformed`.

    Args:
        tokenizer: for kinds that are made on the spot.

    Raises:
        UserError: the source cannot be read, its first record is malformed or more are than may be, or there are fewer
            items or few-shot examples than asked for.
    """
    return load_counted(name, task, seed, tokenizer).items


def load_counted(name: str, task: TaskSettings, seed: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Loaded:
    """As `load_items`, with the count of malformed records."""
    draws = Draws(seed, name)
    if task.is_made:
        return Loaded(task.make_items(draws, tokenizer))
    return _read_items(task, draws)


def _read_items(task: SourcedTask, draws: Draws) -> Loaded:
    items, malformed = _read(task, _sources(task), draws)
    if task.items is not None and task.items > len(items):
        raise UserError(f"task '{draws.name}' asks for {task.items} items; its source has {len(items)}")
    drawn = items
    if task.items is not None:
        # Sorted, so that fewer items are in the same order as all of them.
        indices = draws.of("items").sample(range(len(items)), task.items)
        drawn = [items[index] for index in sorted(indices)]
    shots = _shots(task, draws, items)
    # Of all items, not only those that are drawn: an item has the same distractors however many are asked.
    answers = _answers(items)
    whole = [
        replace(task.with_candidates(item, answers[item.subject], draws), shots=shots[item.subject]) for item in drawn
    ]
    return Loaded(whole, malformed)


def _answers(items: Sequence[Item]) -> dict[str | None, dict[str, str]]:
    """For each subject the first answer of each of its items, by its normalised text."""
    answers: dict[str | None, dict[str, str]] = defaultdict(dict)
    for item in items:
        for answer in item.answers[:1]:
            answers[item.subject][normalise(answer)] = answer
    return answers


def _sources(task: SourcedTask) -> list[Source]:
    subsets = task.subset or (None,)
    return [Source(path=task.path, hub=task.hub, subset=subset, split=task.split) for subset in subsets]


def _read(task: SourcedTask, sources: Sequence[Source], draws: Draws) -> Loaded:
    """The items of all sources, without candidates that are other items' answers, and without few-shot examples."""
    items, errors, left_out = [], [], 0
    located = ((source, record) for source in sources for record in read_checked_records(source, draws.seed))
    for index, (source, record) in enumerate(located):
        where = f"task '{draws.name}', record {index} of {source.label}"
        if len(sources) > 1 and isinstance(record, dict):
            record = {"subject": source.subset} | record  # a field of that name in the record wins
        item = record
        if not isinstance(record, UserError):
            fields = Fields(where, index, record)
            item = _item(task, fields, draws)
            left_out += fields.left_out
        if isinstance(item, UserError):
            if index == 0:
                raise item  # surely the task's mistake, not the record's
            errors.append(item)
        elif item is not None:
            items.append(item)
    _check_malformed(task, draws.name, errors, index + 1)
    if left_out:
        logger.warning("task '%s': %d accepted answers without a word left out", draws.name, left_out)
    return Loaded(items, len(errors))


def _check_malformed(task: SourcedTask, name: str, errors: list[UserError], records: int) -> None:
    """Shows the first malformed records of a task, and raises if there are more than there may be."""
    if errors and len(errors) > min(task.skip_malformed, records * MOST_MALFORMED):
        raise UserError(
            f"{errors[0]}\ntask '{name}': {len(errors)} of {records} records are malformed; skip_malformed allows "
            f"{task.skip_malformed}, and {MOST_MALFORMED:.0%} of the records at most. Mend the task or the data"
        )
    for error in errors[:SHOWN]:
        logger.warning("skipped: %s", error)
    if errors:
        logger.warning("task '%s': %d of %d records skipped as malformed", name, len(errors), records)


def _item(task: SourcedTask, fields: Fields, draws: Draws) -> Item | UserError | None:
    """The item that a record gives, None if it is dropped, or the error that says what is wrong with it."""
    try:
        item = task.read(fields, draws)
        if item is not None:
            _check_texts(item, fields)
    except MissingPackage:
        raise
    except UserError as error:
        return error
    # Numbers with more digits than Python converts, values nested too deeply: of this record, whatever the kind.
    except (ValueError, ArithmeticError, RecursionError) as error:
        return UserError(f"{fields.where}: it cannot be read: {error}")
    return item


def _check_texts(item: Item, fields: Fields) -> None:
    """Refuses half of a surrogate pair, which JSON can spell ("\\ud83d") and no tokenizer takes."""
    for text in (item.question, item.solution, *item.answers, *item.choices, *item.candidates):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{fields.where}: half a surrogate pair in {text[max(0, error.start - 20) : error.end]!r}; write the "
                "text anew as UTF-8"
            ) from None


def _shots(task: SourcedTask, draws: Draws, items: Sequence[Item]) -> Mapping[str | None, Shots]:
    """The few-shot examples for each subject that the items have."""
    subjects = list(dict.fromkeys(item.subject for item in items))
    if not isinstance(task, FewShotTask) or not task.shots:
        return dict.fromkeys(subjects, ())
    sources = _shots_sources(task, draws)
    # Read by the same rules as the items, so that they are shown in the same form.
    try:
        examples = _read(task.of_examples(), sources, draws).items
    except UserError as error:  # a missing split, mostly: say whose it is, and how to do without
        raise UserError(
            f"task '{draws.name}' asks for {task.shots} few-shot examples, which cannot be read: {error}. Give their "
            "source by shots_split and shots_path or shots_hub, or set shots: 0"
        ) from None
    # All questions of the test, not only those that are drawn: a prompt must not hold any of them.
    tested = {_fingerprint(item) for item in items}
    unseen = [example for example in examples if example.solution and _fingerprint(example) not in tested]
    if len(unseen) < task.shots:
        raise UserError(
            f"task '{draws.name}' asks for {task.shots} few-shot examples; {sources[0].label} has {len(unseen)} "
            f"({len(examples) - len(unseen)} more are questions of the test itself, or without an answer)"
        )
    return {subject: _draw_shots(task, draws, unseen, subject) for subject in subjects}


def _shots_sources(task: FewShotTask, draws: Draws) -> list[Source]:
    elsewhere = task.shots_path is not None or task.shots_hub is not None
    # A folder may hold both splits, one file holds one: its items must not be shown with their answers.
    if not elsewhere and task.path is not None and not Path(task.path).is_dir():
        raise UserError(
            f"task '{draws.name}' asks for {task.shots} few-shot examples, and {task.path} holds its test items. Give "
            "a file with examples as shots_path, a folder with both splits as path, or shots: 0"
        )
    path, hub = (task.shots_path, task.shots_hub) if elsewhere else (task.path, task.hub)
    # The items' subsets hold for the examples only where those come from the same data set.
    subsets = task.shots_subset or (() if elsewhere else task.subset) or (None,)
    return [Source(path=path, hub=hub, subset=subset, split=task.shots_split) for subset in subsets]


def _draw_shots(task: FewShotTask, draws: Draws, examples: Sequence[Item], subject: str | None) -> Shots:
    own = [example for example in examples if example.subject == subject]
    if not own:
        raise UserError(f"task '{draws.name}': no few-shot example has '{subject}' in field '{task.shots_by}'")
    rng = draws.of("shots", subject) if task.shots_by else draws.of("shots")
    drawn = rng.sample(own, min(task.shots, len(own)))
    if missing := task.shots - len(drawn):  # the count is a promise: too few of the subject, so some of the others
        others = [example for example in examples if example.subject != subject]
        drawn = rng.sample(others, missing) + drawn  # the item's own subject last, next to its question
    return tuple((example.user_turn, example.solution) for example in drawn)


def _fingerprint(item: Item) -> tuple[str, ...]:
    """The same for a question asked twice, options in any order. A stem alone ("Which is true?") may come again."""
    # As read: the candidates of an item without lettered choices are those that its record gives.
    options = item.choices or item.candidates
    return normalise(item.question), *sorted(map(normalise, options))
