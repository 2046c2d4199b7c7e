"""The ledger results/figures.json: puts measured values into it, and says what they were measured on."""

import argparse
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "results/figures.json"


def takes_no_arguments(described: str) -> None:
    """Says what a benchmark is for, if it is asked by --help, and refuses all else: before it measures and records."""
    argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()


def gpu_machine(*packages: str) -> dict:
    """The GPU, the versions of what runs on it (of `packages` besides), and today's date."""
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "measured": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "triton", "fla-core", "transformers", *packages)},
    }


def commit(checkout: Path = ROOT) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()


def record(figures: dict[str, dict], command: str, **elsewhere) -> None:
    """Puts figures measured just now into the ledger; `elsewhere` says on what, if not on this CPU."""
    ledger = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
    shared = {
        "command": command,
        "hardware": f"CPU, {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"gendistill": commit(), **{name: version(name) for name in ("torch", "transformers")}},
        "measured": datetime.date.today().isoformat(),
    } | elsewhere
    ledger |= {name: figure | shared for name, figure in figures.items()}
    LEDGER.write_text(json.dumps(ledger, indent=2, sort_keys=True) + "\n")


def record_from_gpu(path: Path, figures_of: Callable[[Path], dict[str, dict]], command: str) -> None:
    """Puts figures of raw output that came from a GPU into the ledger; the file at `path` says on what.

    Those whose value is in the ledger already stay as they are, with the commit that measured them.
    """
    machine = json.loads(path.read_text())["machine"]
    versions = {"gendistill": commit()} | machine["versions"]
    elsewhere = {"hardware": f"1x {machine['gpu']}", "versions": versions, "measured": machine["measured"]}
    record(changed(figures_of(path.parent)), command, **elsewhere)


def changed(figures: dict[str, dict]) -> dict[str, dict]:
    """The figures that the ledger does not have, or has with another value."""
    ledger = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
    return {name: figure for name, figure in figures.items() if ledger.get(name, {}).get("value") != figure["value"]}


def spread_of(values: list[float], digits: int) -> list[float]:
    """The least and the most of what was measured, as an entry has them."""
    return [round(min(values), digits), round(max(values), digits)]
