"""One byte changed in each kind of file that a run keeps or reads: it must be noticed, or change nothing else.

A flip is `noticed` (an error or warning of one of the commands that read the file), `without effect` (all other files,
and what is printed, are as without it), `silent` (something differs, and nobody said why) or a `traceback`.
"""

import random
import re
import shutil
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from small_run import SmallRun, complaints, contents, differences

SEED = 20261129
ANYWHERE, BEGINNING, DIGIT = range(3)  # where in a file a byte is flipped: among the first 64, in a digit if it has any
WARNINGS = ("damaged", "WARNING", "changed since written")


@dataclass(frozen=True)
class State:
    """A folder that commands have left, finished or killed, and the commands that go on from it.

    Attributes:
        command: what was running; None of the commands of `then` finds more than it left.
        when: it was killed once there was such a file with so many lines; None if it ended by itself.
        files: those whose bytes are flipped, as a pattern of their names.
        then: arguments of the commands that read them.
        looks: numbers of those in `then` whose printed text must not change either.
        flips: of each kind of file, where.
    """

    command: str
    then: list[list[str]]
    files: str = ".*"
    when: tuple[str, int] | None = None
    looks: list[int] = field(default_factory=list)
    flips: tuple[int, ...] = (ANYWHERE, DIGIT)


def _states(small: SmallRun) -> dict[str, State]:
    run, recipe = str(small.live / "run"), str(small.recipe)

    def on(verb: str, *more: str) -> list[str]:
        return [verb, recipe, "--output", run, *more]

    inspect = [["inspect", run, "--task", task, "--json", "--limit", "99"] for task in ("facts", "choice")]
    shown = [on("show-batch", "--stage", stage, "--step", "0") for stage in ("alignment", "distillation")]
    last = on("evaluate", "--stage", "distillation")  # named, or it would be another one where `distill` has refused
    finished = [["status", run], *inspect, *shown, on("place"), on("synthesize"), on("run")]  # `run` reads all students
    return {
        "finished": State("run from nothing", finished, looks=list(range(5)), flips=(ANYWHERE, BEGINNING, DIGIT)),
        "training": State(
            "distill",
            [on("distill"), last, on("run")],
            files=r"run/(2-distillation/.*|1-.*/(metrics.jsonl|SHA256SUMS)|recipe.yaml)",
            when=("run/2-distillation/checkpoints/step-*4/SHA256SUMS", 1),
        ),
        "preparing": State("convert", [on("convert")], files="run/data/.*", when=("run/data/*.partial/state.json", 1)),
        "placing": State("place", [on("place"), on("convert")], files=r"run/pl.*", when=("run/placement.jsonl", 3)),
        "writing": State(
            "synthesize",
            [on("synthesize"), shown[1]],
            files=r"run/synthesis/.*",
            when=("run/synthesis/answers/replies.jsonl", 8),
            looks=[1],
        ),
        "evaluating": State(
            "evaluate",
            [on("evaluate")],
            files=r"run/evaluation/.*",
            when=("run/evaluation/*/choice.partial.jsonl", 5),
            looks=[0],
        ),
        "converted": State("convert", [on("distill"), last], files=r"run/([dpst0].*|recipe.yaml)"),
    }


def try_all(small: SmallRun, kept) -> None:
    for name, state in _states(small).items():
        chance = random.Random(f"{SEED} {name}")
        made = _make(small, name, state)
        flips = list(_flips(made, small.teacher if state.when is None else None, state, chance))
        if all(f"{name}: {flip.name}" in kept for flip in flips):
            continue
        expected = _outcome(small, made, state)
        for flip in flips:
            if f"{name}: {flip.name}" not in kept:
                kept.add(f"{name}: {flip.name}", _try(small, made, state, expected, flip))


@dataclass(frozen=True)
class _Flip:
    name: str  # kind of file and number
    file: Path  # in the state's folder, or of the teacher
    place: int
    change: int  # by exclusive or


def _make(small: SmallRun, name: str, state: State) -> Path:
    """The folder of a state, as a copy."""
    command = small.commands[state.command]
    if state.when is None:
        return small.undisturbed[state.command].folder
    pattern, lines = state.when
    while True:
        small.restore(small.folder_before(command))
        child = small.start(command.arguments)
        while not child.has_ended() and not _has(small.live, pattern, lines):
            time.sleep(0.0003)
        if not child.has_ended():
            child.send(signal.SIGKILL)
        child.wait()
        if _has(small.live, pattern, lines) and contents(small.live) != contents(
            small.undisturbed[state.command].folder
        ):
            return Path(shutil.copytree(small.live, small.states / f"killed: {name}", dirs_exist_ok=True))


def _has(root: Path, pattern: str, lines: int) -> bool:
    try:
        return any(path.read_bytes().count(b"\n") >= lines or lines == 1 for path in root.glob(pattern))
    except FileNotFoundError:  # it has just got another name
        return False


def _flips(made: Path, teacher: Path | None, state: State, chance: random.Random):
    """The flips of a state: a few for each kind of file."""
    kinds = defaultdict(list)
    for path in sorted(made.rglob("*")):
        name = path.relative_to(made).as_posix()
        # TensorBoard's files are read by TensorBoard alone.
        if path.is_file() and path.stat().st_size and "/curves/" not in name and re.fullmatch(state.files, name):
            kinds[_kind(name)].append(path)
    for path in sorted(teacher.iterdir()) if teacher is not None else ():
        kinds[f"teacher/{path.name}"].append(path)
    for kind, paths in kinds.items():
        for where in state.flips:
            file = chance.choice(paths)
            data = file.read_bytes()
            digits = [place for place, byte in enumerate(data[:100_000]) if chr(byte).isdigit()]
            place, change = chance.randrange(len(data)), chance.randrange(1, 256)
            if where == BEGINNING:
                place = chance.randrange(min(64, len(data)))
            if where == DIGIT and digits and not file.suffix.endswith(("safetensors", "npy", "distcp")):
                place, change = chance.choice(digits), 1
            yield _Flip(f"{kind} {where}", file, place, change)


def _kind(name: str) -> str:
    """A file's name without what differs between stages, data sets, checkpoints, models and tasks."""
    name = re.sub(r"\b[0-9a-f]{20}\b", "KEY", name)
    name = re.sub(r"step-\d+", "step-N", name)
    name = re.sub(r"evaluation/[^/]+/(facts|choice)\b", "evaluation/MODEL/TASK", name)
    return re.sub(r"\b\d-\w+/", "N-STAGE/", name)


@dataclass(frozen=True)
class _Outcome:
    printed: list[tuple[int, str]]  # of each command: exit status, and text
    before: dict
    after: dict


def _outcome(small: SmallRun, made: Path, state: State, flip: _Flip | None = None) -> _Outcome:
    """What the commands of a state come to, with a flip if there is one; the flipped file is left out."""
    small.restore(made)
    own = None
    if flip is not None:
        own = flip.file if flip.file.is_relative_to(small.teacher) else small.live / flip.file.relative_to(made)
        data = bytearray(own.read_bytes())
        data[flip.place] ^= flip.change
        own.write_bytes(data)
    before = contents(small.live)
    printed = [small.run(arguments) for arguments in state.then]
    return _Outcome(printed, before, contents(small.live))


def _told(printed: str) -> list[str]:
    """Lines that a command printed, without how far it was: what is damaged is made again, which takes longer."""
    return [line for line in printed.splitlines() if not re.fullmatch(r".*: [\d,]+ of [\d,]+ \w+, .* left", line)]


def _try(small: SmallRun, made: Path, state: State, expected: _Outcome, flip: _Flip) -> dict:
    original = flip.file.read_bytes()
    try:
        found = _outcome(small, made, state, flip)
    finally:
        if flip.file.is_relative_to(small.teacher):
            flip.file.write_bytes(original)
    own = None if flip.file.is_relative_to(small.teacher) else flip.file.relative_to(made).as_posix()
    noticed, silent, wrong = [], [], []
    for number, ((code, printed), (_, wanted)) in enumerate(zip(found.printed, expected.printed, strict=True)):
        verb = " ".join(part for part in state.then[number] if not part.startswith("/") and part != "--output")
        if (complaint := complaints(code, printed)) is not None:
            wrong.append(f"{verb}: {complaint}")
        elif code or any(word in printed for word in WARNINGS):
            said = [line for line in printed.splitlines() if "gendistill: " in line or any(w in line for w in WARNINGS)]
            noticed.append(f"{verb}: {(said or [printed])[0]}"[:400])
        elif number in state.looks and _told(printed) != _told(wanted):
            silent.append(f"{verb} prints otherwise")
    for name in differences(found.after, expected.after):
        # A command that refused has not written its files.
        if name != own and not (noticed and found.after.get(name) == found.before.get(name)):
            silent.append(name)
    result = {"file": own or f"teacher/{flip.file.name}", "place": flip.place, "change": flip.change}
    if wrong:
        return result | {"outcome": "traceback", "why": wrong}
    if silent:
        return result | {"outcome": "silent", "why": silent, "said": noticed}
    return result | ({"outcome": "noticed", "said": noticed} if noticed else {"outcome": "without effect"})
