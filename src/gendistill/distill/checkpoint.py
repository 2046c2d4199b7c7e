"""Checkpoints that are whole or not there."""

import json
import os
import shutil
from pathlib import Path

import torch

from gendistill.errors import UserError

KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict) -> None:
    """Writes folder/step-N through a temporary name; the one before is kept until the next is whole.

    Raises:
        UserError: the disk is full or the file cannot be written; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, partial = folder / f"step-{step:08d}", folder / f"partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with open(partial / "state.pt", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        size = (partial / "state.pt").stat().st_size
        (partial / "manifest.json").write_text(json.dumps({"step": step, "bytes": size}))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint could not be written ({error}). Free some space and run the same command again: "
            f"it goes on from the last whole checkpoint in {folder}."
        ) from error
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path) -> tuple[dict | None, list[str]]:
    """The newest whole checkpoint, or None, and a note on each that was passed over because it is damaged."""
    notes = []
    for path in reversed(checkpoints(folder)):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            size = (path / "state.pt").stat().st_size
            if size != manifest["bytes"]:
                raise ValueError(f"{size} bytes instead of {manifest['bytes']}")
            return torch.load(path / "state.pt", map_location="cpu", weights_only=True), notes
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            notes.append(f"{path} is damaged ({error}); going back to the one before")
    return None, notes


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))
