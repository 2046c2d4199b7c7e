"""What untrained students keep, by generated answers: placements, windows and mixers, on short and on long tasks.

    python benchmarks/window_table.py --teacher MODEL --data DATA --haystack TEXT --questions FILE
    python benchmarks/window_table.py --teacher MODEL --questions FILE --out RECORDS \\
        --placement beam7=PLACEMENT.json --placement beam4=... --placement leave_one_out7=... [--part 0/2]
    python benchmarks/window_table.py --teacher MODEL --questions FILE --out RECORDS --student K4=STUDENT [...]
    python benchmarks/window_table.py --report RECORDS

The first makes the questions, on a CPU: they are the same for all configurations. The second asks every configuration
of `ORDER` whose placement is given, the most telling first, and writes `RECORDS/CONFIGURATION.jsonl.gz` anew after each
task; called again it resumes where it was. `--part I/N` takes every N-th configuration, so that N processes with a GPU
each share the work. The third asks trained students, and none of `ORDER`: a folder each, under a name of its own. The
last writes results/window and the figures, see window_report.py.

DATA holds a folder for each task of `SHORT` in window_questions.py. Records hold no question. Options are ranked
besides.
"""

import argparse
import gc
import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import gpu_machine
from window_questions import (
    CALIBRATION,
    LENGTHS,
    SEED,
    Questions,
    make_questions,
    named,
    read_questions,
    seconds_since,
    write_whole,
)

from gendistill.names import LETTERS

SINKS = 4
DECAY_BOUND = -5.0  # of the recurrent mixers, as in the recipes
CONTEXTS = (32768, 131072)  # tokens, of the cache's bytes
# Placement, mixer, window: what a run that is cut short should have comes first. Seven kept, or four, is in the name.
ORDER = [
    ("beam7", "window", 512),
    ("uniform7", "window", 512),
    ("beam7", "window", 1024),
    ("beam4", "window", 512),
    ("uniform4", "window", 512),
    ("beam7", "window", 256),
    ("leave_one_out7", "window", 512),
    ("gates7", "window", 512),
    ("kl7", "window", 512),
    ("beam7", "kda", None),
    ("beam7", "kda", 512),
    ("uniform7", "window", 1024),
    ("uniform7", "window", 256),
    ("beam4", "window", 1024),
    ("uniform4", "window", 1024),
    ("beam4", "window", 256),
    ("uniform4", "window", 256),
]


@dataclass(frozen=True)
class Configuration:
    """A student: where attention stays, and what the other layers get. The teacher has no mixer.

    Attributes:
        folder: of a trained student; None: it is converted here, and nothing is trained.
        window_is_on: False leaves recurrences to themselves, to see what they have learnt.
    """

    name: str
    layers: tuple[int, ...] = ()
    mixer: str | None = None
    window: int | None = None
    folder: str | None = None
    window_is_on: bool = True


def main() -> None:
    arguments = read_arguments()
    if arguments.report:
        from window_report import write_report  # needs matplotlib, which a machine with a GPU need not have

        write_report(arguments.report, name=arguments.name)
        return
    if not arguments.questions.exists():
        make_questions(arguments)
    if arguments.out:
        measure(arguments)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder of a Hugging Face model")
    parser.add_argument("--questions", type=Path, help="file of the questions; made if it is not there")
    parser.add_argument("--data", type=Path, help="folder of question sets, to make questions of")
    parser.add_argument("--haystack", help="file of real text, to make questions of")
    parser.add_argument("--items", type=int, help="at most so many of each task, when questions are made")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="when questions are made; tokens")
    parser.add_argument("--out", type=Path, help="folder for the records")
    parser.add_argument("--placement", action="append", default=[], metavar="NAME=FILE", help="of `gendistill place`")
    parser.add_argument("--student", action="append", default=[], metavar="NAME=FOLDER", help="one that was trained")
    parser.add_argument(
        "--without-window", action="store_true", help="of --student: windows beside recurrences are off"
    )
    parser.add_argument("--window", type=int, help="of --student: tokens, in the place of those it was trained with")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th configuration, from the I-th")
    parser.add_argument("--only", nargs="+", metavar="CONFIGURATION", help="by name, such as beam7-window-512")
    parser.add_argument("--tasks", nargs="+", help="by name, such as gsm8k or needle_single_8192; all if absent")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--report", type=Path, metavar="RECORDS", help="write results/window from these records")
    parser.add_argument("--name", help="of the teacher, for the report")
    arguments = parser.parse_args()
    if not arguments.report and not (arguments.teacher and arguments.questions):
        parser.error("give --teacher and --questions, or --report")
    return arguments


def measure(arguments: argparse.Namespace) -> None:
    """Asks every configuration of this part everything that it has not been asked yet."""
    import torch

    from gendistill.models.loading import load_config, load_model, load_tokenizer

    questions = read_questions(arguments.questions)
    known = {each.name: each for each in questions["tasks"]}
    tasks = [known[name] for name in named(arguments.tasks, known, "--tasks")]
    for each in tasks:
        each.task.check_machine()  # now, not when the replies are there
    vocabulary = load_config(arguments.teacher).vocab_size
    most = max(max(prompt) for each in tasks for prompt in each.prompts)
    if most >= vocabulary:
        ids = f"{arguments.teacher} has ids up to {vocabulary - 1:,}"
        raise SystemExit(f"{arguments.questions} holds id {most:,}, {ids}: make its own, by another --questions")
    teacher = load_model(arguments.teacher, torch.bfloat16, arguments.device)
    tokenizer = load_tokenizer(arguments.teacher, vocabulary)
    placements = read_placements(arguments.placement, teacher.config.num_hidden_layers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shared = {"teacher": Path(arguments.teacher).name, "seed": SEED}
    students = trained(arguments.student, not arguments.without_window, arguments.window)
    for configuration in students or mine(arguments, placements):
        path = arguments.out / f"{configuration.name}.jsonl.gz"
        header = shared | describe(teacher.config, configuration, placements)
        lines = stored(path, header) or [header | {"questions": {}} | machine(arguments.device)]
        todo = [each for each in tasks if not answered(path, lines[0]["questions"], each)]
        if not todo:
            continue
        model = build(teacher, configuration, questions["calibration"])
        for each in todo:
            lines += ask(model, tokenizer, each, lines[0]["seconds"], configuration.name)
            lines[0]["questions"][each.name] = each.digest
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_whole(path, gzip.compress(text.encode(), mtime=0))
        del model
        gc.collect()  # captured graphs and what they read refer to each other
        torch.cuda.empty_cache()


def read_placements(given: Sequence[str], of: int) -> dict[str, dict]:
    """Results of placements by name; the uniform ones, which need no file, besides."""
    from gendistill.placement.result import read_result
    from gendistill.placement.search import fixed

    uniform = {f"uniform{count}": {"method": "uniform", "layers": fixed("uniform", count, of)} for count in (7, 4)}
    return uniform | {name: read_result(Path(file)) for name, file in (each.split("=", 1) for each in given)}


def mine(arguments: argparse.Namespace, placements: dict[str, dict]) -> list[Configuration]:
    """The configurations of this process, in their order; those whose placement is not given are left out."""
    others = [(name, "window", 512) for name in placements if name not in {name for name, *_ in ORDER}]
    found = [Configuration("teacher")]
    for placement, mixer, window in [*ORDER, *others]:
        if placement not in placements:
            print(f"no placement {placement}: {placement}-{mixer} is left out", flush=True)
            continue
        name = "-".join(map(str, filter(None, (placement, mixer, window))))
        found.append(Configuration(name, tuple(placements[placement]["layers"]), mixer, window))
    known = {each.name: each for each in found}
    found = [known[name] for name in named(arguments.only, known, "--only")]
    part, parts = map(int, arguments.part.split("/"))
    return found[part::parts]


def trained(given: Sequence[str], window_is_on: bool, window: int | None = None) -> list[Configuration]:
    """The students of folders, described by their own configurations; with another window, if one is given."""
    from gendistill.models.loading import load_config

    found = []
    for name, folder in (each.split("=", 1) for each in given):
        config = load_config(folder)
        (mixer,) = {each for each in config.mixers if each is not None}
        kept = tuple(config.layers_of_type("full_attention"))
        name += "" if window_is_on else "-without_window"
        name += "" if window in (None, config.window) else f"-window-{window}"
        found.append(Configuration(name, kept, mixer, window or config.window, folder, window_is_on))
    return found


def config_of(teacher: Any, configuration: Configuration) -> Any:
    """The model's configuration, given the teacher's."""
    from gendistill.models.families import student_config
    from gendistill.models.loading import load_config

    if configuration.folder is not None:
        config = load_config(configuration.folder)
        config.window = configuration.window
        return config
    if configuration.mixer is None:
        return teacher
    bounded = {} if configuration.mixer == "window" else {"log_decay_bound": DECAY_BOUND}
    seen = {} if configuration.window is None else {"window": configuration.window, "sinks": SINKS}
    return student_config(teacher, configuration.layers, mixer=configuration.mixer, **seen, **bounded)


def describe(teacher: Any, configuration: Configuration, placements: dict[str, dict]) -> dict:
    """What a configuration is, what its cache takes, and what its placement cost."""
    from gendistill.models.conversion import weights_sha256
    from gendistill.models.cost import expected_cache_bytes

    config = config_of(teacher, configuration)
    placement = placements.get(configuration.name.split("-")[0], {})
    # Two that were trained may be alike in all but this.
    trained = {} if configuration.folder is None else {"weights": weights_sha256(Path(configuration.folder))}
    return trained | {
        "configuration": configuration.name,
        "layers": list(configuration.layers) or list(range(teacher.num_hidden_layers)),
        "mixer": configuration.mixer,
        "window": configuration.window,
        "cache_bytes": {str(length): expected_cache_bytes(config, length, batch=1, size=2) for length in CONTEXTS},
        "placement": {key: placement.get(key) for key in ("method", "settings", "cost", "device", "dtype")},
    }


def machine(device: str) -> dict:
    return {"seconds": {}, "machine": gpu_machine() if device == "cuda" else {"gpu": None}}


def stored(path: Path, header: dict) -> list[dict]:
    """The lines of an earlier attempt.

    Raises:
        SystemExit: they are of another configuration.
    """
    if not path.exists():
        return []
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    if different := [key for key, value in header.items() if lines[0].get(key) != value]:
        raise SystemExit(f"{path} was measured with another {', '.join(different)}; give another --out")
    return lines


def answered(path: Path, digests: dict[str, str], questions: Questions) -> bool:
    """Whether these questions were asked already.

    Raises:
        SystemExit: others were, of the same name.
    """
    if digests.get(questions.name, questions.digest) != questions.digest:
        raise SystemExit(f"{path} holds other questions called {questions.name}; give another --out")
    return questions.name in digests


def build(teacher: Any, configuration: Configuration, calibration: Sequence[int]) -> Any:
    """The model, on the teacher's device and in its precision; recurrent mixers are scaled by the teacher."""
    import torch

    from gendistill.models.calibration import calibrate
    from gendistill.models.conversion import convert
    from gendistill.models.loading import load_model

    if configuration.mixer is None:
        return teacher
    if configuration.folder is not None:
        student = load_model(configuration.folder, teacher.dtype, teacher.device.type)
        student.config.window_is_on, student.config.window = configuration.window_is_on, configuration.window
        return student
    config = config_of(teacher.config, configuration)
    student = convert(teacher, config, SEED)[0].to(teacher.device)
    if config.linear_layers:
        ids = torch.tensor(calibration, device=teacher.device).view(CALIBRATION)  # [batches, B, T]
        positions = torch.arange(ids.shape[-1], device=teacher.device).expand(ids.shape[1:])  # [B, T]
        calibrate(teacher, student, [{"input_ids": rows, "position_ids": positions} for rows in ids], "standard")
    return student


def ask(model: Any, tokenizer: Any, questions: Questions, seconds: dict[str, float], name: str) -> list[dict]:
    """The records of a task's items; how long they took goes into `seconds`."""
    from gendistill.evaluate.kinds import grade
    from gendistill.evaluate.ranking import rank
    from gendistill.inference.generation import generate

    began = time.perf_counter()
    task, items = questions.task, questions.items
    replies = generate(model, tokenizer, questions.prompts, task.max_new_tokens, stop=task.stop)
    generated = seconds_since(began)
    grades = grade(items, [reply.text for reply in replies], [reply.truncated for reply in replies])
    records = [
        {
            "task": questions.name,
            "index": item.id,
            "strict": found.strict.correct,
            "flexible": found.flexible.correct,
            "parsed": found.strict.parsed is not None,
            "tokens": reply.tokens,
            "truncated": reply.truncated,
        }
        for item, reply, found in zip(items, replies, grades, strict=True)
    ]
    if questions.candidates:
        rankings = rank(model, items, questions.prompts, questions.candidates)
        for record, item, found, ranking in zip(records, items, grades, rankings, strict=True):
            first = ranking.prediction
            record |= {"ranked": first in item.gold, "letter": found.strict.parsed, "ranked_letter": LETTERS[first]}
    seconds[questions.name] = seconds_since(began)
    told = "".join(
        f"{how} {share(records, how):.1%}, " for how in ("strict", "flexible", "ranked") if how in records[0]
    )
    print(f"{name} {questions.name}: {told}{generated} s to generate, {seconds[questions.name]} s in all", flush=True)
    return records


def share(records: Sequence[dict], how: str) -> float:
    return sum(record[how] for record in records) / len(records)


if __name__ == "__main__":
    main()
