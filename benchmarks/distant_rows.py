"""What rows with distant answers teach a recurrence beside a window that is too short for the embedded teacher's sums.

    python benchmarks/distant_rows.py            # on a CPU; what has been measured is not measured again
    python benchmarks/distant_rows.py --table    # the table of what was measured

A student with a window of 8 tokens beside its recurrences is trained end to end for the same tokens, with windows
dropped out of a third of the sequences: on text, or on text and `made: distant` by halves, and there all of the mixers
or what the recurrence has to itself, so that windows stay what they were, with a share of the recurrence for each head
or for each token; three seeds, which draw the data. Writes results/cpu/distant_rows.json: replies that are right, with
the windows on and off.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean

from ledger import ROOT
from rich.console import Console

from gendistill.files import write_atomically
from gendistill.recipe.loading import parse_recipe
from gendistill.run.convert import convert_teacher
from gendistill.run.distill import distil_stage
from gendistill.run.evaluate import evaluate_student, evaluate_teacher
from gendistill.run.run import Run

RESULTS = ROOT / "results/cpu/distant_rows.json"
SEEDS = (0, 1, 2)
ITEMS = 150
TEXT = {"path": "embedded:text"}
DISTANT = TEXT | {"made": "distant", "distances": [96, 480]}
MIXERS, RECURRENCE = ["mixer"], ["mixer_conv", "mixer_gate"]  # the latter without projections, which windows share
ARMS = {
    "text": {"sources": [TEXT], "train": MIXERS},
    "text and distant rows": {"sources": [TEXT, DISTANT], "train": MIXERS},
    "the same, recurrence alone": {"sources": [TEXT, DISTANT], "train": RECURRENCE},
    "recurrence alone, share by token": {"sources": [TEXT, DISTANT], "train": RECURRENCE, "window_share": "token"},
}
RECIPE = dict(
    name="distant",
    teacher="embedded",
    device="cpu",
    student=dict(keep_attention=[2, 5], window=8, sinks=4),
    conversion=dict(tokens=4096, sequence_length=256),
    data=dict(text=[TEXT]),
    stages=dict(
        end_to_end=dict(
            objective="forward_kl",
            data="rows",
            tokens=60_000,
            sequence_length=512,
            sequences_per_step=2,
            micro_batch=2,
            learning_rate=2e-3,
            window_dropout=0.33,
            checkpoint_every=1000,
            held_out_every=1000,
        )
    ),
    evaluation=dict(
        batch_size=100,
        tasks=dict(
            facts=dict(kind="short_answer", path="embedded:facts", items=ITEMS, max_new_tokens=24),
            choice=dict(kind="multiple_choice", path="embedded:choice", items=ITEMS, max_new_tokens=8),
            arithmetic=dict(kind="last_number", path="embedded:arithmetic", items=ITEMS, max_new_tokens=64),
        ),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of what was measured")
    if parser.parse_args().table:
        return print(table(json.loads(RESULTS.read_text())))
    raw = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"recipe": RECIPE, "after": {}, "seconds": 0.0}
    if raw["recipe"] != RECIPE:
        raise SystemExit(f"{RESULTS} is of another recipe: remove it to measure this one")
    raw["arms"] = ARMS
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for arm, settings in ARMS.items():
                if f"{arm} {seed}" in raw["after"]:
                    continue
                began = time.time()
                run = open_run(Path(folder) / f"{arm} {seed}", settings, seed)
                convert_teacher(run)
                if "teacher" not in raw:
                    raw["teacher"] = right(evaluate_teacher(run))
                    raw["untrained"] = measured(run, "conversion")
                distil_stage(run, "end_to_end")
                raw["after"][f"{arm} {seed}"] = measured(run, "end_to_end")
                raw["seconds"] = round(raw["seconds"] + time.time() - began, 1)
                write_atomically(RESULTS, json.dumps(raw, indent=1) + "\n")  # now: all may be killed before the next
                print(f"{arm}, seed {seed}: {raw['seconds']:.0f} s", raw["after"][f"{arm} {seed}"], flush=True)
    print(table(raw))


def open_run(folder: Path, arm: dict, seed: int) -> Run:
    stage = RECIPE["stages"]["end_to_end"] | {"train": arm["train"]}
    data = RECIPE["data"] | {"rows": arm["sources"]}
    student = RECIPE["student"] | {"window_share": arm.get("window_share", "head")}
    recipe = RECIPE | {"seed": seed, "student": student, "data": data, "stages": {"end_to_end": stage}}
    return Run(parse_recipe(recipe, origin="benchmark"), folder, Console(quiet=True), evaluates=True)


def measured(run: Run, stage: str) -> dict:
    """Replies that are right, by task, with the windows and without; and the losses on distant answers."""
    lines = run.folder.metrics(stage)
    last = json.loads(lines.read_text().splitlines()[-1]) if lines.is_file() else {}
    return {
        "windows on": right(evaluate_student(run, stage)),
        "windows off": right(evaluate_student(run, stage, with_window=False)),
        "distant_loss": last.get("distant_loss"),
    }


def right(scores) -> dict[str, int]:
    return {task: score.generation_correct for task, score in scores.tasks.items()}


def table(raw: dict) -> str:
    """Retention by generation, percent; means over seeds, the lowest and highest of the mean over tasks beside it."""
    tasks = list(raw["teacher"])
    lines = [f"| trained on | windows | {' | '.join(tasks)} | mean |", f"|---|---|{'---:|' * (len(tasks) + 1)}"]
    rows = {"nothing": [raw["untrained"]]}
    rows |= {arm: [raw["after"][f"{arm} {seed}"] for seed in SEEDS] for arm in ARMS}
    for arm, runs in rows.items():
        for windows in ("windows on", "windows off"):
            kept = [
                [100 * run[windows][task] / raw["teacher"][task] for task in tasks] for run in runs
            ]  # [seeds, tasks]
            cells = [f"{fmean(of_task):.1f}" for of_task in zip(*kept, strict=True)]
            means = [fmean(of_run) for of_run in kept]
            spread = f" ({min(means):.1f} to {max(means):.1f})" if len(means) > 1 else ""
            cells.append(f"{fmean(means):.1f}{spread}")
            lines.append(f"| {arm} | {windows.removeprefix('windows ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
