"""Writes the table and the examples of docs/tasks.md from the task files and real items.

    python scripts/task_page.py DATA

DATA is a folder with a folder of .jsonl.gz files per data set. What stands between the page's marks is written anew.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from gendistill.evaluate.marking import mark

from gendistill.evaluate.items import Item, load_items
from gendistill.inference.generation import Reply
from gendistill.recipe.evaluation import LIBRARY, Task, task_names

PAGE = Path(__file__).resolve().parents[1] / "docs/tasks.md"
SEED = 0
NOT_RUN = "Its data was not at hand: it has been read in tests with records of this form, and has not been run."
# Where the data lies in DATA, its licence, and settings that differ from the task file's.
HERE = {
    "arc_easy": ("arc_easy", "CC BY-SA 4.0", {}),
    "arc_challenge": ("arc_challenge", "CC BY-SA 4.0", {}),
    "boolq": ("boolq/dev.jsonl.gz", "CC BY-SA 3.0", {}),
    "commonsense_qa": ("commonsense_qa/dev.jsonl.gz", "MIT", {}),
    "gsm8k": ("gsm8k", "MIT", {}),
    "hellaswag": ("hellaswag/val.jsonl.gz", "MIT", {}),
    "humaneval": ("humaneval", "MIT", {}),
    "ifeval": ("ifeval/input_data.jsonl.gz", "Apache-2.0", {}),
    "mmlu_redux": ("mmlu_redux", "CC BY 4.0", {"shots_path": "mmlu"}),
    "openbookqa": ("openbookqa", "Apache-2.0", {}),
    "piqa": ("piqa/test.jsonl.gz", "AFL-3.0", {}),
    "winogrande": ("winogrande/test.jsonl.gz", "CC BY", {}),
}


def main(data: Path) -> None:
    rows = ["| task | kind | items | shots | reply budget, tokens | chance, ranked / generated |", "|---" * 6 + "|"]
    sections = []
    for name in task_names():
        task, items, example = Task(task=name), [], ""
        if name in HERE:
            items = load_items(name, Task(task=name, **paths_of(name, data)), SEED)
            example = shown(name, task, items, data)
        counted = f"{len(items):,}" if items else "not here"
        rows.append(
            f"| [{name}](#{name}) | {task.kind} | {counted} | {task.shots} | {task.max_new_tokens} | {chance(items)} |"
        )
        sections.append(f"### {name}\n\n{about(name)}\n\n{settings_of(task)}\n\n{example or NOT_RUN}")
    page = PAGE.read_text(encoding="utf-8")
    page = filled(filled(page, "table", "\n".join(rows)), "examples", "\n\n".join(sections))
    PAGE.write_text(page, encoding="utf-8")


def paths_of(name: str, data: Path) -> dict[str, str]:
    place, _, settings = HERE[name]
    return {key: str(data / value) for key, value in ({"path": place} | settings).items()}


def filled(page: str, mark: str, text: str) -> str:
    start, end = f"<!-- {mark}: scripts/task_page.py -->", f"<!-- end of {mark} -->"
    head, _, rest = page.partition(start)
    return f"{head}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def about(name: str) -> str:
    """The comment at the head of the task file."""
    lines = (LIBRARY / f"{name}.yaml").read_text(encoding="utf-8").split("\n")
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def settings_of(task: Task) -> str:
    subset = f", {len(task.subset)} subsets" if len(task.subset) > 1 else "".join(f", {one}" for one in task.subset)
    source = f"Source: `{task.hub}`{subset}, split {task.split}."
    if task.shots:
        alike = f" with the item's {task.shots_by}" if task.shots_by else ""
        place = f"`{task.shots_hub}`, split" if task.shots_hub else "split"
        source += f" {task.shots} few-shot examples{alike} from {place} {task.shots_split}."
    return f"Version {task.version}. {source} Up to {task.max_new_tokens} tokens of reply."


def chance(items: list[Item]) -> str:
    if not items or not items[0].candidates:
        return "–"
    ranked = fmean(len(item.gold) / len(item.candidates) for item in items)
    generated = fmean(len(item.gold) / len(item.choices) if item.choices else 0 for item in items)
    return f"{ranked:.1%} / {generated:.1%}"


def shown(name: str, task: Task, items: list[Item], data: Path) -> str:
    """A short item: the user's turn, what is right, and replies that are marked right."""
    several = [item for item in items if len(item.gold) > 1]
    item = min(several or items[:100], key=lambda item: len(item.messages[-1]["content"]))
    _, licence, _ = HERE[name]
    recipe = ", ".join(f"{key}: {value}" for key, value in paths_of(name, Path("DATA")).items())
    dropped = ""
    if task.corrections is not None:
        whole = load_items(name, Task(task=name, **paths_of(name, data), corrections=None, shots=0), SEED)
        dropped = f" Of its {len(whole):,} records {len(whole) - len(items):,} are dropped."
    parts = [f"Read here as `{name}: {{task: {name}, {recipe}}}`.{dropped} Record {item.id} ({licence}):"]
    parts += [f"````text\n{item.messages[-1]['content']}\n````", right(item)]
    if task.shots and task.kind != "multiple_choice":
        parts.append(f"As a few-shot example it would be answered:\n\n````text\n{item.worked}\n````")
    return "\n\n".join(parts)


def right(item: Item) -> str:
    if item.kind == "code":
        (marks,) = mark([item], [Reply(item.worked, 1, False)])
        assert marks.strict.correct, "the data's own solution fails"
        return (
            f"Right is a program that passes the data's tests of `{item.checks['entry_point']}`; its own solution does."
        )
    if item.kind == "instructions":
        each = zip(item.checks["instruction_ids"], item.checks["kwargs"], strict=True)
        return "To be followed: " + "; ".join(f"`{name}` {json.dumps(arguments)}" for name, arguments in each) + "."
    answer = item.answers[0]
    if item.kind == "multiple_choice":
        letter = item.candidates[item.gold[0]]
        gold = [f"`{item.candidates[place]}` ({item.choices[place]})" for place in item.gold]
        replies = [
            letter,
            f"{letter}. {answer}",
            f"({letter})",
            f"The answer is {letter}.",
            answer,
            f"I think {letter}",
        ]
    else:
        gold = [f"`{answer}`" for answer in item.answers]
        replies = [answer, f"The answer is {answer}.", f"It is {answer}, as 1 + 1 = 2."]
    accepted = quoted(reply for reply in replies if item.parse(reply).correct)
    refused = quoted(reply for reply in replies if not item.parse(reply).correct)
    ranked = quoted(item.candidates)
    return f"Right: {' or '.join(gold)}. Accepted replies: {accepted}; not: {refused}. Ranked: {ranked}."


def quoted(texts: Iterable[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    main(parser.parse_args().data)
