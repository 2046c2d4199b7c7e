"""What several processes make of the losses of one, and what becomes of them when a worker is killed in the middle.

    python benchmarks/lost_worker.py --out results/gpu/lost_worker_two_gpus.json                 # a process a GPU
    python benchmarks/lost_worker.py --out rehearsal.json --device cpu --processes 2

Three runs of recipes/demo.yaml with 50 steps of logit distillation on text, started as a user starts them: one process,
several, and several of which one gets SIGKILL after 25 steps, when torchrun starts all anew (`--max-restarts`). Writes
the losses of each and the largest differences between them.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from launching import environment, torchrun
from ledger import ROOT, commit, gpu_machine

STEPS, KILLED_AT, CHECKPOINT_EVERY = 50, 25, 10
STAGE = "logit_distillation"
SETTINGS = [
    f"stages={{{STAGE}: {{objective: forward_kl, train: [mixer, mlp, norm], data: text, tokens: {STEPS * 4 * 256}, "
    f"sequence_length: 256, sequences_per_step: 4, micro_batch: 1, learning_rate: 1.0e-3, "
    f"checkpoint_every: {CHECKPOINT_EVERY}}}}}",
    "evaluation.stages=[]",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        losses = {
            "one process": train(Path(folder) / "one", 1, asked.device),
            "several": train(Path(folder) / "several", asked.processes, asked.device),
            "one of them killed": train(Path(folder) / "killed", asked.processes, asked.device, kills=True),
        }
    one, several, killed = losses.values()
    results = {
        "machine": gpu_machine() if asked.device == "cuda" else {"gpu": None},
        "commit": commit(),
        "processes": asked.processes,
        "killed_after_step": KILLED_AT,
        "checkpoint_every": CHECKPOINT_EVERY,
        "largest_relative_difference": {
            "several, from one process": farthest(several, one),
            "one of them killed, from several": farthest(killed, several),
        },
        "losses": losses,
    }
    asked.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["largest_relative_difference"], indent=1))


def train(folder: Path, processes: int, device: str, *, kills: bool = False) -> list[float]:
    """Losses of all steps."""
    run = ["-m", "gendistill.cli", "run", str(ROOT / "recipes/demo.yaml"), "--output", str(folder)]
    command = torchrun(processes, *run, f"device={device}", *SETTINGS, restarts=1)
    with subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1")) as running:
        if kills:
            kill_a_worker(running, folder)
    if running.returncode:
        raise SystemExit(f"{processes} processes: torchrun ended with {running.returncode}")
    losses = [step["loss"] for step in read_steps(folder)]
    if len(losses) != STEPS:
        raise SystemExit(f"{processes} processes: {len(losses)} of {STEPS} steps are in {folder}")
    return losses


def kill_a_worker(running: subprocess.Popen, folder: Path) -> None:
    while len(read_steps(folder)) < KILLED_AT:
        if running.poll() is not None:
            raise SystemExit("the run ended before a worker could be killed")
        time.sleep(0.05)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    print(f"worker {workers[-1]} of {len(workers)} killed after step {len(read_steps(folder))}", flush=True)


def read_steps(folder: Path) -> list[dict]:
    """Of the stage so far; a line that is being written is left for the next time."""
    lines = [line for path in folder.glob(f"*-{STAGE}/metrics.jsonl") for line in path.open()]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def farthest(some: list[float], others: list[float]) -> float:
    return max(abs(one - other) / other for one, other in zip(some, others, strict=True))


if __name__ == "__main__":
    main()
