"""The sweep: teacher and student in turns, over contexts, batches and forms, and what follows from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from gendistill.bench.limits import shortest_prefill, shortest_step
from gendistill.bench.machine import Rates
from gendistill.bench.measure import Cell, measure_cell
from gendistill.errors import UserError
from gendistill.models.positions import most_positions

FORMS = ("default", "best")


def check_contexts(models: Mapping[str, PreTrainedModel], contexts: Sequence[int]) -> None:
    """Raises UserError for a context beyond a model's positions."""
    for name, model in models.items():
        limit = most_positions(model.config)
        if max(contexts) > limit:
            raise UserError(
                f"context {max(contexts)}: the {name}'s positions end at {limit}. Give shorter contexts, or a model "
                "whose configuration has RoPE scaling."
            )


def sweep(
    models: Mapping[str, PreTrainedModel],
    contexts: Sequence[int],
    batches: Sequence[int],
    rates: Rates,
    repeats: int,
    tell: Callable[[dict], None],
) -> Iterator[dict[str, Any]]:
    """Rows of the table, one for each model, form, context and batch; `tell` gets each as it comes.

    Once a batch has run out of memory at a context, larger ones are not tried there.
    """
    for context in contexts:
        full: set[tuple[str, str]] = set()  # (model, form) that this context was too much for
        for batch in batches:
            for form in FORMS:
                for name, model in models.items():  # in turns, so that a slow minute of the machine hits both
                    if (name, form) in full:
                        continue
                    cell = measure_cell(model, Cell(name, form, context, batch), repeats)
                    if cell.error:
                        full.add((name, form))
                    row = _row(model, cell, rates)
                    tell(row)
                    yield row


def _row(model: PreTrainedModel, cell: Cell, rates: Rates) -> dict[str, Any]:
    row: dict[str, Any] = asdict(cell)
    row["shortest_first"] = shortest_prefill(model, cell.context, cell.batch, rates)
    row["shortest_token"] = shortest_step(model, cell.context, cell.batch, rates)
    if cell.first:
        row["first_median"] = median(cell.first)
        row["share_of_limit_first"] = row["shortest_first"] / row["first_median"]
    if cell.token:
        row["token_median"] = median(cell.token)
        row["share_of_limit_token"] = row["shortest_token"] / row["token_median"]
        row["tokens_per_second"] = cell.batch / row["token_median"]
    return row


def find(rows: Sequence[dict], model: str, form: str, context: int, batch: int) -> dict | None:
    """The row of a cell, if it was measured."""
    wanted = {"model": model, "form": form, "context": context, "batch": batch}
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def wins_from(rows: Sequence[dict], key: str, form: str) -> int | None:
    """The context from which on the student takes less time than the teacher, at the smallest batch; None if it never
    does."""
    contexts = sorted({row["context"] for row in rows})
    batch = min(row["batch"] for row in rows)
    winning = None
    for context in reversed(contexts):
        student, teacher = (find(rows, name, form, context, batch) for name in ("student", "teacher"))
        if not (student and teacher and key in student and key in teacher) or student[key] >= teacher[key]:
            break
        winning = context
    return winning
