"""Trains the students of the proof on one GPU and asks them; called again it goes on where it was.

    python benchmarks/real_teacher/prepare.py --data DATA --out PREPARED
    python benchmarks/window_table.py --teacher FOLDER --questions FILE --data DATA --haystack TEXT --tasks TASK ...
    python benchmarks/proof_runs.py K7 K4 --teacher FOLDER --data PREPARED --questions FILE --work FOLDER
    python benchmarks/proof_report.py

A run of a student is recipes/hybrid-1.5b.yaml with the settings of `STUDENTS`, in WORK/NAME. Its records go to
results/proof/records (or --out), its losses, reply-KL and recipe to results/proof/runs, and seconds to seconds.json
there. `--set KEY=VALUE` changes all of them, for a rehearsal.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from figures import ROOT

from gendistill.files import write_atomically

RECIPE = ROOT / "recipes/hybrid-1.5b.yaml"
LAYERS = {"7": [6, 14, 16, 19, 21, 22, 23], "4": [6, 14, 16, 23], "2": [14, 23]}  # by `gendistill place`, beam
FAR = "stages.far_distillation"
# Whole mixers, as gently as short tasks bear; convolutions and gates are new, and at the recipe's rate.
MIXERS = [f"{FAR}.train=[mixer]", f"{FAR}.learning_rate={{mixer: 2.0e-5, mixer_conv: 2.0e-3, mixer_gate: 2.0e-3}}"]
WINDOW = ["student.mixer=window", "student.log_decay_bound=null"]
STUDENTS = {
    "K7": [],
    "K4": [],
    "K2": [],
    "K4-mixers": MIXERS,
    "K2-mixers": MIXERS,
    "WT4": WINDOW,
    "WT2": WINDOW,
}
LONG = ("needle_single_8192", "recall_easy_8192", "needle_single_16384", "recall_easy_16384")
SHORT = "gsm8k humaneval arc_easy openbookqa arc_challenge mmlu_redux commonsense_qa boolq".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", choices=STUDENTS)
    parser.add_argument("--teacher", required=True, help="folder of Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--questions", type=Path, required=True, help="what window_table.py made")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results/proof")
    parser.add_argument("--tasks", nargs="+", default=[*LONG, *SHORT])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, for all")
    asked = parser.parse_args()
    for name in asked.students:
        run = train(name, asked)
        ask(name, run, asked)
        if not name.startswith("WT"):  # a window alone has nothing to say without its windows
            ask(name, run, asked, "--without-window")


def train(name: str, asked: argparse.Namespace) -> Path:
    """The folder of a student's run, which is made, or gone on with."""
    folder = asked.work / name
    settings = [f"teacher={asked.teacher}", f"device={asked.device}", *sources(asked.data), *settings_of(name)]
    # What is asked is asked by window_table.py, of the same items for all.
    settings += ["evaluation.stages=[]", *asked.set]
    began = time.time()
    call("-m", "gendistill.cli", "run", str(RECIPE), "--output", str(folder), *settings)
    keep(name, folder, time.time() - began, asked.out / "runs")
    return folder


def sources(data: Path) -> list[str]:
    text, chats = (json.dumps(str(data / f"{name}.jsonl.gz")) for name in ("text", "chat"))
    far = (
        f"[{{path: {text}, made: distant, distances: [512, 15000], weight: 2}}, {{path: {chats}, messages: messages}}]"
    )
    return [f"data.text=[{{path: {text}}}]", f"data.far={far}", *tasks(data)]


def tasks(data: Path) -> list[str]:
    """What no training text may hold: a set with local files, in the place of the recipe's from the hub."""
    gsm8k = {
        "task": "gsm8k",
        "path": str(data / "gsm8k.test.jsonl.gz"),
        "shots_path": str(data / "gsm8k.train.jsonl.gz"),
    }
    return [f"evaluation.tasks={json.dumps({'gsm8k': gsm8k})}"]


def settings_of(name: str) -> list[str]:
    kind = name.removesuffix("-mixers")
    settings = [f"student.keep_attention={LAYERS[kind[-1]]}", *STUDENTS[name]]
    if STUDENTS[name] is WINDOW:  # without convolutions, gates and a recurrence that could do without it
        stage = {"objective": "forward_kl", "loss_on": "completion", "train": ["mixer"], "data": "far"}
        stage |= {"tokens": 4_000_000, "sequence_length": 16_384, "sequences_per_step": 1, "micro_batch": 1}
        stage |= {"learning_rate": 2.0e-5, "held_out_every": 60, "checkpoint_every": 1000}
        stage["schedule"] = {"shape": "wsd", "warmup": 0.05, "decay": 0.4, "final": 0.02}
        settings.append(f"stages={json.dumps({'far_distillation': stage})}")
    return settings


def keep(name: str, folder: Path, seconds: float, into: Path) -> None:
    """Losses, reply-KL and recipe of a run, and its seconds, those of earlier parts of it among them."""
    (into / name).mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("[0-9]*-*/metrics.jsonl"), *folder.glob("[0-9]*-*/reply_kl.json")]:
        packed = into / name / f"{path.parent.name}-{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    (into / name / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    ledger = into / "seconds.json"
    known = json.loads(ledger.read_text()) if ledger.exists() else {}
    known[name] = {"all stages": round(seconds + sum(known.get(name, {}).values()))}
    write_atomically(ledger, json.dumps(known, indent=1) + "\n")


def ask(name: str, run: Path, asked: argparse.Namespace, *how: str) -> None:
    student = max(run.glob("[0-9]*-far_distillation/student"))
    command = ["--teacher", asked.teacher, "--questions", str(asked.questions), "--out", str(asked.out / "records")]
    command += ["--student", f"{name}={student}", "--device", asked.device, *how]
    left = [task for task in asked.tasks if not how or task in LONG]  # what a window sees says nothing without it
    if left:
        call(str(ROOT / "benchmarks/window_table.py"), *command, "--tasks", *left)


def call(*command: str) -> None:
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, *command], env=os.environ | {"PYTHONPATH": source})
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
