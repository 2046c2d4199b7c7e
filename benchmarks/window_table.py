"""Untrained students whose other layers hold a window, by what they generate, beside their teacher.

    python benchmarks/window_table.py measure TEACHER DATA --out DIR --placement beam7=FILE [--part 0/2] [--items N]
    python benchmarks/window_table.py report DIR

DATA holds a folder for each question set. `measure` wants a GPU; it goes through the configurations in the order of
their importance and keeps what it has, so that one that is cut off has the most important rows, and goes on where it
was. Two processes share the work by --part. What is kept holds no question: for each item whether it was right.
`report` makes results/window/table.json, table.md and table.svg of it, and records the figures.
"""

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path

WINDOWS = (512, 1024, 256)
LENGTHS = (4096, 8192, 16384)
SHOTS = {"gsm8k": "gsm8k/train", "arc_easy": "arc_easy/train", "openbookqa": "openbookqa/train"}


def configurations(placements: dict[str, list[int]], layers: int) -> dict[str, dict]:
    """Options of `student_config` by name, the most important first; the teacher has none."""
    from gendistill.placement.search import fixed

    placed = placements | {f"uniform{n}": fixed("uniform", n, layers) for n in (7, 4)}
    wanted = ["beam7 512", "uniform7 512", "beam7 1024", "beam4 512", "uniform4 512", "beam7 256", "loo7 512"]
    wanted += ["gates7 512", "kl7 512", "beam4 1024", "uniform7 1024", "uniform4 1024", "loo7 1024"]
    wanted += ["beam4 256", "uniform7 256", "uniform4 256"]
    found: dict[str, dict] = {"teacher": {}}
    for name in wanted:
        placement, window = name.split()
        if placement in placed:
            found[name] = dict(keep=placed[placement], mixer="window", window=int(window), sinks=4)
        if name == "beam4 512" and "beam7" in placed:  # what calibration alone gives, without a window and with one
            found["beam7 kda"] = dict(keep=placed["beam7"], mixer="kda", log_decay_bound=-5.0)
    return found


def tasks(data: Path, items: int | None) -> dict[str, dict]:
    """Settings of the tasks by name, short ones first."""
    found = {}
    for name, count in (("gsm8k", 1319), ("humaneval", 164), ("arc_easy", 500), ("openbookqa", 500)):
        found[name] = {"task": name, "path": str(data / name / "test.jsonl.gz"), "items": min(count, items or count)}
        if name in SHOTS:
            found[name]["shots_path"] = str(data / f"{SHOTS[name]}.jsonl.gz")
    for length in LENGTHS if items is None else (256, 512):
        for name in ("needle_single", "recall_full"):
            label = f"{name.split('_')[0]}_{length // 1024 or length}" + ("k" if length >= 1024 else "")
            found[label] = {"task": name, "length": length, "items": min(100, items or 100)}
    return found


def measure(arguments) -> None:
    import torch

    from gendistill.evaluate import run
    from gendistill.models.calibration import calibrate
    from gendistill.models.conversion import convert
    from gendistill.models.families import student_config
    from gendistill.models.loading import load_model, load_tokenizer
    from gendistill.recipe.evaluation import Evaluation

    # Items and prompts are the same for all: they are made once.
    read = run._Questions.read
    made: dict[str, object] = {}

    def read_once(name, task, seed, tokenizer):
        if name not in made:
            made[name] = read(name, task, seed, tokenizer)
        return made[name]

    run._Questions.read = read_once
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    teacher = load_model(arguments.teacher, dtype, device)
    tokenizer = load_tokenizer(arguments.teacher, teacher.config.vocab_size)
    placements = {}
    for given in arguments.placement:
        name, _, file = given.partition("=")
        placements[name] = json.loads(Path(file).read_text())["layers"]
    part, parts = map(int, arguments.part.split("/"))
    settings = tasks(arguments.data, arguments.items)
    everything = configurations(placements, teacher.config.num_hidden_layers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, (name, options) in enumerate(everything.items()):
        if number % parts != part:
            continue
        model = teacher
        if options:
            own = dict(options)
            student, _ = convert(teacher, student_config(teacher.config, own.pop("keep"), **own), seed=0)
            model = student.to(device)
            if model.config.linear_layers:
                ids = torch.tensor([tokenizer(_text(arguments.data))["input_ids"][:2048]], device=device)
                batch = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1], device=device)[None]}
                calibrate(teacher, model, [batch], "standard")
        for task, own in settings.items():
            path = arguments.out / f"{name.replace(' ', '-')}.{task}.json"
            if path.exists():
                continue
            began = time.perf_counter()
            evaluation = Evaluation.model_validate({"tasks": {task: own}})
            with tempfile.TemporaryDirectory() as folder:
                run.evaluate_model(
                    model, tokenizer, evaluation, seed=0, folder=Path(folder), label="m", progress=False, ranks=False
                )
                lines = (Path(folder) / "m" / f"{task}.jsonl").read_text(encoding="utf-8").split("\n")
            records = [json.loads(line) for line in lines if line]
            right = {
                kind: "".join(str(int(record[f"{kind}_correct"])) for record in records)
                for kind in ("generation", "flexible")
            }
            seconds = round(time.perf_counter() - began, 1)
            kept = {"configuration": name, "options": options, "task": task, "seconds": seconds, **right}
            path.write_text(json.dumps(kept) + "\n")
            print(name, task, round(right["generation"].count("1") / len(records), 3), seconds, "s", flush=True)
        model = None
        if device == "cuda":
            torch.cuda.empty_cache()


@functools.cache
def _text(data: Path) -> str:
    """Text to calibrate on: training questions, which none of the tasks asks."""
    import gzip

    with gzip.open(data / "gsm8k/train.jsonl.gz", "rt", encoding="utf-8") as file:
        return "\n".join(json.loads(next(file))["question"] for _ in range(60))


def report(arguments) -> None:
    from figures import ROOT

    results = ROOT / "results/window"
    rows: dict[str, dict] = {}
    for path in sorted(arguments.records.glob("*.json")):
        kept = json.loads(path.read_text())
        rows.setdefault(kept["configuration"], {"options": kept["options"], "tasks": {}})["tasks"][kept["task"]] = kept
    table = {name: _row(row, rows["teacher"]) for name, row in rows.items()}
    results.mkdir(parents=True, exist_ok=True)
    (results / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    (results / "table.md").write_text(_markdown(table))
    _picture(table, results / "table.svg")
    print(_markdown(table))


def _row(row: dict, teacher: dict) -> dict:
    """Accuracy and retention of each task with 95 % intervals, on the same items as the teacher."""
    from gendistill.analysis.scores import wilson

    found = {"options": row["options"], "tasks": {}}
    for task, kept in row["tasks"].items():
        right = [int(digit) for digit in kept["generation"]]
        reference = [int(digit) for digit in teacher["tasks"][task]["generation"]]
        retention, interval = _retention(reference, right)
        found["tasks"][task] = {
            "items": len(right),
            "accuracy": round(sum(right) / len(right), 4),
            "interval": [round(bound, 4) for bound in wilson(sum(right), len(right))],
            "flexible": round(kept["flexible"].count("1") / len(right), 4),
            "retention": retention,
            "retention_interval": interval,
            "seconds": kept["seconds"],
            "outcomes": kept["generation"],
        }
    return found


def _retention(teacher: list[int], student: list[int]) -> tuple[float | None, list[float] | None]:
    """Student / teacher, and a 95 % interval by a paired bootstrap over items."""
    import numpy as np

    pairs = np.array([teacher, student])  # [2, items]
    if not pairs[0].sum():
        return None, None
    draws = np.random.default_rng(0).integers(0, pairs.shape[1], (2000, pairs.shape[1]))
    sums = pairs[:, draws].sum(-1)  # [2, draws]
    ratios = sums[1] / np.maximum(sums[0], 1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return round(float(pairs[1].sum() / pairs[0].sum()), 4), [round(float(low), 4), round(float(high), 4)]


def _markdown(table: dict) -> str:
    names = list(table["teacher"]["tasks"])
    lines = ["| student | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for name, row in table.items():
        cells = []
        for task in names:
            found = row["tasks"].get(task)
            cells.append("" if found is None else f"{100 * found['accuracy']:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _picture(table: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    names = list(table["teacher"]["tasks"])
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    markers = "os^Dv<>pP*Xhd+x"
    for number, (name, row) in enumerate(table.items()):
        if name == "teacher":
            continue
        at = [(i, row["tasks"][task]["retention"]) for i, task in enumerate(names) if task in row["tasks"]]
        at = [(i, 100 * value) for i, value in at if value is not None]
        axis.plot(*zip(*at, strict=True), marker=markers[number % len(markers)], linestyle=":", label=name)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_ylabel("of the teacher's accuracy, %")
    axis.set_ylim(0, 125)
    axis.axhline(100, color="grey", linewidth=0.8)
    axis.legend(fontsize=8, ncols=2)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("measure")
    one.add_argument("teacher")
    one.add_argument("data", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--placement", action="append", default=[], metavar="NAME=FILE")
    one.add_argument("--part", default="0/1")
    one.add_argument("--items", type=int, help="of each task, with short prompts: a rehearsal")
    one.set_defaults(command=measure)
    two = verbs.add_parser("report")
    two.add_argument("records", type=Path)
    two.set_defaults(command=report)
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
