"""Whether many processes are one, at more length than the test suite has time for; on CPUs, in about ten minutes.

    python benchmarks/processes.py --out results/cpu/processes.json

unbroken   a stage of 50 steps (packed sequences, uneven loss tokens) on 2 and 4 processes by each strategy: the largest
           relative difference of a step's loss from one process
chained    the same, ended by SIGKILL to one process at a random micro-batch, again and again, and resumed on another
           number of processes, by another strategy; to the end at last
restarted  SIGKILL at a random micro-batch; torchrun starts all processes again
terminated SIGTERM to torchrun, which passes it on; the step that was kept, and the run resumed by one process
asked      evaluation, synthesis and placement by 1, 2 and 3 processes: whether all files are the same to the byte, and
           seconds

The stage and the questions are those of tests/distill/cases.py. Started by torchrun, this file is a process of a trial.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from launching import environment, torchrun
from ledger import ROOT

sys.path[:0] = [str(ROOT / "tests/distill"), str(ROOT / "tests")]
STEPS, PER_STEP, STRATEGIES = 50, 4, ("replicas", "fsdp")


def train(root: Path, folder: str, strategy: str, dies_at: int) -> None:
    """The case "short" of 50 steps; the last process ends itself at its `dies_at`-th micro-batch, 0 for never."""
    from itertools import count
    from unittest import mock

    import cases

    from gendistill import distributed
    from gendistill.distill import engine

    original, calls = engine.Trainer._micro_batch, count(1)
    is_last = distributed.rank() == distributed.processes() - 1
    dies = dies_at and is_last and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

    def micro_batch(self, *args):
        if next(calls) == dies_at and dies:
            cases.die()
        return original(self, *args)

    with mock.patch.object(engine.Trainer, "_micro_batch", micro_batch):
        cases.run_case("short", root, folder, strategy, tokens=STEPS * PER_STEP * cases.LENGTH)


def work(what: str, root: Path, folder: str, strategy: str, dies_at: int) -> None:
    import cases
    import torch

    from gendistill import distributed

    torch.set_num_threads(1)
    distributed.start("cpu")
    if what == "train":
        return train(root, folder, strategy, dies_at)
    began = time.perf_counter()
    cases.ask(root / folder)
    distributed.barrier()
    if distributed.is_rank_zero():
        (root / f"{folder}.seconds").write_text(str(time.perf_counter() - began))


def command_of(processes: int, *worker: object, restarts: int = 0) -> dict:
    """What starts so many processes, for subprocess."""
    command = torchrun(processes, __file__, "--worker", *map(str, worker), restarts=restarts)
    own = environment(OMP_NUM_THREADS="1")
    return {"args": command, "env": own, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def launch(processes: int, *worker: object, restarts: int = 0) -> int:
    """Exit status of so many processes."""
    return subprocess.run(**command_of(processes, *worker, restarts=restarts)).returncode


def difference(root: Path, folder: str) -> float:
    """The largest relative difference of a step's loss from the unbroken run of one process."""
    losses = []
    for name in ("one", folder):
        lines = (root / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) == len(losses[1]) == STEPS, folder
    return max(abs(b / a - 1) for a, b in zip(*losses, strict=True))


def unbroken(root: Path) -> dict:
    found = {}
    # Hybrid: as if the four were two on each of two hosts.
    for processes, strategy in [*product((2, 4), STRATEGIES), (4, "hybrid")]:
        name = f"{strategy} {processes}"
        assert launch(processes, "train", root, name, strategy, 0) == 0, name
        found[name] = difference(root, name)
    return found


def chained(root: Path, seeds: int) -> dict:
    found = {}
    for seed in range(seeds):
        draw = random.Random(seed)
        name, attempts = f"chained {seed}", []
        for attempt in range(4):
            processes, strategy = draw.choice((1, 2, 4)), draw.choice(STRATEGIES)
            # Held-out sequences are micro-batches as well; the last attempt goes to the end.
            dies_at = 0 if attempt == 3 else draw.randrange(8, 16 * PER_STEP // processes + 8)
            attempts.append(f"{processes} by {strategy}, ended in micro-batch {dies_at}")
            status = launch(processes, "train", root, name, strategy, dies_at)
            assert (status == 0) == (dies_at == 0), (name, attempts)
        found[name] = {"attempts": attempts, "difference": difference(root, name)}
    return found


def restarted(root: Path) -> dict:
    found = {}
    for strategy in STRATEGIES:
        dies_at, name = random.Random(strategy).randrange(8, 80), f"restarted {strategy}"
        assert launch(2, "train", root, name, strategy, dies_at, restarts=1) == 0, name
        found[name] = {"ended in micro-batch": dies_at, "difference": difference(root, name)}
    return found


def terminated(root: Path) -> dict:
    found = {}
    for strategy in STRATEGIES:
        name = f"terminated {strategy}"
        log = root / name / "metrics.jsonl"
        running = subprocess.Popen(**command_of(2, "train", root, name, strategy, 0))
        while not log.exists() or log.read_text().count("\n") < 10:
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        status = running.wait()
        kept = max(path.name for path in (root / name / "checkpoints").glob("step-*"))
        steps = log.read_text().count("\n")
        assert status != 0 and kept == f"step-{steps:08d}", (name, status, kept, steps)
        assert launch(1, "train", root, name, "whole", 0) == 0, name
        found[name] = {"kept": kept, "difference": difference(root, name)}
    return found


def asked(root: Path) -> dict:
    contents, seconds = {}, {}
    for processes in (1, 2, 3):
        folder = f"asked {processes}"
        assert launch(processes, "ask", root, folder, "replicas", 0) == 0, folder
        timed = "placement.jsonl"  # seconds beside each score
        files = [path for path in (root / folder).rglob("*.jsonl") if path.name != timed]
        contents[processes] = {str(path.relative_to(root / folder)): path.read_bytes() for path in files}
        seconds[processes] = float((root / f"{folder}.seconds").read_text())
    equal = all(content == contents[1] for content in contents.values())
    return {"files": sorted(contents[1]), "equal_to_the_byte": equal, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--seeds", type=int, default=4, help="chains of killed attempts")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        what, root, folder, strategy, dies_at = arguments.worker
        return work(what, Path(root), folder, strategy, int(dies_at))

    import cases

    results: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cases.write_rows(root, STEPS * PER_STEP)
        train(root, "one", "whole", 0)
        parts = {"unbroken": unbroken, "restarted": restarted, "terminated": terminated, "asked": asked}
        parts["chained"] = lambda root: chained(root, arguments.seeds)
        for name, part in parts.items():
            results[name] = part(root)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
