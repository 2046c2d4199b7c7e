"""Tries to spoil small runs, and records what became of each trial in results/figures.json.

    python benchmarks/trials [kills] [flips] [full_disk]

kills      processes that are ended at random moments; the same command, given again, must leave the undisturbed folder
flips      one byte changed in each kind of file; it must be noticed, or change nothing
full_disk  a disk that fills up at ten sizes; what was announced must stay, and the run resume from it

All parts if none is named. Every trial is kept in results/cpu/trials.json as it ends, so that a call that was stopped
resumes there; delete the file to try all anew. About half an hour on two cores; full_disk mounts file systems in
memory, and so needs root.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import flips  # noqa: E402
import full_disk  # noqa: E402
import kills  # noqa: E402
from figures import trials_figures  # noqa: E402
from ledger import record  # noqa: E402
from small_run import SmallRun  # noqa: E402

PARTS = {"kills": kills, "flips": flips, "full_disk": full_disk}
RAW = ROOT / "results/cpu/trials.json"


class Kept:
    """The trials of one part that have ended, by name, in the raw output."""

    def __init__(self, part: str):
        self.part = part

    def __contains__(self, name: str) -> bool:
        return name in _read().get(self.part, {})

    def add(self, name: str, result: dict) -> None:
        raw = _read()
        raw.setdefault(self.part, {})[name] = result
        partial = RAW.with_name(RAW.name + ".partial")
        partial.write_text(json.dumps(raw, indent=1) + "\n")
        partial.replace(RAW)
        print(f"{self.part}, {name}: {result['outcome']}", flush=True)


def _read() -> dict:
    return json.loads(RAW.read_text()) if RAW.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    asked = parser.parse_args().parts or list(PARTS)
    if unknown := set(asked) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="gendistill-trials-") as folder:
        small = SmallRun(Path(folder))
        for part in asked:
            PARTS[part].try_all(small, Kept(part))
    raw = _read()
    if raw.keys() == PARTS.keys():
        record(trials_figures(RAW.parent), "python benchmarks/trials")


if __name__ == "__main__":
    main()
