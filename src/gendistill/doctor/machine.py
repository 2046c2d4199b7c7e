"""What is installed on this machine, and which installations are known to go wrong."""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from packaging.specifiers import SpecifierSet

from gendistill.compute import main_memory
from gendistill.ops.kernels import MISCOMPILES_PER_HEAD, SETTINGS_FOR


@dataclass(frozen=True)
class Machine:
    """What a check's outcome may depend on; None for what is not there."""

    device: str
    backend: str
    python: str
    torch: str
    transformers: str
    triton: str | None
    fla_core: str | None
    cuda: str | None
    gpu: str | None
    capability: tuple[int, int] | None
    gpu_memory: tuple[float, float] | None  # free and total, GiB
    cpu_cores: int
    memory: tuple[float, float] | None  # free and total, GiB
    launch_settings: str

    @property
    def uses_kernels(self) -> bool:
        return self.device == "cuda" and self.backend in ("auto", "kernels")


def examine(device: str, backend: str = "auto") -> Machine:
    """The machine as seen from this process; imports neither triton nor fla, which may be what is broken."""
    on_gpu = device == "cuda"
    capability = torch.cuda.get_device_capability() if on_gpu else None
    return Machine(
        device=device,
        backend=backend,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=importlib.metadata.version("transformers"),
        triton=_installed("triton"),
        fla_core=_installed("fla-core"),
        cuda=torch.version.cuda,
        gpu=torch.cuda.get_device_name() if on_gpu else None,
        capability=capability,
        gpu_memory=tuple(x / 2**30 for x in torch.cuda.mem_get_info()) if on_gpu else None,
        # Those this process may use: a container or a scheduler gives fewer than there are.
        cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory=main_memory(),
        launch_settings=_launch_settings(capability),
    )


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _launch_settings(capability: tuple[int, int] | None) -> str:
    """Whether `ops.kernels.load_kernels` takes the shipped settings here."""
    if capability is None:
        return "not needed on a CPU"
    if capability != SETTINGS_FOR:
        return "none for this GPU: kernels tune themselves first (minutes)"
    if os.environ.get("FLA_CACHE_MODE") == "disabled":
        return "off by FLA_CACHE_MODE: kernels tune themselves first (minutes)"
    return "those of FLA_CONFIG_DIR" if "FLA_CONFIG_DIR" in os.environ else "shipped ones for Hopper"


class KnownProblem(NamedTuple):
    """An installation known to go wrong. `fatal` ones fail; for the others the measurements decide."""

    applies: Callable[[Machine], bool]
    what: str
    advice: str
    fatal: bool


TORCH, TRANSFORMERS, FLA_CORE = ">=2.11", ">=5.17,<6", ">=0.6,<0.7"  # as in pyproject.toml
INSTEAD = "set backend: chunked in the recipe (slower; check it with gendistill doctor --backend chunked)"


def _in(version: str | None, versions: str) -> bool:
    # "2.13.0+cu130": what is behind the plus is the build. Pre-releases count too.
    return version is not None and SpecifierSet(versions).contains(version.split("+")[0], prereleases=True)


# Each with where it is described; it may go once TORCH, TRANSFORMERS or FLA_CORE no longer allow its versions.
KNOWN = [
    KnownProblem(
        lambda m: not _in(m.torch, TORCH),
        f"torch is not {TORCH}, the versions this package is written for",
        f'pip install "torch{TORCH}"',
        fatal=True,
    ),
    KnownProblem(  # cache and mask interfaces differ between these lines of transformers
        lambda m: not _in(m.transformers, TRANSFORMERS),
        f"transformers is not {TRANSFORMERS}, the versions this package is written for",
        f'pip install "transformers{TRANSFORMERS}"',
        fatal=True,
    ),
    KnownProblem(
        lambda m: m.uses_kernels and m.fla_core is None,
        "there is a GPU, and fla-core, whose kernels it needs, is not installed",
        f'pip install "fla-core{FLA_CORE}"; or {INSTEAD}',
        fatal=True,
    ),
    KnownProblem(  # github.com/fla-org/flash-linear-attention/issues/1240
        lambda m: m.uses_kernels and _in(m.fla_core, "<0.6"),
        "fla-core before 0.6: gates of later tokens leak into KDA's bounded path (fla issue 1240)",
        f'pip install "fla-core{FLA_CORE}"',
        fatal=True,
    ),
    KnownProblem(
        lambda m: m.uses_kernels and _in(m.fla_core, ">=0.7"),
        f"fla-core is not {FLA_CORE}, the versions this package was tried with",
        f'if a check fails: pip install "fla-core{FLA_CORE}"',
        fatal=False,
    ),
    KnownProblem(  # fla's README: compute capability 8.0 and newer; so does Triton's
        lambda m: m.uses_kernels and m.capability < (8, 0),
        "a GPU older than sm_80: Triton, and so fla, does not support it",
        INSTEAD,
        fatal=True,
    ),
    KnownProblem(  # .../issues/640, .../pull/983: fla refuses to run them; see `ops.kernels`
        lambda m: m.uses_kernels and m.capability[0] == 9 and _in(m.triton, MISCOMPILES_PER_HEAD),
        "triton 3.4 to 3.7.0 on Hopper: wrong gradients in fla's kernels with one decay per head (fla issue 640), so "
        "gated_deltanet, mamba2 and lightning train through those with a decay per channel, which are slower",
        "nothing; triton 3.7.1 or newer, with the torch it belongs to, is faster for these mixers",
        fatal=False,
    ),
    KnownProblem(  # reported by one team without a public issue; it never happened in this project's own measurements
        lambda m: m.uses_kernels and _in(m.triton, ">=3.7,<3.8"),
        "triton 3.7: one team saw KDA's kernel hang",
        f"if the measurement stands still for minutes, stop it and {INSTEAD}",
        fatal=False,
    ),
]


def known_problems(machine: Machine) -> list[KnownProblem]:
    """Those of this machine; `fatal` ones fail whatever is measured."""
    return [known for known in KNOWN if known.applies(machine)]
