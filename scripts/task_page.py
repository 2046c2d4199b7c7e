"""Writes the table and the examples of docs/tasks.md from the task files and real items.

    python scripts/task_page.py DATA

DATA is a folder with a folder of .jsonl.gz files per data set. What stands between the page's markers is written anew.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gendistill.embedded import teacher_folder
from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.kinds import KINDS, grade
from gendistill.evaluate.kinds.base import TaskSettings
from gendistill.evaluate.kinds.item import Item
from gendistill.recipe.evaluation import TASK_FILES, make_task, task_names

LONGEST_SHOWN = 24  # lines of an item; of more, those in the middle are left out
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
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder(), trust_remote_code=False)
    rows = ["| task | kind | items | shots | reply budget, tokens | chance, ranked / generated |", "|---" * 6 + "|"]
    sections = []
    for name in task_names():
        task, items, example = make_task(task=name), [], ""
        if task.is_made:
            items, example = load_items(name, task, SEED, tokenizer), shown_made(name, tokenizer)
        if name in HERE:
            items = load_items(name, make_task(task=name, **paths_of(name, data)), SEED)
            example = shown(name, task, items, data)
        counted = f"{len(items):,}" if items else "not here"
        cells = [f"[{name}](#{name})", task.kind, counted, shots_of(task), task.max_new_tokens, chance(items)]
        rows.append(f"| {' | '.join(map(str, cells))} |")
        sections.append(f"### {name}\n\n{about(name)}\n\n{settings_of(task)}\n\n{example or NOT_RUN}")
    page = PAGE.read_text(encoding="utf-8")
    page = filled(filled(page, "table", "\n".join(rows)), "examples", "\n\n".join(sections))
    PAGE.write_text(page, encoding="utf-8")


def paths_of(name: str, data: Path) -> dict[str, str]:
    place, _, settings = HERE[name]
    return {key: str(data / value) for key, value in ({"path": place} | settings).items()}


def filled(page: str, part: str, text: str) -> str:
    start, end = f"<!-- {part}: scripts/task_page.py -->", f"<!-- end of {part} -->"
    head, _, rest = page.partition(start)
    return f"{head}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def about(name: str) -> str:
    """The comment at the head of the task file."""
    lines = (TASK_FILES / f"{name}.yaml").read_text(encoding="utf-8").split("\n")
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def settings_of(task: TaskSettings) -> str:
    if task.is_made:
        own = {key: getattr(task, key) for key in ("length", "keys", "asked", "pairs") if getattr(task, key, None)}
        made = ", ".join(f"{key}: {value}" for key, value in own.items())
        return f"Version {task.version}. Made on the spot: {made}. Up to {task.max_new_tokens} tokens of reply."
    subset = f", {len(task.subset)} subsets" if len(task.subset) > 1 else "".join(f", {one}" for one in task.subset)
    source = f"Source: `{task.hub}`{subset}, split {task.split}."
    if shots_of(task):
        alike = f" with the item's {task.shots_by}" if task.shots_by else ""
        place = f"`{task.shots_hub}`, split" if task.shots_hub else "split"
        source += f" {task.shots} few-shot examples{alike} from {place} {task.shots_split}."
    return f"Version {task.version}. {source} Up to {task.max_new_tokens} tokens of reply."


def shots_of(task: TaskSettings) -> int:
    """Few-shot examples; some kinds have none."""
    return getattr(task, "shots", 0)


def chance(items: list[Item]) -> str:
    if not items or not items[0].candidates:
        return "–"
    ranked = fmean(len(item.gold) / len(item.candidates) for item in items)
    generated = fmean(len(item.gold) / len(item.choices) if item.choices else 0 for item in items)
    return f"{ranked:.1%} / {generated:.1%}"


def shown(name: str, task: TaskSettings, items: list[Item], data: Path) -> str:
    """A short item: the user's turn, what is right, and replies that are graded right."""
    several = [item for item in items if len(item.gold) > 1]
    item = min(several or items[:100], key=lambda item: len(item.messages[-1]["content"]))
    _, licence, _ = HERE[name]
    recipe = ", ".join(f"{key}: {value}" for key, value in paths_of(name, Path("DATA")).items())
    dropped = ""
    if getattr(task, "corrections", None) is not None:
        whole = load_items(name, make_task(task=name, **paths_of(name, data), corrections=None, shots=0), SEED)
        dropped = f" Of its {len(whole):,} records {len(whole) - len(items):,} are dropped."
    parts = [f"Read here as `{name}: {{task: {name}, {recipe}}}`.{dropped} Record {item.id} ({licence}):"]
    parts += [f"````text\n{item.messages[-1]['content']}\n````", right(item)]
    if shots_of(task) and not item.choices:
        parts.append(f"As a few-shot example it would be answered:\n\n````text\n{item.solution}\n````")
    return "\n\n".join(parts)


def shown_made(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The shortest item whose length is a multiple of 128 tokens, and what is right."""
    for length in range(128, 16_384, 128):
        try:
            item = load_items(name, make_task(task=name, length=length, items=1), SEED, tokenizer)[0]
        except UserError:  # too short for the question and what it asks for
            continue
        break
    lines = item.question.split("\n")
    if len(lines) > LONGEST_SHOWN:
        lines = [*lines[: LONGEST_SHOWN // 2], "[...]", *lines[-LONGEST_SHOWN // 2 :]]
    told = f"An item of {length} tokens of the embedded teacher, its text made up:"
    return "\n\n".join([told, "````text\n" + "\n".join(lines) + "\n````", right(item)])


def right(item: Item) -> str:
    """What counts as right; of items with answers, some replies that state the first one, and whether they do."""
    kind = KINDS[item.kind]
    if not item.answers:
        return kind.right_reply(item)
    replies = with_a_letter(item) if item.choices else with_a_text(item.answers[0])
    grades = grade([item] * len(replies), replies)
    accepted = quoted(reply for reply, each in zip(replies, grades, strict=True) if each.strict.correct)
    refused = quoted(reply for reply, each in zip(replies, grades, strict=True) if not each.strict.correct)
    ranked = quoted(item.candidates)
    told = f"{accepted}; not: {refused}" if refused else accepted
    return f"{kind.right_reply(item)} Accepted replies: {told}. Ranked: {ranked}."


def with_a_letter(item: Item) -> list[str]:
    letter, answer = item.candidates[item.gold[0]], item.answers[0]
    return [letter, f"{letter}. {answer}", f"({letter})", f"The answer is {letter}.", answer, f"I think {letter}"]


def with_a_text(answer: str) -> list[str]:
    return [answer, f"The answer is {answer}.", f"It is {answer}, as 1 + 1 = 2."]


def quoted(texts: Iterable[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    main(parser.parse_args().data)
