"""What the embedded teacher still answers when most of its layers see a window only, nothing trained, by window.

    python benchmarks/window_embedded.py    # minutes on a CPU

Runs recipes/window.yaml with one window after the other, with the recipe's sinks and without any, all other settings as
they are. Writes results/window/embedded.json: answers that are right by generation, and the tokens of prompt and reply
together, which say what part of its text a window covers.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median

from figures import embedded_window_figures
from ledger import ROOT, record, takes_no_arguments
from rich.console import Console

from gendistill.files import read_jsonl
from gendistill.recipe.loading import load_recipe
from gendistill.run.convert import convert_teacher
from gendistill.run.evaluate import evaluate_student, evaluate_teacher
from gendistill.run.run import Run

WINDOWS = (8, 16, 24, 32, 48, 64, 96)  # tokens
RESULTS = ROOT / "results/window"


def main() -> None:
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        first = open_run(Path(folder) / "first")
        teacher = right(evaluate_teacher(first))  # the windows' runs would all say the same
        with_sinks, without = (
            {window: untrained(open_run(Path(folder) / f"{window} {sinks}", window, sinks)) for window in WINDOWS}
            for sinks in (first.config.sinks, 0)
        )
        text_tokens = {task: tokens_of_texts(first, task) for task in first.recipe.evaluation.tasks}
    student = first.recipe.student
    raw = {
        "student": {
            "keep_attention": student.keep_attention.model_dump(),
            "sinks": first.config.sinks,
            "layers": first.config.num_hidden_layers,
        },
        "items": {task: settings.items for task, settings in first.recipe.evaluation.tasks.items()},
        "text_tokens": text_tokens,
        "teacher": teacher,
        "with_sinks": with_sinks,
        "without_sinks": without,
        "seconds": round(time.time() - began, 1),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "embedded.json").write_text(json.dumps(raw, indent=1) + "\n")
    record(embedded_window_figures(RESULTS), "python benchmarks/window_embedded.py")


def open_run(folder: Path, window: int | None = None, sinks: int | None = None) -> Run:
    """The recipe as it is, or with another window and other sinks."""
    given = {"student.window": window, "student.sinks": sinks}
    overrides = [f"{name}={value}" for name, value in given.items() if value is not None]
    recipe = load_recipe(ROOT / "recipes/window.yaml", overrides)
    return Run(recipe, folder, Console(quiet=True), evaluates=True)


def untrained(run: Run) -> dict[str, int]:
    convert_teacher(run)
    counts = right(evaluate_student(run, "conversion"))
    print(f"window {run.config.window}, {run.config.sinks} sinks: {counts}", flush=True)
    return counts


def right(scores) -> dict[str, int]:
    """Replies that are right, by task."""
    return {task: score.generation_correct for task, score in scores.tasks.items()}


def tokens_of_texts(run: Run, task: str) -> dict[str, int]:
    """Tokens of prompt and the teacher's reply together."""
    records = read_jsonl(run.folder.evaluation / "teacher" / f"{task}.jsonl")
    tokens = [len(run.tokenizer(record["prompt"])["input_ids"]) + record["reply_tokens"] for record in records]
    return {"median": round(median(tokens)), "longest": max(tokens)}


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
