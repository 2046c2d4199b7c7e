"""Where a variant's process runs: on this machine, or as a job of a cluster."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gendistill.errors import UserError


class Process(Protocol):
    """What `subprocess.Popen` and a cluster's job have in common here."""

    def poll(self) -> int | None:
        """The exit status; None while it runs."""

    def terminate(self) -> None: ...

    def wait(self) -> int: ...


class Launcher(Protocol):
    """Starts processes; at most `places` of them run at a time.

    Attributes:
        seconds_between_looks: at how its processes are.
    """

    places: int
    seconds_between_looks: float

    def start(self, command: Sequence[str], log: Path, place: int) -> Process:
        """Starts a command; what it prints goes to `log`, its errors to the same name with .err.

        Args:
            place: 0 to `places` - 1, in which nothing else runs.
        """


def run_command(recipe: Path, output: Path) -> list[str]:
    """The command that runs a variant, on any machine with this interpreter and these folders."""
    # Absolute: a job may begin in another folder.
    return [sys.executable, "-m", "gendistill.cli", "run", str(recipe.absolute()), "--output", str(output.absolute())]


def errors_of(log: Path) -> Path:
    return log.with_suffix(".err")


class Local:
    """Processes of this machine: one for each GPU, or one at a time on the CPU; more of them share its cores."""

    seconds_between_looks = 0.2

    def __init__(self, device: str, jobs: int | None):
        """`device` is the recipe's: auto, cpu or cuda; `jobs` how many processes at a time, None for as many as fit."""
        self.gpus = [] if device == "cpu" else visible_gpus()
        # All of a CPU's cores work for one process already; a GPU holds the models of one.
        self.places = jobs or len(self.gpus) or 1

    def start(self, command: Sequence[str], log: Path, place: int) -> subprocess.Popen:
        environment = dict(os.environ)
        if self.gpus:
            # With more places than GPUs, as --jobs may ask for, several share one.
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        elif self.places > 1:
            # torch would give each as many threads as there are cores; what the person sets goes before.
            environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.places)))
        # Of errors only those of the last attempt, in which the reason of a failure is looked for.
        with open(log, "a") as output, open(errors_of(log), "w") as errors:
            # In the queue's own process group, so that Ctrl-C and a kill of the group reach both.
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch  # here, since every job of a cluster imports this module, and only starts a process that does

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        # Whoever started the queue has a part of the machine: its names, which may be UUIDs, are passed on.
        return [name for name in given.split(",") if name][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


class Cluster:
    """Jobs of a cluster, through submitit: "slurm"; "local" and "debug" try the same on this machine."""

    seconds_between_looks = 2.0

    def __init__(self, kind: str, folder: Path, settings: Mapping[str, Any], jobs: int):
        """`settings` are submitit's, e.g. slurm_partition; `folder` takes what submitit writes.

        Raises:
            UserError: submitit is not installed, or does not know the cluster or a setting.
        """
        try:
            import submitit
        except ImportError:
            raise UserError('--cluster needs submitit: pip install "gendistill[cluster]"') from None
        # As many as are to be in the cluster's own queue at a time.
        self.places = jobs
        try:
            # By its own words what it is called with: it checks names of settings, and whether there is such a cluster.
            self.executor = submitit.AutoExecutor(folder, cluster=kind)
            self.executor.update_parameters(**settings)
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            raise UserError(f"--cluster {kind}: {error}") from None

    def start(self, command: Sequence[str], log: Path, place: int) -> "_Job":
        # Places are of the cluster's own choosing.
        return _Job(self.executor.submit(_call, list(command), str(log.absolute())))


def _call(command: list[str], log: str) -> int:
    """What a job does, on the machine that it is given."""
    with open(log, "a") as output, open(errors_of(Path(log)), "w") as errors:
        return subprocess.call(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)


class _Job:
    """A submitted job, as a process."""

    def __init__(self, job: Any):
        self.job = job

    def poll(self) -> int | None:
        return self.wait() if self.job.done() else None

    def terminate(self) -> None:
        self.job.cancel()  # a running stage resumes from its last checkpoint

    def wait(self) -> int:
        # A job that the cluster ended (time, memory) has no result; which exception says so depends on how.
        try:
            return self.job.result()
        except Exception:
            return 1
