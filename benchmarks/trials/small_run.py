"""A small run, undisturbed: the folders before and after each command, and how they are compared."""

import json
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from forks import Child, preload

STAGE = dict(
    sequences_per_step=2, micro_batch=2, sequence_length=64, tokens=64 * 2 * 6, learning_rate=1e-3, checkpoint_every=2
)
ARITHMETIC = dict(kind="last_number", path="embedded:arithmetic")
RECIPE = dict(
    name="tiny",
    device="cpu",
    student=dict(keep_attention=dict(method="beam", layers=2, length=112, prompts=2, window=16, sinks=1)),
    conversion=dict(tokens=512, sequence_length=64),
    data=dict(
        text=[dict(path="embedded:text")],
        answers=[dict(synthesis="answers", messages="messages", epochs=9)],
    ),
    synthesis=dict(answers=dict(prompts=[ARITHMETIC | dict(records=12)], max_new_tokens=32, batch_size=4)),
    stages=dict(
        alignment=STAGE | dict(data="text", objective="mixer_l2", train=["mixer"]),
        distillation=STAGE
        | dict(data="answers", objective="forward_kl", train=["mixer", "mlp", "norm"], loss_on="completion")
        | dict(sequence_length=128, tokens=128 * 2 * 6),
    ),
    evaluation=dict(
        batch_size=4,
        tasks=dict(
            facts=dict(kind="short_answer", path="embedded:facts", items=8, max_new_tokens=6),
            choice=dict(kind="multiple_choice", path="embedded:choice", items=8, max_new_tokens=3),
        ),
    ),
)
ROUND = 256  # tokens of a round of preparing data, so that even a small data set is made in several


@dataclass(frozen=True)
class Command:
    """A command of the command line, and where it starts."""

    name: str
    arguments: list[str]
    before: str  # name of the command whose folder it finds; "" for none


@dataclass(frozen=True)
class Undisturbed:
    """What a command does that nobody disturbs."""

    seconds: float
    folder: Path  # a copy of what it left
    printed: str


class SmallRun:
    """A folder `live`, in which all commands work, and copies of what each of them leaves undisturbed.

    Attributes:
        undisturbed: by the name of the command.
    """

    def __init__(self, root: Path):
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}
        from gendistill.embedded import teacher_folder  # no torch, and so no threads

        self.live, self.log, self.states = root / "live", root / "log.txt", root / "states"
        self.teacher = shutil.copytree(teacher_folder(), root / "teacher")
        self.recipe = root / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE | {"teacher": str(self.teacher)}, sort_keys=False))
        self.commands = {command.name: command for command in self._commands()}
        preload(self._use_all)
        from gendistill.data import mixture

        mixture.ROUND_TOKENS = ROUND
        self.undisturbed: dict[str, Undisturbed] = {}
        for command in self.commands.values():
            print(f"undisturbed: {command.name}", flush=True)
            self.undisturbed[command.name] = self._leave_alone(command)

    def _commands(self) -> list[Command]:
        run = str(self.live / "run")
        task = self.recipe.with_name("facts.yaml")
        task.write_text(yaml.safe_dump(RECIPE["evaluation"]["tasks"]["facts"]))
        student = f"{run}/2-distillation/student"

        def on_run(verb: str, *more: str) -> list[str]:
            return [verb, str(self.recipe), "--output", run, *more]

        page = str(self.live / "batch.html")
        one = ["evaluate", "--model", str(self.teacher), "--tasks", str(task), "--device", "cpu"]
        return [
            Command("run from nothing", on_run("run"), ""),
            Command("synthesize", on_run("synthesize"), ""),
            Command("place", on_run("place"), "synthesize"),
            Command("show-batch", on_run("show-batch", "--stage", "alignment", "--page", page), "place"),
            Command("convert", on_run("convert"), "place"),
            Command("distill", on_run("distill"), "convert"),
            Command("evaluate", on_run("evaluate"), "distill"),
            Command("run", on_run("run"), "evaluate"),
            Command("evaluate --model", [*one, "--output", str(self.live / "model")], ""),
            Command("plan", ["plan", str(self.recipe), "--json", str(self.live / "plan.json")], ""),
            Command(
                "bench",
                ["bench", student, "--contexts", "64,128", "--batches", "1", "--repeats", "1", "--device", "cpu"]
                + ["--output", str(self.live / "bench")],
                "distill",
            ),
        ]

    def _use_all(self) -> None:
        """Runs commands in this process, for the modules that they import."""
        from gendistill.cli import main

        self.live.mkdir()
        for name in ("run from nothing", "show-batch", "evaluate --model", "plan", "bench"):
            sys.argv = ["gendistill", *self.commands[name].arguments]
            with suppress(SystemExit):  # as every command ends
                main()
        shutil.rmtree(self.live)

    def run(self, arguments: list[str]) -> tuple[int, str]:
        """Exit status of a command, and what it printed."""
        child = self.start(arguments)
        return child.wait(), child.printed

    def start(self, arguments: list[str]) -> Child:
        return Child(arguments, self.log)

    def _leave_alone(self, command: Command) -> Undisturbed:
        self.restore(self.folder_before(command))
        began = time.monotonic()
        code, printed = self.run(command.arguments)
        if code:
            raise SystemExit(f"undisturbed, {command.name} ended with {code}: {printed}")
        seconds = time.monotonic() - began
        copy = self.states / command.name
        shutil.copytree(self.live, copy)
        return Undisturbed(seconds, copy, printed)

    def folder_before(self, command: Command) -> Path | None:
        """What a command finds; None for nothing."""
        return self.undisturbed[command.before].folder if command.before else None

    def restore(self, folder: Path | None) -> None:
        """Makes the live folder a copy of another; empty for None."""
        for path in self.live.iterdir() if self.live.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.live.mkdir(exist_ok=True)  # kept, as it may be a mount point
        if folder is not None:
            shutil.copytree(folder, self.live, dirs_exist_ok=True)


def complaints(code: int, printed: str) -> str | None:
    """What is wrong with how a command ended: anything but 0, one clear error, or a signal that it answers."""
    if "Traceback (most recent call last)" in printed:
        return f"traceback: {printed.strip().splitlines()[-1]}"
    if code in (0, 130, 143):
        return None
    if code != 2:
        return f"exit status {code}: {printed[-300:]}"
    errors = [line for line in printed.splitlines() if line.startswith("gendistill: ")]
    return None if len(errors) == 1 else f"{len(errors)} errors: {printed[-300:]}"


# What two undisturbed runs differ in, by the file it stands in, and why. Everything else must be equal to the byte.
SKIPPED = {
    r".*/lock": "names the process that works there",
    r".*/curves/.*": "TensorBoard's own files, named by time and process",
    r"bench/.*|plan\.json": "measured seconds, and what follows from them",
}
TIMES = {  # keys whose values are times, or follow from them
    r".*/metrics\.jsonl": {"seconds", "tokens_per_second", "mfu"},
    r".*/placement\.jsonl?": {"seconds", "sha256", "crc32"},
    r".*/synthesis/.*/stats\.json": {"seconds_this_time", "tokens_this_time"},  # of the last attempt alone
    r".*/teacher\.json": {"unchanged"},  # place and times of the teacher's files, which flips change and put back
}
# The placement's row of the summary: its last cells are seconds and tokens.
SECONDS_IN_SUMMARY = re.compile(rb"(?m)^(\| 1 beam (?:\|[^|\n]*){4}\|)[^|\n]*")
SUMS_OF_TIMES = {r".*/synthesis/.*/SHA256SUMS": "stats.json", r".*/\d+-\w+/SHA256SUMS": "metrics.jsonl"}


def content(root: Path, path: Path) -> Any:
    """What of a file must be equal in two runs."""
    name = path.relative_to(root).as_posix()
    if any(re.fullmatch(pattern, name) for pattern in SKIPPED):
        return "skipped"
    for pattern, keys in TIMES.items():
        if re.fullmatch(pattern, name):
            text = path.read_text(errors="replace")
            try:
                values = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
            except ValueError:  # flipped
                break
            return _without(values, keys)
    for pattern, file in SUMS_OF_TIMES.items():
        if re.fullmatch(pattern, name):
            return [line for line in path.read_text(errors="replace").splitlines() if not line.endswith(f"  {file}")]
    return SECONDS_IN_SUMMARY.sub(rb"\1", path.read_bytes()) if path.name == "summary.md" else path.read_bytes()


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(part, keys) for key, part in value.items() if key not in keys}
    return [_without(part, keys) for part in value] if isinstance(value, list) else value


def contents(root: Path) -> dict[str, Any]:
    """Of all files, by name; of TensorBoard's, that a folder has any."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if re.fullmatch(r".*/curves/.*", name):
            name = f"{path.parent.relative_to(root).as_posix()}/"  # each attempt leaves one
        found[name] = content(root, path)
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of files that differ, are missing, or should not be there."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]
