"""Measures the demo and records its figures in results/figures.json.

    python benchmarks/demo.py

Runs recipes/demo.yaml in a new folder as a user does, times the whole command, and keeps the table and the losses under
results/demo/. Run it on an otherwise idle machine.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from figures import demo_figures, student_parameters  # noqa: E402
from ledger import record, takes_no_arguments  # noqa: E402

COMMAND = [sys.executable, "-m", "gendistill.cli", "run", "recipes/demo.yaml", "--output"]


def main() -> None:
    results = ROOT / "results/demo"
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        began = time.time()
        subprocess.run([*COMMAND, str(run)], cwd=ROOT, check=True)
        seconds = round(time.time() - began, 1)
        (results / "timing.json").write_text(json.dumps({"seconds": seconds}) + "\n")
        for name in ("scores.json", "summary.md", "loss.svg", "recipe.yaml"):
            shutil.copyfile(run / name, results / name)
        shutil.copyfile(run / "0-conversion/student/conversion_report.json", results / "conversion_report.json")
        for metrics in run.glob("*/metrics.jsonl"):
            shutil.copyfile(metrics, results / f"{metrics.parent.name}.metrics.jsonl")
    (results / "qwen3-0.6b-size.json").write_text(json.dumps(student_parameters()) + "\n")
    record(demo_figures(results), "python benchmarks/demo.py")


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
