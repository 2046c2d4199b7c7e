"""The queue: variants run one after the other, or on many GPUs at a time, until none is left.

FOLDER/ablation.json        the variants and how far they are, see `result`
FOLDER/variants/NAME/       a run folder each; FOLDER/logs/NAME.log what it printed, NAME.err its errors
FOLDER/data/                packed sequences, which all runs share
FOLDER/summary.md, .json    the comparison
FOLDER/lock                 held by the process that works here

A queue that is killed leaves processes that go on; the next one waits for them, and everything else resumes.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gendistill.ablation.file import AblationFile
from gendistill.ablation.launch import Launcher, Process, errors_of, run_command
from gendistill.ablation.result import FILE, Ablation, State, Variant, read_ablation, write_ablation
from gendistill.ablation.sharing import TEACHER, Sharing, is_made
from gendistill.ablation.variants import Planned
from gendistill.console import Console, Progress
from gendistill.errors import Diverged, UserError
from gendistill.files import make_folder
from gendistill.recipe.fields import drop_marked, result_settings
from gendistill.recipe.loading import Recipe
from gendistill.recipe.reading import read_yaml
from gendistill.run.folder import RECIPE, RunFolder
from gendistill.run.lock import holder_of, lock_folder

ENDED: tuple[State, ...] = ("done", "failed", "diverged")


@dataclass
class _Running:
    """A process, the place that it takes, and when it began (`time.monotonic`)."""

    process: Process
    place: int
    began: float


class Queue:
    """The variants of an ablation, and those of them that run.

    Attributes:
        variants: by name, in the order of the table.
    """

    def __init__(self, root: Path, file: AblationFile, planned: Sequence[Planned], console: Console):
        """Takes the folder for this process, and up from where an earlier queue left it.

        Raises:
            UserError: another process works there, or it holds other variants.
        """
        self.root, self.file, self.console = root, file, console
        self.planned = {each.variant.name: each for each in planned}
        # The teacher's row is a part of the base's run.
        self.runs = [each for each in planned if each.variant.control != TEACHER]
        self.sharing = Sharing(root, self.runs)
        if root.exists() and not (root / FILE).exists() and any(path.name != "lock" for path in root.iterdir()):
            raise UserError(f"{root} is not empty and holds no ablation (no {FILE}). Give another --output.")
        try:
            make_folder(root)
            lock_folder(root)
            make_folder(root / "logs")
            make_folder(root / "variants")
        except OSError as error:
            raise UserError(f"{root}: cannot be written ({error.strerror}). Give another --output.") from None
        self.variants = {name: self._resumed(name) for name in self.planned}
        self._check_folders()
        self.running: dict[str, _Running] = {}

    def _resumed(self, name: str) -> Variant:
        """A variant as an earlier queue left it, but for what this one is to do again."""
        new = self.planned[name].variant
        before = self._before.get(name)
        if before is None or before.overrides != new.overrides:
            return new
        # Whatever was in the way of a failed one may be gone; one that diverged would do so again.
        keeps = before.state in ("done", "diverged") and _is_of(self.root / new.folder, self.planned[name].recipe)
        return before if keeps else new

    @property
    def _before(self) -> dict[str, Variant]:
        if not (self.root / FILE).exists():
            return {}
        return {variant.name: variant for variant in read_ablation(self.root).variants}

    def _check_folders(self) -> None:
        """Raises UserError for variants that are there of another base or with other overrides, all of them."""
        problems = []
        if gone := sorted(self._before.keys() - self.planned.keys()):
            problems.append(f"{self.root} holds variants that are not in the file any more: {', '.join(gone)}")
        for each in self.runs:
            folder = self.root / each.variant.folder
            try:
                RunFolder(folder, each.recipe)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join([*problems, "An ablation that has begun may get new values, not other ones."]))

    def run(self, launcher: Launcher, only: Sequence[str] = ()) -> None:
        """Runs what is left to its end, one way or another; or `only` these variants, anew if they have ended.

        Raises:
            UserError: no variant has one of these names.
        """
        names = self._chosen(only)
        for name in names if only else ():
            self._reset(name)
        left = [name for name in names if self.variants[name].state not in ENDED]
        self._write()
        done = len(names) - len(left)
        with Progress(self.file.name, len(names), "variants", self.console, done=done) as progress:
            try:
                while left:
                    self._start_ready(left, launcher)
                    for name in self._ended():
                        left.remove(name)
                        progress.advance(note=self._describe(name))
                    if left:
                        time.sleep(launcher.seconds_between_looks)
            except BaseException:
                # Asked to stop, or a bug: no process is left behind that nobody waits for.
                self._stop()
                raise

    def _chosen(self, only: Sequence[str]) -> list[str]:
        """Names of runs: of all, or of those asked for by the variant's name or the row's."""
        if not only:
            return [each.variant.name for each in self.runs]
        found = []
        for name in only:
            fitting = [e.variant.name for e in self.runs if name in (e.variant.name, e.variant.row)]
            if not fitting:
                known = ", ".join(each.variant.name for each in self.runs)
                raise UserError(f"--only {name}: there is no such variant; known: {known}")
            found += fitting
        return list(dict.fromkeys(found))

    def _reset(self, name: str) -> None:
        """Has a variant that has ended run anew; one that was interrupted resumes."""
        variant = self.variants[name]
        if variant.state not in ENDED:
            return
        folder = self.root / variant.folder
        if (holder := self._holder(name)) is not None:
            raise UserError(f"{folder}: {holder} works there; wait for its end or stop it")
        self.variants[name] = self.planned[name].variant
        self._write()  # before its folder goes: a kill in between must not leave a row that is done and not there
        shutil.rmtree(folder, ignore_errors=True)

    def _start_ready(self, left: Sequence[str], launcher: Launcher) -> None:
        """Starts what waits for nobody, as long as there are places."""
        # What a killed queue has left goes on by itself: it takes a place, and what it makes is waited for.
        held = [name for name in left if name not in self.running and self._holder(name) is not None]
        taken = {running.place for running in self.running.values()}
        free = [place for place in range(launcher.places) if place not in taken]
        free = free[: max(0, len(free) - len(held))]
        for name in left:
            if not free:
                return
            if name in self.running or name in held:
                continue
            planned = self.planned[name]
            folder = self.root / planned.variant.folder
            if self.sharing.waits_for(planned, left) is not None:
                continue
            self.sharing.lay_out(planned)
            place = free.pop(0)
            command = run_command(folder / RECIPE, folder)
            process = launcher.start(command, self._log(name), place)
            self.running[name] = _Running(process, place, time.monotonic())
            self._change(name, state="running", reason=None)

    def _ended(self) -> list[str]:
        """Takes leave of processes that have ended; returns the variants that have."""
        ended = []
        for name, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[name]
            if code != 0 and self._holder(name) is not None:
                # Another process was faster to take the folder: it is that one's to end.
                self._change(name, state="waiting")
                continue
            self._end(name, code, time.monotonic() - running.began)
            ended.append(name)
        return ended

    def _end(self, name: str, code: int, seconds: float) -> None:
        recipe = self.planned[name].recipe
        if code == 0:
            tokens = sum(stage.whole_tokens for stage in recipe.stages.values())
            self._change(name, state="done", tokens=tokens, seconds=round(seconds, 1))
            return
        state = "diverged" if code == Diverged.code else "failed"
        self._change(name, state=state, reason=self._reason(name, code), seconds=round(seconds, 1))

    def _reason(self, name: str, code: int) -> str:
        """What a process has said last, or how it ended."""
        errors = errors_of(self._log(name))
        text = errors.read_text(errors="replace").strip() if errors.exists() else ""
        said = text.rpartition("gendistill: ")[2] if "gendistill: " in text else text.rpartition("\n")[2]
        if code < 0:
            return f"ended by signal {-code}" + (f": {said}" if said else "")
        return said or f"exit status {code}; see {errors.name}"

    def _holder(self, name: str) -> str | None:
        """Which process works in a variant's folder, in words."""
        return holder_of(self.root / self.variants[name].folder)

    def _log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def _describe(self, name: str) -> str:
        variant = self.variants[name]
        reason = f" ({variant.reason.splitlines()[0]})" if variant.reason else ""
        return f"{name} {variant.state}{reason} after {variant.seconds:,.0f} s"

    def _stop(self) -> None:
        """Ends all processes, which keep what is whole, and what is half done of a stage in a checkpoint."""
        for running in self.running.values():
            running.process.terminate()
        for name, running in self.running.items():
            running.process.wait()
            self._change(name, state="waiting", write=False)
        self.running.clear()
        self._write()

    def _change(self, name: str, *, write: bool = True, **values) -> None:
        self.variants[name] = self.variants[name].model_copy(update=values)
        if write:
            self._write()

    def _write(self) -> None:
        write_ablation(self.root, self.ablation())

    def ablation(self) -> Ablation:
        """As ablation.json has it."""
        failed = [name for name, variant in self.variants.items() if variant.state in ("failed", "diverged")]
        return Ablation(
            name=self.file.name,
            base=self.file.base,
            seeds=self.file.seeds,
            axes={axis: list(values) for axis, values in self.file.axes.items()},
            variants=[self._shown(variant) for variant in self.variants.values()],
            shared=self.sharing.shared(failed),
        )

    def _shown(self, variant: Variant) -> Variant:
        """The teacher's row is as far as its evaluation in the base's run."""
        if variant.control != TEACHER:
            return variant
        recipe = self.planned[variant.name].recipe
        made = is_made(self.root / variant.folder, recipe, TEACHER)
        return variant.model_copy(update={"state": "done" if made else "waiting"})


def _is_of(folder: Path, recipe: Recipe) -> bool:
    """Whether a run was made with this recipe to its last setting: with other tasks, say, it is not at its end."""
    path = folder / RECIPE
    return path.is_file() and drop_marked(read_yaml(path, "recipe"), recipe) == result_settings(recipe)
