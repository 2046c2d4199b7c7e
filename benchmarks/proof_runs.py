"""Trains the students of the proof on one GPU and asks them; called again it resumes.

    python benchmarks/real_teacher/prepare.py --data DATA --out PREPARED
    python benchmarks/window_table.py --teacher FOLDER --questions FILE --data DATA --haystack TEXT --tasks TASK ...
    python benchmarks/proof_runs.py K7-token-replies --teacher FOLDER --data PREPARED --questions FILE --work FOLDER
    python benchmarks/proof_report.py

With --stages far_distillation the student of that stage is asked the short tasks as well, before the next is trained.

A run of a student is recipes/hybrid-1.5b.yaml, or recipes/pure-1.5b.yaml of one without windows, with the settings of
`STUDENTS`, in WORK/NAME. Its records go to results/proof/records (or --out), its losses, reply-KL and recipe to
results/proof/runs, seconds to seconds.json there, and what its recurrences do to sums (share_noise.py) to
results/proof/noise. `--set KEY=VALUE` changes all of them, for a rehearsal.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

import yaml
from launching import environment
from ledger import ROOT
from window_questions import SHORT

from gendistill.files import write_atomically
from gendistill.recipe.loading import load_recipe

FAR_TASKS = ("needle_single_8192", "recall_easy_8192", "needle_single_16384", "recall_easy_16384")
HYBRID, PURE = (ROOT / f"recipes/{name}-1.5b.yaml" for name in ("hybrid", "pure"))
FAR, SUMS = "far_distillation", "gsm8k"
ASKED = ("sums", "programs")  # of the teacher, to write
WRITTEN = {"messages": "messages", "epochs": 8}  # how what it wrote is read
SEVEN, FOUR, TWO = [6, 14, 16, 19, 21, 22, 23], [6, 14, 16, 23], [14, 23]  # by `gendistill place`, beam
RECIPE = yaml.safe_load(HYBRID.read_text())["stages"]
# The recipe as it began: one share for all tokens of a head, and no third stage.
HEAD = "student.window_share=head"


def of_stages(stages: dict) -> str:
    return f"stages={json.dumps(stages)}"


CENTRED = ["conversion.initialisation=centred"]  # the recurrence beside the window; pure-1.5b.yaml has it
TWO_STAGES = {name: stage for name, stage in RECIPE.items() if name != "settling"}
PLAIN = [HEAD, of_stages(TWO_STAGES)]
WIDE = [*PLAIN, "student.window=1024"]  # holds what GSM8K is asked with
# Whole mixers, as gently as short tasks bear; convolutions and gates are new, and at the recipe's rate.
RATE = 2.0e-5
MIXERS = [
    *PLAIN,
    f"stages.{FAR}.train=[mixer]",
    f"stages.{FAR}.learning_rate={{mixer: {RATE}, mixer_conv: 2.0e-3, mixer_gate: 2.0e-3}}",
]
# Windows alone: no convolutions and gates to align, and no recurrence that could do without a window.
WHOLE = {"train": ["mixer"], "learning_rate": RATE, "window_dropout": 0.0}
ALONE = [HEAD, "student.mixer=window", "student.log_decay_bound=null"]
WINDOW = [*ALONE, of_stages({FAR: RECIPE[FAR] | WHOLE})]
# The third stage of windows alone, at the same quarter of the stage before.
SETTLED_WHOLE = {FAR: RECIPE[FAR] | WHOLE, "settling": RECIPE["settling"] | WHOLE | {"learning_rate": RATE / 4}}
SETTLED_WINDOW = [*ALONE, of_stages(SETTLED_WHOLE)]
# A last stage on replies that the student writes, half of the rows; the others as in the stage before.
POLICY = {
    "objective": "reverse_kl",
    "data": {"on_policy": "settled", "share": 0.5, "new_tokens": [64, 256], "reply_kl_bound": 0.1},
    "tokens": 2_000_000,
    "learning_rate": 2.0e-4,
}
ON_POLICY = [of_stages(RECIPE | {"on_policy": RECIPE["settling"] | POLICY})]
# The published architecture as it began: keys as they come, one rate for a whole mixer, and logit distillation on all
# tokens, which made replies worse.
PURE_STAGES = yaml.safe_load(PURE.read_text())["stages"]
REPLIES = "instruction_distillation"
WHOLE_LOGITS = {
    "objective": "forward_kl",
    "train": ["mixer", "mlp", "norm"],
    "data": "mixed",
    "tokens": 6_000_000,
    "sequence_length": 4096,
    "sequences_per_step": 4,
    "micro_batch": 2,
    "learning_rate": {"mixer": 2.0e-4, "mlp": 5.0e-5, "norm": 5.0e-5},
    "checkpoint_every": 1000,
}
FIRST_RATES = {"mixer": 1.0e-4, "mlp": 3.0e-5, "norm": 3.0e-5}
FIRST_STAGES = {
    "qk_alignment": PURE_STAGES["qk_alignment"] | {"learning_rate": 1.0e-3},
    "block_alignment": PURE_STAGES["block_alignment"] | {"tokens": 5_000_000, "learning_rate": 1.0e-3},
    "logit_distillation": WHOLE_LOGITS,
    REPLIES: PURE_STAGES[REPLIES] | {"tokens": 9_000_000, "learning_rate": FIRST_RATES, "held_out_every": 100},
}
FIRST = ["conversion.initialisation=standard", of_stages(FIRST_STAGES)]
# Kept layers, and settings. `-replies` have all of the recipe's data; the others no sums of the teacher's. `-broad`
# reads source code as well, and learns from questions with options under all rotations, functions, sums behind examples
# and instructions of many kinds. K4-mixers and WT4 of results/proof/records were trained at five times the gentle rate.
STUDENTS = {
    "K7-token-replies": (SEVEN, []),
    "K7-token-replies-centred": (SEVEN, CENTRED),
    "K7-token": (SEVEN, []),
    "K7-policy": (SEVEN, ON_POLICY),
    "K7-settled": (SEVEN, [HEAD]),
    "K7": (SEVEN, PLAIN),
    "K7-replies": (SEVEN, PLAIN),
    "K7-wide": (SEVEN, WIDE),
    "K4-token-replies": (FOUR, []),
    "K4-token-replies-centred": (FOUR, CENTRED),
    "K4-token": (FOUR, []),
    "K4-policy": (FOUR, ON_POLICY),
    "K4-settled": (FOUR, [HEAD]),
    "K4": (FOUR, PLAIN),
    "K4-wide": (FOUR, WIDE),
    "K4-mixers-gentle": (FOUR, MIXERS),
    "WT4-gentle": (FOUR, WINDOW),
    "WT4-settled": (FOUR, SETTLED_WINDOW),
    "K2-token-replies": (TWO, []),
    "K2-token": (TWO, []),
    "K2-settled": (TWO, [HEAD]),
    "K2": (TWO, PLAIN),
    "K2-mixers-gentle": (TWO, MIXERS),
    "WT2-gentle": (TWO, WINDOW),
    "P7-broad": (SEVEN, []),
    "P4-broad": (FOUR, []),
    "P7": (SEVEN, FIRST),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", choices=STUDENTS)
    parser.add_argument("--teacher", required=True, help="folder of Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--questions", type=Path, required=True, help="what window_table.py made")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results/proof")
    parser.add_argument("--tasks", nargs="+", default=[*SHORT, *FAR_TASKS])
    parser.add_argument("--stages", nargs="*", default=[], help="whose students are asked the short tasks, too")
    parser.add_argument("--windows", type=int, nargs="*", default=[], help="to ask with besides; tokens")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, for all")
    asked = parser.parse_args()
    if not asked.questions.exists():  # now, not when the student is trained
        parser.error(f"--questions {asked.questions}: no such file; benchmarks/window_table.py makes it, as told above")
    known = {stage for name in asked.students for stage in stages_of(name, asked)}
    if unknown := set(asked.stages) - known:
        parser.error(f"--stages {' '.join(unknown)}: the stages are {', '.join(sorted(known))}")
    for name in asked.students:
        run = train(name, asked)
        student = max(run.glob("[0-9]*-*/student"))  # of the last stage
        ask(name, student, asked, asked.tasks)
        if has_both(name):
            # What a window sees says nothing without it.
            ask(name, student, asked, in_order(FAR_TASKS, asked.tasks), "--without-window")
        for window in asked.windows if recipe_of(name) is HYBRID else []:
            ask(name, student, asked, asked.tasks, "--window", str(window))
        if has_both(name):
            listen(name, student, asked)


def recipe_of(name: str) -> Path:
    """P as in pure: no windows; WT as in windows, trained."""
    return PURE if name.startswith("P") else HYBRID


def has_both(name: str) -> bool:
    """Whether there are recurrences beside the student's windows, which can do without them."""
    return recipe_of(name) is HYBRID and not name.startswith("WT")


def train(name: str, asked: argparse.Namespace) -> Path:
    """The folder of a student's run, which is made, or gone on with."""
    folder = asked.work / name
    recipe = [str(recipe_of(name)), "--output", str(folder), *all_settings(name, asked)]
    stages = stages_of(name, asked)
    early = in_order(stages[:-1], asked.stages)  # the last one's student is asked in any case
    if early:
        timed_call(name, asked, "convert", *recipe)
        for stage in stages[: stages.index(early[-1]) + 1]:
            timed_call(name, asked, "distill", *recipe, "--stage", stage)
            if stage in early:
                (student,) = folder.glob(f"[0-9]*-{stage}/student")
                ask(f"{name}-{stage}", student, asked, in_order(SHORT, asked.tasks))
    timed_call(name, asked, "run", *recipe)
    keep(folder, asked.out / "runs" / name)
    return folder


def all_settings(name: str, asked: argparse.Namespace) -> list[str]:
    settings = [f"teacher={asked.teacher}", f"device={asked.device}", *sources(name, asked.data), *settings_of(name)]
    # What is asked is asked by window_table.py, of the same items for all.
    return [*settings, "evaluation.stages=[]", *asked.set]


def stages_of(name: str, asked: argparse.Namespace) -> list[str]:
    return list(load_recipe(recipe_of(name), all_settings(name, asked)).stages)


def timed_call(name: str, asked: argparse.Namespace, *verb: str) -> None:
    """A verb of gendistill, whose seconds are the run's."""
    began = time.time()
    try:
        call("-m", "gendistill.cli", *verb)
    finally:  # an attempt that failed has cost as well
        count(name, time.time() - began, asked.out / "runs")


def in_order(known: Iterable[str], wanted: Collection[str]) -> list[str]:
    return [each for each in known if each in wanted]


def sources(name: str, data: Path) -> list[str]:
    """Settings that put local files in the place of the recipe's data."""
    written = synthesis(name, data) if has_replies(name) else {}
    return [f"data={json.dumps(mixtures(name, data))}", f"synthesis={json.dumps(written)}", *tasks(data)]


def mixtures(name: str, data: Path) -> dict[str, list[dict]]:
    text, chats = ({"path": str(data / f"{file}.jsonl.gz")} for file in ("text", "chat"))
    chats |= {"messages": "messages", "epochs": 8}
    near, far = (text | {"made": "distant", "distances": distances} for distances in ([64, 7500], [512, 15000]))
    sums, programs = (WRITTEN | {"synthesis": each, "weight": 2} for each in ASKED)
    if "broad" in tags(name):
        code, instructions = ({"path": str(data / f"{file}.jsonl.gz")} for file in ("code", "instructions"))
        instructions |= {"prompt": "prompt", "completion": "completion"}
        choices, bodies = (chats | {"path": str(data / f"{file}.jsonl.gz")} for file in ("choices", "bodies"))
        sums |= {"weight": 1}
        shown = sums | {"synthesis": "shown"}
        return {
            "text": [text | {"weight": 2}, code],
            "mixed": [text | {"weight": 2}, code, chats, choices, instructions, shown, programs],
            "replies": [
                chats,
                choices | {"weight": 3},
                instructions,
                sums,
                shown,
                programs | {"weight": 3},
                bodies,
                near,
            ],
        }
    if recipe_of(name) is PURE:
        return {
            "text": [text],
            "mixed": [text, chats],
            "replies": [chats | {"weight": 3}, sums, programs, near],
        }
    talk = partial(conversations, chats, has_replies(name))
    # Before the recipe, the third stage had twice as many conversations as distant answers.
    settled = talk(2) if "settled" in tags(name) else talk(1)
    return {"text": [text], "far": [far | {"weight": 2}, *talk(1)], "settled": [far, *settled]}


def conversations(chats: dict, with_written: bool, weight: float) -> list[dict]:
    """Of the data sets; half of them what the teacher wrote, where that is wanted. Of this weight in all."""
    if not with_written:
        return [chats | {"weight": weight}]
    return [chats | {"weight": weight / 2}, WRITTEN | {"synthesis": "sums", "weight": weight / 2}]


def tags(name: str) -> list[str]:
    return name.split("-")[1:]


def has_replies(name: str) -> bool:
    """Whether some of what the student learns is written by the teacher."""
    return recipe_of(name) is PURE or "replies" in tags(name)


def synthesis(name: str, data: Path) -> dict[str, dict]:
    """What the teacher is asked to write: worked sums, and programs. Beside a window sums alone, as an evaluation asks
    for them, with examples before: what the window sees whole, as programs are, says nothing to the recurrence."""
    sums = {"kind": "last_number", "path": str(data / "gsm8k.train.jsonl.gz"), "records": 4000}
    programs = {"kind": "instruction", "path": str(data / "programs.jsonl.gz")}
    shown = sums | {"records": 2000, "shots": 5}
    if "broad" in tags(name):
        functions = programs | {"path": str(data / "functions.jsonl.gz")}
        prompts = {"sums": [sums | {"records": 3000}], "programs": [programs, functions], "shown": [shown]}
    elif recipe_of(name) is PURE:
        prompts = {"sums": [sums], "programs": [programs]}
    elif recipe_of(name) is HYBRID:
        prompts = {"sums": [shown]}
    return {each: {"prompts": asked, "max_new_tokens": 320, "batch_size": 512} for each, asked in prompts.items()}


def tasks(data: Path) -> list[str]:
    """What no training text may hold: a set with local files, in the place of the recipe's from the hub."""
    gsm8k = {
        "task": "gsm8k",
        "path": str(data / "gsm8k.test.jsonl.gz"),
        "shots_path": str(data / "gsm8k.train.jsonl.gz"),
    }
    return [f"evaluation.tasks={json.dumps({'gsm8k': gsm8k})}"]


def settings_of(name: str) -> list[str]:
    layers, settings = STUDENTS[name]
    return [f"student.keep_attention={layers}", *settings]


def count(name: str, seconds: float, into: Path) -> None:
    """Adds the seconds of an attempt to those of earlier ones."""
    into.mkdir(parents=True, exist_ok=True)
    ledger = into / "seconds.json"
    known = json.loads(ledger.read_text()) if ledger.exists() else {}
    known[name] = {"all stages": round(seconds + sum(known.get(name, {}).values()))}
    write_atomically(ledger, json.dumps(known, indent=1) + "\n")


def keep(run: Path, into: Path) -> None:
    """Losses, reply-KL, times and recipe of a run."""
    into.mkdir(parents=True, exist_ok=True)
    for path in [*run.glob("[0-9]*-*/metrics.jsonl"), *run.glob("[0-9]*-*/reply_kl.json")]:
        packed = into / f"{path.parent.name}-{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    for path in (run / "recipe.yaml", run / "times.jsonl"):
        shutil.copy(path, into)


def listen(name: str, student: Path, asked: argparse.Namespace) -> None:
    """What the recurrences do to replies longer than a window."""
    if SUMS in asked.tasks:
        command = ["--teacher", asked.teacher, "--questions", str(asked.questions), "--task", SUMS]
        command += ["--student", f"{name}={student}", "--out", str(asked.out / "noise")]
        call(str(ROOT / "benchmarks/share_noise.py"), *command, "--device", asked.device)


def ask(name: str, student: Path, asked: argparse.Namespace, tasks: Sequence[str], *how: str) -> None:
    command = ["--teacher", asked.teacher, "--questions", str(asked.questions), "--out", str(asked.out / "records")]
    command += ["--student", f"{name}={student}", "--device", asked.device, *how]
    if tasks:
        call(str(ROOT / "benchmarks/window_table.py"), *command, "--tasks", *tasks)


def call(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], env=environment())
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
