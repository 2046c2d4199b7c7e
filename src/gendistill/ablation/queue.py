"""The queue: variants run one after the other, or on many GPUs at a time, until none is left.

FOLDER/ablation.json        the variants and how far they are, see `result`
FOLDER/variants/NAME/       a run folder each; FOLDER/logs/NAME.log what it printed, NAME.err its errors
FOLDER/data/                packed sequences, which all runs share
FOLDER/summary.md, .json    the comparison
FOLDER/lock                 held by the process that works here

A queue that is killed leaves processes that go on; the next one waits for them, and everything else resumes.
"""

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gendistill.ablation.file import AblationFile
from gendistill.ablation.launch import Launcher, Process, errors_of, run_command
from gendistill.ablation.result import FILE, Ablation, State, Variant, read_ablation, write_ablation
from gendistill.ablation.sharing import OF_TEACHER, Sharing, is_made
from gendistill.ablation.variants import VARIANTS, Planned
from gendistill.console import Console, Progress
from gendistill.errors import Diverged, UserError
from gendistill.files import make_folder
from gendistill.recipe.fields import drop_marked, result_settings
from gendistill.recipe.loading import Recipe
from gendistill.recipe.reading import read_yaml
from gendistill.report.evaluations import TEACHER
from gendistill.run.folder import RECIPE, RunFolder
from gendistill.run.lock import LOCK, holder_of, lock_folder

LOGS = "logs"
# "torch.AcceleratorError: CUDA error: invalid argument", below its traceback.
EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$", re.MULTILINE)
ENDED: tuple[State, ...] = ("done", "failed", "diverged")


@dataclass
class _Running:
    """A variant's process, the place that it takes, and when it began (`time.monotonic`)."""

    process: Process
    place: int
    began: float


def said_last(errors: str) -> str:
    """Why a process has ended, of what it wrote to standard error; empty if it wrote nothing.

    A user error is the last thing that is said. A bug ends in the line that names its exception, and in what else that
    has to say: CUDA's go on for four lines.
    """
    if "gendistill: " in errors:
        return errors.rpartition("gendistill: ")[2]
    lines = EXCEPTION.findall(errors) or errors.splitlines()
    return lines[-1] if lines else ""


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
        # Those that have a run of their own: the teacher's row is a part of the base's.
        self.runs = [each.variant.name for each in planned if each.variant.control != TEACHER]
        # In somebody's folder an ablation would be lost, or would overwrite something.
        if root.exists() and not (root / FILE).exists() and any(path.name != LOCK for path in root.iterdir()):
            raise UserError(f"{root} is not empty and holds no ablation (no {FILE}). Give another --output.")
        try:
            make_folder(root)
            # Before anything there is read, which until now another queue may have been at work on.
            lock_folder(root)
            make_folder(root / LOGS)
            make_folder(root / VARIANTS)
        except OSError as error:
            raise UserError(f"{root}: cannot be written ({error.strerror}). Give another --output.") from None
        # By name, as an earlier queue left them.
        before = {each.name: each for each in read_ablation(root).variants} if (root / FILE).exists() else {}
        self.sharing = Sharing([self.planned[name] for name in self.runs], self._folders(before))
        self.variants = {name: self._resumed(name, before.get(name)) for name in self.planned}
        self.running: dict[str, _Running] = {}

    def _folders(self, before: Mapping[str, Variant]) -> dict[str, RunFolder]:
        """The run of each variant.

        Raises:
            UserError: some are there of another base or with other overrides, or not in the file any more: all of them.
        """
        folders, problems = {}, []
        if gone := sorted(before.keys() - self.planned.keys()):
            problems.append(f"{self.root} holds variants that are not in the file any more: {', '.join(gone)}")
        for name in self.runs:
            planned = self.planned[name]
            try:
                folders[name] = RunFolder(self.root / planned.variant.folder, planned.recipe)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join([*problems, "An ablation that has begun may get new values, not other ones."]))
        return folders

    def _resumed(self, name: str, before: Variant | None) -> Variant:
        """A variant as an earlier queue left it, if that one had brought it to its end."""
        new = self.planned[name].variant
        if before is None or before.overrides != new.overrides or before.state not in ENDED:
            return new
        # With other tasks, say, it is not at its end.
        return before if _is_of(self.root / new.folder, self.planned[name].recipe) else new

    def run(self, launcher: Launcher, only: Sequence[str] = ()) -> None:
        """Runs what is left to its end, one way or another; or `only` these variants, anew if they have ended.

        Raises:
            UserError: no variant has one of these names.
        """
        names = self._chosen(only)
        for name in names:
            # Whatever was in the way of a failed one may be gone; one that diverged would do so again.
            if only or self.variants[name].state == "failed":
                self._reset(name, anew=bool(only))
        left = [name for name in names if self.variants[name].state not in ENDED]
        self._write()
        done = len(names) - len(left)
        self.console.print(
            f"{self.file.name}: {len(names)} variants, {done} have ended; they print into {self.root / LOGS}"
        )
        with Progress(self.file.name, len(names), "variants", self.console, done=done) as progress:
            try:
                while left:
                    self._start_ready(left, launcher)
                    for name in self._ended():
                        left.remove(name)
                        self._tell(name)
                        progress.advance(note=f"{name} {self.variants[name].state}")
                    if left:
                        time.sleep(launcher.seconds_between_looks)
            except BaseException:
                # Asked to stop, or a bug: no process is left behind that nobody waits for.
                self._stop()
                raise

    def _chosen(self, only: Sequence[str]) -> list[str]:
        """Names of runs: of all, or of those asked for by the variant's name or the row's."""
        if not only:
            return self.runs
        found = []
        for name in only:
            fitting = [each for each in self.runs if name in (each, self.variants[each].row)]
            if not fitting:
                raise UserError(f"--only {name}: there is no such variant; known: {', '.join(self.runs)}")
            found += fitting
        return list(dict.fromkeys(found))  # each once, whatever names it

    def _reset(self, name: str, *, anew: bool) -> None:
        """Has a variant that has ended run again: from its beginning, or from what it left."""
        if self.variants[name].state not in ENDED:
            return  # it was interrupted, and resumes
        folder = self.sharing.folders[name].root
        if (holder := holder_of(folder)) is not None:
            raise UserError(f"{folder}: {holder} works there; wait for its end or stop it")
        self.variants[name] = self.planned[name].variant
        if anew:
            self._write()  # first: a kill in between must not leave a row that is done and not there
            shutil.rmtree(folder, ignore_errors=True)

    def _start_ready(self, left: Sequence[str], launcher: Launcher) -> None:
        """Starts what waits for nobody, as long as there are places."""
        # What a killed queue has left continues by itself: it takes a place, and what it makes is waited for.
        held = [name for name in left if name not in self.running and self._holder(name) is not None]
        taken = {running.place for running in self.running.values()}
        free = [place for place in range(launcher.places) if place not in taken]
        free = free[: max(0, len(free) - len(held))]
        for name in left:
            if not free:
                return
            if name in self.running or name in held:
                continue
            if self.sharing.waits_for(name, left) is not None:
                continue
            self.sharing.lay_out(self.root, self.planned[name])
            place = free.pop(0)
            folder = self.sharing.folders[name].root
            # By the recipe that lies there: the file's base may be edited while the queue is at work.
            command = run_command(folder / RECIPE, folder)
            process = launcher.start(command, self._log(name), place)
            self.running[name] = _Running(process, place, time.monotonic())
            self._change(name, state="running", reason=None)

    def _ended(self) -> list[str]:
        """Looks after the processes; returns the variants whose process has ended."""
        ended = []
        for name, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue  # it runs
            del self.running[name]  # its place is free
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
            # With those of stages that it has taken from others: what its student was trained on.
            tokens = sum(stage.whole_tokens for stage in recipe.stages.values())
            self._change(name, state="done", tokens=tokens, seconds=round(seconds, 1))
            return
        # The command line tells the two apart by its exit status, so that no message has to be understood.
        state = "diverged" if code == Diverged.code else "failed"
        self._change(name, state=state, reason=self._reason(name, code), seconds=round(seconds, 1))

    def _reason(self, name: str, code: int) -> str:
        """What a process has said last, or how it ended."""
        errors = errors_of(self._log(name))
        text = errors.read_text(errors="replace").strip() if errors.exists() else ""
        said = said_last(text)
        if code < 0:
            return f"ended by signal {-code}" + (f": {said}" if said else "")
        return said or f"exit status {code}; see {errors.name}"

    def _holder(self, name: str) -> str | None:
        """Which process works in a variant's folder, in words."""
        return holder_of(self.sharing.folders[name].root)

    def _log(self, name: str) -> Path:
        return self.root / LOGS / f"{name}.log"

    def _tell(self, name: str) -> None:
        """Says at once what went wrong with a variant; how far all are, progress says now and then."""
        variant = self.variants[name]
        if variant.state != "done":
            self.console.print(f"{name}: {variant.state}: {variant.reason}")

    def _stop(self) -> None:
        """Ends all processes, which keep what is whole, and what is half done of a stage in a checkpoint."""
        for running in self.running.values():
            running.process.terminate()
        # All have been told by now, and finish their step at the same time.
        for name, running in self.running.items():
            running.process.wait()
            self._change(name, state="waiting", write=False)
        self.running.clear()
        # Once: a second signal may come while many are written.
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
        maker = next(name for name in self.runs if self.variants[name].folder == variant.folder)
        made = is_made(self.sharing.folders[maker], OF_TEACHER)
        return variant.model_copy(update={"state": "done" if made else "waiting"})


def _is_of(folder: Path, recipe: Recipe) -> bool:
    """Whether a run was made with this recipe, in all that results depend on."""
    path = folder / RECIPE
    return path.is_file() and drop_marked(read_yaml(path, "recipe"), recipe) == result_settings(recipe)
