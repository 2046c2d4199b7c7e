"""Runs the hostile programs of the tests and records the share that is contained in results/figures.json.

    python benchmarks/hostile_programs.py

Needs root and what both ways of isolating need, so that all four set-ups are tried: namespaces and seccomp, by root and
by an ordinary user. What became of every program is kept in results/cpu/hostile_programs.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from figures import hostile_figures  # noqa: E402
from ledger import record, takes_no_arguments  # noqa: E402

SETUPS = 4


def main() -> None:
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        pytest = [sys.executable, "-m", "pytest", "-q", "tests/sandbox/test_hostile.py", f"--junitxml={report.name}"]
        pytest += ["-o", "junit_family=xunit1"]  # the one that has properties
        subprocess.run(pytest, cwd=ROOT, check=False)  # a test that fails has recorded what failed
        cases = ElementTree.parse(report.name).iter("testcase")
        contained = {
            case.get("name").partition("[")[2].rstrip("]"): json.loads(found.get("value"))
            for case in cases
            if (found := case.find("properties/property[@name='contained']")) is not None
        }
    if len(contained) < SETUPS:
        raise SystemExit(f"Only {len(contained)} of {SETUPS} set-ups ran here: {', '.join(contained)}")
    results = ROOT / "results/cpu"
    (results / "hostile_programs.json").write_text(json.dumps(contained, indent=1) + "\n")
    record(hostile_figures(results), "python benchmarks/hostile_programs.py")


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main()
