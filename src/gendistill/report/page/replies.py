"""How the models reply: what stands out, parse rates and lengths, and the letters they choose."""

from collections.abc import Mapping, Sequence

from gendistill.analysis.diagnostics import Diagnostics, diagnose
from gendistill.report.evaluations import TEACHER
from gendistill.report.page import charts
from gendistill.report.page.evidence import Judged, by_items
from gendistill.report.page.parts import (
    Column,
    Figure,
    Note,
    Part,
    Table,
    Value,
    batches,
    count,
    file_name,
    percent,
    warnings,
)

MODELS_IN_A_PLOT = 7  # whose letters can still be told apart

Models = Mapping[str, Mapping[str, Diagnostics]]  # by name and task


def reply_parts(judged: Sequence[Judged], results: Sequence[str]) -> list[Part]:
    """Diagnoses in words, plots of letters, and a table.

    Args:
        results: names of those whose diagnoses are told in words, beside the teacher's; the table has those of all.
    """
    # Seeds draw items of their own: the teacher has replies to each of those, and right letters differ.
    groups = {which: _with_teacher(which, some) for which, some in by_items(judged).items()}
    # Of controls and earlier stages a diagnosis is expected, and stands in the table.
    said = [
        f"{task}, {name}: {diagnosis.name}. {diagnosis.sentence}"
        for models in groups.values()
        for name, by_task in models.items()
        if name.startswith(TEACHER) or name in results
        for task, found in by_task.items()
        for diagnosis in found.diagnoses
    ]
    figures = [figure for which, models in groups.items() for figure in _letters(which, models)]
    # That nothing was found is said, or a reader would look for the paragraph.
    said_or_none = warnings("replies", said) or [Note("Nothing stands out in the replies.")]
    return [*said_or_none, *figures, _table(groups)]


def _with_teacher(which: str, judged: Sequence[Judged]) -> dict[str, Mapping[str, Diagnostics]]:
    teacher = {task: diagnose(items) for task, items in judged[0].model.teacher.items()}
    return {f"{TEACHER}{which}": teacher} | {each.name: each.diagnostics for each in judged}


def _table(groups: Mapping[str, Models]) -> Table:
    columns = [
        Column("model", "model"),
        Column("task", "task"),
        Column("parsed", "parsed: strict, %", percent),
        Column("flexible_parsed", "parsed: flexible, %", percent),
        Column("truncated", "truncated, %", percent),
        Column("repetitive", "repetitive, %", percent),
        Column("median_tokens", "tokens, median", count),
        Column("tokens_90", "tokens, 90 %", count),
        Column("letters", "letters chosen, %"),
        Column("diagnoses", "diagnoses"),
    ]
    rows: list[list[Value]] = []
    for models in groups.values():
        for name, by_task in models.items():
            rows += [[name, task, *_cells(found)] for task, found in by_task.items()]
    note = "Shares of the replies; repetitive: caught in a loop; letters: of the replies that give one."
    return Table("replies", "Parse rates, lengths and letters", columns, rows, note)


def _cells(found: Diagnostics) -> list[Value]:
    # Spaces at which no line breaks keep a letter with its share.
    letters = " ".join(f"{letter}\u00a0{100 * share:.0f}" for letter, share in found.letters.items())
    # What could be read, not what could not: the higher the better, as all other columns of a reply.
    rates = (1 - found.unparsed, 1 - found.flexible_unparsed, found.truncated, found.repetitive)
    named = "; ".join(diagnosis.name for diagnosis in found.diagnoses)
    return [*rates, *found.tokens, letters or None, named or None]


def _letters(which: str, models: Models) -> list[Figure]:
    """A plot for each task whose replies are letters: what was right, and what each model chose."""
    figures = []
    for task, found in next(iter(models.values())).items():
        if not found.letters:
            continue  # no options to choose from
        for number, some in batches(list(models.items()), MODELS_IN_A_PLOT):
            series = {name: by_task[task].letters for name, by_task in some}
            said = "; ".join(f"{name}: {_shares(shares)}" for name, shares in series.items())
            alt = f"Share of each letter in percent. Right: {_shares(found.gold_letters)}; {said}"
            title = f"Letters chosen: {task}{which}{number}"
            svg = charts.letters(found.gold_letters, series)
            figures.append(Figure(file_name("letters", f"{task}{which}{number}"), title, svg, alt))
    return figures


def _shares(letters: Mapping[str, float]) -> str:
    return ", ".join(f"{letter} {100 * share:.0f}" for letter, share in letters.items())
