"""The questions of window_table.py: made once, on a CPU, for all models of one tokenizer."""

import argparse
import gzip
import hashlib
import json
import os
import pickle
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_scores import task_settings

SEED = 0
# Items of each; None: all.
SHORT = {"gsm8k": None, "humaneval": None} | dict.fromkeys(
    ("arc_easy", "openbookqa", "arc_challenge", "mmlu_redux", "commonsense_qa", "boolq"), 500
)
LONG = ("needle_single", "recall_full", "recall_easy", "recall_hard")  # task files, asked at every length
LENGTHS = (4096, 8192, 16384)  # tokens
LONG_ITEMS = 100
CALIBRATION = (4, 4, 512)  # batches, sequences, tokens: as many tokens as a conversion takes by default


@dataclass(frozen=True)
class Questions:
    """A task, ready to be put to any model with the tokenizer it was made for.

    Attributes:
        prompts: ids of each item.
        candidates: ids of what is ranked, of each item; empty if nothing is.
    """

    name: str
    task: Any
    items: list[Any]
    prompts: list[list[int]]
    candidates: list[list[list[int]]]

    @property
    def digest(self) -> str:
        """Tells questions of one name apart: records that have another are of other questions."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]


def make_questions(arguments: argparse.Namespace) -> None:
    """Draws the items of all tasks, renders their prompts, and keeps both in a file."""
    from gendistill.evaluate.items import load_items
    from gendistill.evaluate.ranking import candidate_ids, render_prompts
    from gendistill.models.loading import load_config, load_tokenizer
    from gendistill.recipe.evaluation import make_task

    tokenizer = load_tokenizer(arguments.teacher, load_config(arguments.teacher).vocab_size)
    made = []
    known = all_settings(arguments)
    for name in named(arguments.tasks, known, "--tasks"):
        settings = known[name]
        began = time.perf_counter()
        task = make_task(**settings)
        items = load_items(name, task, SEED, tokenizer)
        prompts = render_prompts(tokenizer, items)
        ranked = name in SHORT and all(item.choices for item in items)
        made.append(Questions(name, task, items, prompts, candidate_ids(tokenizer, items) if ranked else []))
        print(f"{name}: {len(items)} items, {sum(map(len, prompts)):,} tokens, {seconds_since(began)} s", flush=True)
    content = {"tasks": made, "calibration": calibration_ids(arguments.haystack, tokenizer)}
    write_whole(arguments.questions, gzip.compress(pickle.dumps(content), mtime=0))


def named(wanted: Sequence[str] | None, known: Collection[str], option: str) -> list[str]:
    """What is asked for by name, in the order in which it is; all that is known, if nothing is.

    Raises:
        SystemExit: a name is not known.
    """
    if unknown := [name for name in wanted or () if name not in known]:
        raise SystemExit(f"{option}: no {', '.join(unknown)}; there are {', '.join(known)}")
    return list(wanted or known)


def read_questions(path: Path) -> dict[str, Any]:
    """ "tasks", a list of `Questions`, and "calibration", ids."""
    return pickle.loads(gzip.decompress(path.read_bytes()))


def all_settings(arguments: argparse.Namespace) -> dict[str, dict]:
    """Settings of every task by its name, in the order in which they are asked."""
    most = arguments.items
    found = {}
    for name, items in SHORT.items():
        counted = [count for count in (items, most) if count is not None]
        found[name] = task_settings(name, arguments.data) | ({"items": min(counted)} if counted else {})
    for length in arguments.lengths:
        for task in LONG:
            settings = {"task": task, "length": length, "items": min(LONG_ITEMS, most or LONG_ITEMS)}
            # A list that is all of the prompt stands in no other text.
            found[f"{task}_{length}"] = settings | ({} if task == "recall_full" else {"haystack": arguments.haystack})
    return found


def calibration_ids(haystack: str, tokenizer: Any) -> list[int]:
    """The ids of the beginning of the haystack: text that new mixers are scaled by."""
    from gendistill.evaluate.kinds.item import Draws
    from gendistill.recipe.evaluation import make_task

    task = make_task(task="needle_single", haystack=haystack)
    batches, rows, length = CALIBRATION
    # A token takes at least a character; far more text than is needed would only take longer.
    text = task.read_haystack(Draws(SEED, "calibration"), tokenizer).text[: 16 * batches * rows * length]
    return tokenizer(text, add_special_tokens=False)["input_ids"][: batches * rows * length]


def seconds_since(began: float) -> float:
    return round(time.perf_counter() - began, 2)


def write_whole(path: Path, content: bytes) -> None:
    """Under another name first, so that a killed write leaves the old file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
