"""Whether the demo gives the same numbers on two trees of the source, before and after modules moved.

    python scripts/compare_moves.py BEFORE AFTER [--runs FOLDER]

Runs recipes/demo.yaml of each tree, or takes up the runs that FOLDER/before and FOLDER/after hold, and compares the
conversion report, every step's losses and gradient norms, and every item's scores and replies to the last digit. Keys
that the moves renamed stand in RENAMED.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RENAMED = {
    "losses_by_start": "losses_by_initialisation",
    "attention_power": "attention_mean_square",
    "update_power": "update_mean_square",
    "hidden_power": "hidden_mean_square",
    "ledger": "parameter_accounting",
    "lenient_parsed": "flexible_parsed",
    "lenient_correct": "flexible_correct",
    "share_of_peak": "mfu",
}
TIMES = {"seconds", "tokens_per_second", "mfu"}  # of a step; never the same twice


def run(tree: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "gendistill.cli", "run", str(tree / "recipes/demo.yaml"), "--output", str(folder)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tree / "src")}, check=True, cwd=tree)


def leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """Every number, text and truth value with its place, under the names of after."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in TIMES:
                yield from leaves(inner, f"{path}.{RENAMED.get(key, key)}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def numbers_of(folder: Path) -> dict[str, dict[str, object]]:
    """What is compared, by file."""
    report = next(
        path
        for path in folder.glob("0-conversion/student/*.json")
        if path.name.endswith(("certificate.json", "report.json"))
    )
    found = {"conversion report": dict(leaves(json.loads(report.read_text())))}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        found[str(path.relative_to(folder))] = dict(
            leaves([json.loads(line) for line in path.read_text().splitlines()])
        )
    for path in sorted(folder.glob("evaluation/*/*.jsonl")):
        records = [json.loads(line) for line in path.read_text().split("\n") if line]
        found[str(path.relative_to(folder))] = dict(leaves(records))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    sides = {"before": arguments.before, "after": arguments.after}
    for side, tree in sides.items():
        if not (arguments.runs / side / "summary.md").exists():
            run(tree.resolve(), (arguments.runs / side).resolve())
    before, after = (numbers_of(arguments.runs / side) for side in sides)
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    differ = 0
    for name in before:
        missing = before[name].keys() ^ after[name].keys()
        changed = [
            place for place in before[name].keys() & after[name].keys() if before[name][place] != after[name][place]
        ]
        differ += len(missing) + len(changed)
        print(
            f"{name}: {len(before[name]):,} values, {len(changed)} differ, {len(missing)} on one side only",
            *sorted([*changed, *missing])[:5],
        )
    sys.exit(differ != 0)


if __name__ == "__main__":
    main()
