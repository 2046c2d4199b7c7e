"""A disk that fills up while a run works on it, at ten sizes: a clear error, nothing announced lost, then the end.

The disk is a file system in memory, made smaller as soon as the run has made its folder: after its check that the disk
has room, as another program would fill it.
"""

import subprocess
import time
from pathlib import Path

from small_run import SmallRun, complaints, contents, differences

COMMAND = "run from nothing"
ROOMY = 1 << 30  # bytes
SMALL = (24, 48, 72, 112)  # KiB: filled by what comes before the first weights, such as records and packed data
LARGE = (0.3, 0.6, 0.9, 1.2, 1.9, 2.4)  # of what a finished run takes: on the way there are checkpoints besides
ANNOUNCED = (  # what a command has said, or shown by its name, to be done
    "run/*/student/model.safetensors",
    "run/*/student/*_report.json",
    "run/*/checkpoints/step-*/SHA256SUMS",
    "run/evaluation/*/*.meta.json",
    "run/data/*/SHA256SUMS",
    "run/synthesis/*/stats.json",
    "run/placement.json",
)


def try_all(small: SmallRun, kept) -> None:
    finished = _size(small.undisturbed[COMMAND].folder)
    for size in [kib << 10 for kib in SMALL] + [round(share * finished) for share in LARGE]:
        name = f"disk of {size >> 10} KiB"
        if name not in kept:
            kept.add(name, _try(small, size))


def _try(small: SmallRun, size: int) -> dict:
    small.restore(None)
    _mount(small.live, "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs")
    try:
        return _fill(small, size)
    finally:
        small.restore(None)
        subprocess.run(["umount", str(small.live)], check=True)


def _fill(small: SmallRun, size: int) -> dict:
    command = small.commands[COMMAND]
    child = small.start(command.arguments)
    while not (small.live / "run/recipe.yaml").exists():
        time.sleep(0.0005)
    _mount(small.live, "-o", f"remount,size={size}")
    wrong, said = [], []
    for attempt in ("filling up", "still full"):
        if attempt == "filling up":
            code, printed = child.wait(), child.printed
        else:  # a verb that does not compare the disk with what it needs first
            code, printed = small.run(small.commands["convert"].arguments)
        complaint = complaints(code, printed)
        if complaint is not None or (code != 2 and attempt == "filling up"):
            wrong.append(f"{attempt}: {complaint or f'it ended with {code}'}")
        said += [line for line in printed.splitlines() if line.startswith("gendistill: ")]
    announced = {path: path.stat().st_mtime_ns for pattern in ANNOUNCED for path in small.live.glob(pattern)}
    _mount(small.live, "-o", f"remount,size={ROOMY}")
    code, printed = small.run(command.arguments)
    if code:
        wrong.append(f"with space again, it ended with {code}: {printed[-500:]}")
    wrong += differences(contents(small.live), contents(small.undisturbed[COMMAND].folder))
    done_again = [
        str(path.relative_to(small.live))
        for path, written in announced.items()
        if "checkpoints" not in path.parts and (not path.exists() or path.stat().st_mtime_ns != written)
    ]
    wrong += [f"done again: {name}" for name in done_again]
    wrong += _not_resumed(announced, printed)
    return {
        "bytes": size,
        "said": said,
        "announced": sorted(str(path.relative_to(small.live)) for path in announced),
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
