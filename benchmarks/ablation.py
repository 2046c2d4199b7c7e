"""Measures the shipped ablation on a CPU, killed twice on its way, and records its figure in results/figures.json.

    python benchmarks/ablation.py [--axes objective duration] [--seeds 0] [--jobs 2]

Runs recipes/ablation.yaml, ends all of its processes with kill -9 after a third and after two thirds of the variants,
in the middle of a training, and times the whole, starts and lost work included. Then runs it without a break, and
compares metrics, weights, answers and the table to the last digit. Parts (--axes, --seeds) are not recorded.
The raw output goes to results/cpu/ablation.json, the table to results/cpu/ablation.md. Run it on an otherwise idle
machine; the whole takes twice the figure.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from figures import ablation_figures  # noqa: E402
from ledger import record  # noqa: E402

from gendistill.ablation.result import read_ablation  # noqa: E402
from gendistill.models.conversion import weights_sha256  # noqa: E402

RESULTS = ROOT / "results/cpu"
WHOLE = ROOT / "recipes/ablation.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", help="all if not given")
    parser.add_argument("--seeds", nargs="+", type=int, help="those of the file if not given")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes, a thread each")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gendistill-ablation-") as name:
        folder = Path(name)
        file = write_part(folder, asked.axes, asked.seeds)
        # The same number for both, since sums in another order round otherwise.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        broken, whole = folder / "killed", folder / "unbroken"
        began = time.time()
        kills = [run(file, broken, environment, asked.jobs, until=share) for share in (1 / 3, 2 / 3)]
        run(file, broken, environment, asked.jobs)
        minutes = (time.time() - began) / 60
        began = time.time()
        run(file, whole, environment, asked.jobs)
        found = {
            "minutes": round(minutes, 2),
            "minutes_unbroken": round((time.time() - began) / 60, 2),
            "killed_in": kills,
            "equal": results(broken) == results(whole),
            "jobs": asked.jobs,
        } | counts(broken)
        print(json.dumps(found, indent=1))
        if asked.axes is None and asked.seeds is None:
            (RESULTS / "ablation.json").write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / "ablation.md").write_text((broken / "summary.md").read_text())
            record(ablation_figures(RESULTS), "python benchmarks/ablation.py")
    if not found["equal"]:
        sys.exit("the ablation that was killed ended otherwise than the unbroken one")


def write_part(folder: Path, axes: list[str] | None, seeds: list[int] | None) -> Path:
    """The shipped ablation, or some of its axes and seeds, as a file in `folder`."""
    settings = yaml.safe_load(WHOLE.read_text())
    settings["base"] = str(WHOLE.parent / settings["base"])
    if axes is not None:
        settings["axes"] = {axis: settings["axes"][axis] for axis in axes}
    if seeds is not None:
        settings["seeds"] = seeds
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def run(file: Path, output: Path, environment: dict, jobs: int, until: float | None = None) -> str | None:
    """Runs the command to its end, or kills it in a training once a share of its variants is done; returns which."""
    command = [sys.executable, "-m", "gendistill.cli", "ablate", str(file), "--output", str(output)]
    command += ["--jobs", str(jobs)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    if until is None:
        if process.wait() != 0:
            sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
        return None
    while (training := in_training(output, until)) is None:
        if process.poll() is not None:
            sys.exit(f"{' '.join(command)}: ended before it could be killed")
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return training


def in_training(output: Path, share: float) -> str | None:
    """The stage that is being trained, if that share of the variants is done."""
    if not (output / "ablation.json").exists():
        return None
    variants = [variant for variant in read_ablation(output).variants if variant.control != "teacher"]
    done = sum(variant.state == "done" for variant in variants)
    running = [variant for variant in variants if variant.state == "running"]
    if done < share * len(variants) or not running:
        return None
    logs = (output / running[0].folder).glob("*/metrics.jsonl")
    trained = [log.parent for log in logs if log.stat().st_size and not (log.parent / "student").exists()]
    return f"{running[0].name}, {trained[0].name}" if trained else None


def results(output: Path) -> dict:
    """All that an ablation comes to but its times: metrics, weights and answers of every run, and the table."""
    found = {"summary": json.loads((output / "summary.json").read_text())}
    for variant in read_ablation(output).variants:
        folder = output / variant.folder
        for log in folder.glob("*/metrics.jsonl"):
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            steps = [{key: value for key, value in row.items() if "second" not in key} for row in rows]
            found[f"{variant.name} {log.parent.name}"] = steps
        for student in folder.glob("*/student"):
            found[f"{variant.name} {student.parent.name} weights"] = weights_sha256(student)
        for answers in folder.glob("evaluation/*/*.jsonl"):
            found[f"{variant.name} {answers.relative_to(folder)}"] = answers.read_text()
    return found


def counts(output: Path) -> dict:
    """How many variants there are, and stages that were run once for several, and runs of stages that this spared."""
    ablation = read_ablation(output)
    states = [variant.state for variant in ablation.variants]
    return {
        "variants": len(states),
        "done": states.count("done"),
        "stages_run_once": len(ablation.shared),
        "stages_spared": sum(len(stage.variants) - 1 for stage in ablation.shared),
    }


if __name__ == "__main__":
    main()
