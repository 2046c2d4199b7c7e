"""A disk that fills up while a run works on it, at ten sizes: a clear error, nothing announced lost, then the end.

The disk is a file system in memory, made smaller as soon as the run has made its folder: after its check that the disk
has room, as another program would fill it.
"""

import subprocess
import time
from pathlib import Path

from bench_of_runs import Bench, complaints, contents, differences

SIZES = 10
COMMAND = "run from nothing"
ROOMY = 1 << 30  # bytes
FIRST = 96 << 10  # bytes of the smallest disk: the run's recipe and date fit
ANNOUNCED = (  # what a command has said, or shown by its name, to be done
    "run/*/student/model.safetensors",
    "run/*/student/*_report.json",
    "run/*/checkpoints/step-*/SHA256SUMS",
    "run/evaluation/*/*.meta.json",
    "run/data/*/SHA256SUMS",
    "run/synthesis/*/stats.json",
    "run/placement.json",
)


def try_all(bench: Bench, kept) -> None:
    full = _size(bench.undisturbed[COMMAND].folder)
    for number in range(SIZES):
        # The largest is a little less than what the run leaves: checkpoints and partial files come on top.
        size = round(FIRST + (full - FIRST) * number / (SIZES - 1) * 0.99)
        name = f"disk {number}"
        if name not in kept:
            kept.add(name, _try(bench, size))


def _try(bench: Bench, size: int) -> dict:
    bench.restore("")
    _mount(bench.live, "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs")
    try:
        return _fill(bench, size)
    finally:
        bench.restore("")
        subprocess.run(["umount", str(bench.live)], check=True)


def _fill(bench: Bench, size: int) -> dict:
    command = bench.commands[COMMAND]
    child = bench.start(command.arguments)
    while not (bench.live / "run/recipe.yaml").exists():
        time.sleep(0.0005)
    _mount(bench.live, "-o", f"remount,size={size}")
    wrong, said = [], []
    # Twice: a disk that is still full must not do more harm than one that has just filled up.
    for attempt in ("filling up", "full"):
        code, printed = (child.wait(), child.printed) if attempt == "filling up" else bench.run(command.arguments)
        complaint = complaints(code, printed)
        if complaint is not None or code != 2:
            wrong.append(f"{attempt}: {complaint or f'it ended with {code}'}")
        said += [line for line in printed.splitlines() if line.startswith("gendistill: ")]
    announced = {path: path.stat().st_mtime_ns for pattern in ANNOUNCED for path in bench.live.glob(pattern)}
    _mount(bench.live, "-o", f"remount,size={ROOMY}")
    code, printed = bench.run(command.arguments)
    if code:
        wrong.append(f"with space again, it ended with {code}: {printed[-500:]}")
    wrong += differences(contents(bench.live), contents(bench.undisturbed[COMMAND].folder))
    done_again = [
        str(path.relative_to(bench.live))
        for path, written in announced.items()
        if "checkpoints" not in path.parts and (not path.exists() or path.stat().st_mtime_ns != written)
    ]
    wrong += [f"done again: {name}" for name in done_again]
    wrong += _not_resumed(announced, printed)
    return {
        "bytes": size,
        "said": said,
        "announced": sorted(str(path.relative_to(bench.live)) for path in announced),
        "outcome": "nothing lost" if not wrong else "; ".join(wrong),
    }


def _not_resumed(announced, printed: str) -> list[str]:
    """Complaints about stages that did not resume from their newest checkpoint."""
    newest: dict[str, int] = {}
    for path in announced:
        if "checkpoints" in path.parts and (path.parents[2] / "student") not in [other.parent for other in announced]:
            stage = path.parents[2].name.partition("-")[2]
            newest[stage] = max(newest.get(stage, 0), int(path.parent.name.removeprefix("step-")))
    return [
        f"{stage} did not resume from step {step}"
        for stage, step in newest.items()
        if f"{stage}: resumes from step {step}" not in " ".join(printed.split())
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", *options, str(folder)], check=True)
