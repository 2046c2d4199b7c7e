"""How benchmarks start processes of their own, with the package of this checkout: one, or as many as torchrun does."""

import os
import sys

from ledger import ROOT


def environment(**more: str) -> dict[str, str]:
    """This process's own, in which the package is the checkout's."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | more


def torchrun(processes: int, *program: str, restarts: int = 0) -> list[str]:
    """What starts so many processes on this host, by a port of their own, which nobody else has."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*command, f"--max-restarts={restarts}", *program]
