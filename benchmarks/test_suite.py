"""Times the test suite and records its seconds in results/figures.json.

    python benchmarks/test_suite.py

Runs pytest as `make test` does, on two workers, and keeps what every file took of it, the command line's files besides,
in results/cpu/test_suite.json. Run it on an otherwise idle machine with two cores.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from figures import suite_figures  # noqa: E402
from ledger import record, takes_no_arguments  # noqa: E402

LEFT_OUT = "not gpu and not transformers_tests and not browser and not vllm"  # as in the Makefile
PYTEST = [sys.executable, "-m", "pytest", "-m", LEFT_OUT, "-n", "2", "--dist", "loadfile", "--durations=0"]
AS_MAKE = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
# "3.21s call     tests/cli/test_run.py::test_run_writes_everything"
DURATION = re.compile(r"^ *([\d.]+)s (?:setup|call|teardown) +(tests/\S+?\.py)::", re.MULTILINE)
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error)")


def main() -> None:
    began = time.perf_counter()
    done = subprocess.run(PYTEST, cwd=ROOT, env=os.environ | AS_MAKE, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stdout[-5000:] + done.stderr)
    files = seconds_by_file(done.stdout)
    raw = {
        "seconds": round(seconds, 1),
        "tests": {what: int(count) for count, what in COUNTS.findall(done.stdout.splitlines()[-1])},
        "share_of_cli": round(share_of_cli(files), 3),
        "seconds_by_file": files,
    }
    results = ROOT / "results/cpu"
    (results / "test_suite.json").write_text(json.dumps(raw, indent=1) + "\n")
    record(suite_figures(results), "python benchmarks/test_suite.py")
    print(f"{raw['seconds']} s, {raw['share_of_cli']:.1%} of the work in tests/cli; {raw['tests']}")


def seconds_by_file(output: str) -> dict[str, float]:
    """What the tests of each file took with what they set up, longest first: the sum over both workers."""
    seconds: Counter[str] = Counter()
    for duration, file in DURATION.findall(output):
        seconds[file] += float(duration)
    return {file: round(total, 1) for file, total in seconds.most_common()}


def share_of_cli(files: dict[str, float]) -> float:
    """The share of the work that goes into tests/cli, of the work in all files."""
    return sum(total for file, total in files.items() if file.startswith("tests/cli/")) / sum(files.values())


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
