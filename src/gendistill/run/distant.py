"""The step that makes conversations with distant answers of a source's texts."""

from collections.abc import Callable
from pathlib import Path

from gendistill.data.chat import render_prompts
from gendistill.data.distant.checking import Check, Messages
from gendistill.data.distant.store import distant_counts, make_distant
from gendistill.distributed import as_rank_zero_says, report_errors_once
from gendistill.inference.generation import generate
from gendistill.placement.result import weights_hash
from gendistill.recipe.data import Source, Synthesis
from gendistill.run.run import Run
from gendistill.synthesize.run import index_of

OVERLAP = Synthesis.model_fields["overlap"].default  # words in sequence that a text may not share with an item
ANSWER_TOKENS = 128  # more than the longest answer takes, and room for some words around it
SPARE = 1.02  # of the tokens wanted: a mixture's shares hold to within a document


@report_errors_once
def distant_records(
    run: Run, source: Source, number: int, *, sequence_length: int, tokens: int, measured: bool
) -> Path:
    """The file of conversations made of a source's texts; made by the first process, read by all.

    Args:
        number: of the source in its mixture.
        tokens: that the mixture wants of it.
        measured: make others than those that are trained on.

    Raises:
        UserError: see `make_distant`.
    """
    tasks = run.recipe.evaluation.tasks

    # Only where something is made: to read all items of an evaluation takes a while.
    def overlaps() -> Callable[[str], bool]:
        index = index_of(tasks, OVERLAP, run.recipe.seed)
        return lambda text: index.find(text) is not None

    def make() -> Path:
        check = _teacher_check(run) if source.checked else None
        records, found = make_distant(
            source,
            run.tokenizer,
            sequence_length=sequence_length,
            tokens=round(tokens * SPARE) + 2 * sequence_length,
            seed=run.recipe.seed,
            purpose=f"{number} measured" if measured else str(number),
            evaluations={name: task.model_dump(mode="json") for name, task in tasks.items()},
            overlaps=overlaps,
            cache=run.folder.distant,
            check=check,
        )
        if found:
            return records
        made = distant_counts(records)
        left_out = f", {sum(made.unused.values()):,} not used" if made.unused else ""
        if check is not None:
            left_out += f"; {sum(made.wrong.values()):,} questions left out, which the teacher answers wrongly"
        run.console.print(
            f"{source.label}: {made.conversations:,} conversations made, answers {made.distances[0]:,} to "
            f"{made.distances[1]:,} tokens back, {made.loss_tokens / made.tokens:.2%} of their tokens{left_out}"
        )
        return records

    # One process makes them; all read the file.
    return as_rank_zero_says(make)


def _teacher_check(run: Run) -> Check:
    def answer(conversations: list[Messages]) -> list[str]:
        prompts = [prompt.ids for prompt in render_prompts(run.tokenizer, conversations)]
        return [reply.text for reply in generate(run.teacher, run.tokenizer, prompts, ANSWER_TOKENS)]

    return Check(weights_hash(run.teacher), answer)
