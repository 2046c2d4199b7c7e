"""Looking at single items: a small language that picks them, counts of who is right, and a view for the terminal."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from gendistill.analysis.repetition import repeats
from gendistill.analysis.scores import ACCURACIES
from gendistill.console import Console
from gendistill.errors import UserError
from gendistill.names import LETTERS
from gendistill.report.evaluations import TEACHER, Evaluations, Record
from gendistill.visible import visible

# What --where can ask of a record; bare "right" is by strict extraction.
VERDICTS: dict[str, Callable[[Record], bool]] = {
    "right": lambda record: record["generation_correct"],
    "wrong": lambda record: not record["generation_correct"],
    "flexibly right": lambda record: record["flexible_correct"],
    "flexibly wrong": lambda record: not record["flexible_correct"],
    # None, where nothing is ranked, is neither.
    "ranks right": lambda record: record["ranking_correct"] is True,
    "ranks wrong": lambda record: record["ranking_correct"] is False,
    "parsed": lambda record: record["parsed"] is not None,
    "unparsed": lambda record: record["parsed"] is None,
    "truncated": lambda record: record["truncated"],
    "repeats": lambda record: repeats(record["reply"]),
}
ANSWERS = "answers "  # and then what was parsed

PROMPT_SHOWN = 1200  # characters, the last ones
REPLY_SHOWN = 400  # characters, the first ones
PARSED_SHOWN = 80  # of a program, which is in the reply


class Condition(NamedTuple):
    """What an item's record of one model must be like."""

    label: str
    what: str
    holds: Callable[[Record], bool]


def parse_where(where: str, evaluations: Evaluations, student: str) -> list[Condition]:
    """Reads "teacher right, student answers A": conditions that all must hold.

    Args:
        student: the label that "student" stands for.

    Raises:
        UserError: a word is not known; says which are.
    """
    return [_condition(clause.strip(), evaluations, student) for clause in where.split(",")]


def _condition(clause: str, evaluations: Evaluations, student: str) -> Condition:
    who, _, what = clause.partition(" ")
    what = " ".join(what.split())
    try:
        # `evaluations` knows the last stage as "student"; here it is the stage that the user chose.
        label = student if who == "student" else evaluations.label(who)
    except UserError:
        raise _not_understood(clause, evaluations) from None
    if what in VERDICTS:
        return Condition(label, what, VERDICTS[what])
    if what.startswith(ANSWERS):
        wanted = what.removeprefix(ANSWERS).casefold()  # typed by hand: "answers d" finds D
        return Condition(label, what, lambda record: (record["parsed"] or "").casefold() == wanted)
    raise _not_understood(clause, evaluations)


def _not_understood(clause: str, evaluations: Evaluations) -> UserError:
    who = [*evaluations.models[:1], "student", *evaluations.models[1:]]  # the teacher first, if it was evaluated
    return UserError(
        f"--where: '{clause}' is not understood. Write WHO WHAT, several with commas between: \"teacher right, student "
        f'wrong".\n  WHO:  {", ".join(dict.fromkeys(who))}\n  WHAT: {", ".join(VERDICTS)}, {ANSWERS}X'
    )


def matching(records: Mapping[str, Sequence[Record]], conditions: Sequence[Condition]) -> list[int]:
    """Indices of the items whose records fulfil all conditions.

    Raises:
        UserError: a condition is about ranking, and the task is not ranked.
    """
    for each in conditions:
        # Such a condition would hold for no item, and look as if the model ranked none right.
        if each.what.startswith("ranks") and records[each.label][0]["ranking_correct"] is None:
            raise UserError(f"--where: '{each.what}': this task is not ranked, only generated")
    items = range(len(next(iter(records.values()))))
    return [index for index in items if all(each.holds(records[each.label][index]) for each in conditions)]


def counts_table(tasks: Mapping[str, Mapping[str, Sequence[Record]]], student: str) -> Table:
    """Who is right on how many items of each task, by ranking, by generation (strict extraction), flexibly."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for column, header in enumerate(["task", "by", "both right", "only teacher", "only student", "neither", "items"]):
        table.add_column(header.replace(" ", "\n", 1), justify="left" if column < 2 else "right")
    for task, records in tasks.items():
        table.add_section()
        for accuracy in ACCURACIES:
            correct = f"{accuracy}_correct"
            both = zip(records[TEACHER], records[student], strict=True)
            pairs = [(theirs[correct], ours[correct]) for theirs, ours in both]
            if (None, None) in pairs:
                continue  # not ranked
            counts = Counter(pairs)
            cells = [counts[pair] for pair in ((True, True), (True, False), (False, True), (False, False))]
            table.add_row(task, accuracy, *(f"{count:,}" for count in [*cells, len(pairs)]))
            task = ""  # a task's name stands in its first line only
    return table


def to_json(task: str, records: Mapping[str, Sequence[Record]], index: int) -> str:
    """An item as a line of JSON: what all models share, then under "models" the rest of each record."""
    each = {label: items[index] for label, items in records.items()}
    first = next(iter(each.values()))
    shared = ["id", "question", "choices", "candidates", "gold", "answers", "prompt"]
    models = {label: {key: record[key] for key in record if key not in shared} for label, record in each.items()}
    return json.dumps({"task": task} | {key: first[key] for key in shared} | {"models": models})


def print_item(console: Console, task: str, records: Mapping[str, Sequence[Record]], index: int) -> None:
    """The prompt, the options with their scores, and the models' replies side by side."""
    each = {label: items[index] for label, items in records.items()}
    first = next(iter(each.values()))
    console.print(Rule(f"{task}, item {first['id']}", align="left", characters="─"))
    console.print(Text(_prompt(first), style="dim"))
    console.print()
    if first["choices"] or first["candidates"]:
        console.print(_options(each))
    if not first["choices"] and first["answers"]:
        console.print(Text(f"accepted: {_plain(' | '.join(first['answers']))}"))
    console.print()
    console.print(_replies(each))


def _options(each: Mapping[str, Record]) -> Table:
    """Candidates with each model's score of them; ► is what a model picks, ✓ what is right."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("option", ratio=1)
    for label in each:
        table.add_column(label.replace("_", " "), justify="right", max_width=14)  # may wrap between its words
    first = next(iter(each.values()))
    lettered = [f"{letter}. {text}" for letter, text in zip(LETTERS, first["choices"], strict=False)]
    for index, option in enumerate(lettered or first["candidates"]):
        right = index in first["gold"]
        cells = [_score(record, index) for record in each.values()]
        table.add_row("✓" if right else "", Text(_plain(option)), *cells, style="green" if right else None)
    return table


def _score(record: Record, index: int) -> str:
    if record["scores"] is None:
        return ""
    # `scores` are of candidates, which have the order of the options where there are options.
    picked = record["ranked"] == record["candidates"][index]
    return f"{'► ' if picked else ''}{record['scores'][index]:.2f}"


def _replies(each: Mapping[str, Record]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    for label in each:
        table.add_column(label, ratio=1)  # the same width for each reply, whatever its length
    for name, show in _ROWS.items():
        cells = [show(record) for record in each.values()]
        if any(cells):  # a row that is empty for all models is left out
            table.add_row(name, *cells)
    return table


def _verdict(right: bool) -> Text:
    return Text("right", "green") if right else Text("wrong", "red")


def _rotations(record: Record) -> Text | None:
    """The letter given under each rotation, and whether it was right there."""
    if "rotations" not in record:
        return None
    shown = []
    for rotation in record["rotations"]:
        letter = rotation["parsed"] or "–"
        shown.append(Text(f"{letter}✓", "green") if rotation["correct"] else Text(f"{letter}✗", "red"))
    return Text(" ").join(shown)


def _parsed(parsed: str | None) -> Text:
    if parsed is None:
        return Text("– (unparsed)", "yellow")
    one_line = " ".join(_plain(parsed).split())
    return Text(_first(one_line, PARSED_SHOWN))


def _tokens(record: Record) -> Text:
    count = Text(f"{record['reply_tokens']}")
    return count.append(", then the budget ran out", "yellow") if record["truncated"] else count


def _flexibly(record: Record) -> Text | None:
    """What flexible extraction finds, only if that differs from strict extraction."""
    if (record["flexible_parsed"], record["flexible_correct"]) == (record["parsed"], record["generation_correct"]):
        return None
    return _parsed(record["flexible_parsed"]).append(": ").append_text(_verdict(record["flexible_correct"]))


def _ranks(record: Record) -> Text | None:
    if record["ranked"] is None:
        return None
    return Text(f"{_plain(record['ranked'])}: ").append_text(_verdict(record["ranking_correct"]))


_ROWS: dict[str, Callable[[Record], Text | None]] = {
    "ranks": _ranks,
    "reply": lambda record: Text(_first(_plain(record["reply"].rstrip()), REPLY_SHOWN)),
    "tokens": _tokens,
    "parsed": lambda record: _parsed(record["parsed"]).append(": ").append_text(_verdict(record["generation_correct"])),
    "flexibly": _flexibly,
    "rotated": _rotations,
    "tests": lambda record: Text(_plain(record["tests"])) if "tests" in record else None,
}


def _plain(text: str) -> str:
    """As the console will show it, so that it is cut and laid out at its real width."""
    return visible(text.expandtabs(4))


def _first(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… {len(text) - limit:,} characters more"


def _prompt(record: Record) -> str:
    """The prompt from the turn on that holds the question, without the few-shot examples before it."""
    prompt = record["prompt"].rstrip()
    question = prompt.rfind(record["question"])  # the last: an example may ask the same
    turn = prompt.rfind("\n", 0, max(0, question - 1)) + 1  # the line before it names the speaker
    # A template may trim or escape the question; it is then not found, and the prompt's end is shown.
    start = max(turn if question >= 0 else 0, len(prompt) - PROMPT_SHOWN)
    before = f"… {start:,} characters before\n" if start else ""
    return before + _plain(prompt[start:])
