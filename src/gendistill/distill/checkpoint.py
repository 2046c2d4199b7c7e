"""Checkpoints that are whole or not there, in torch's distributed format: any number of processes can read them."""

import json
import shutil
import warnings
from pathlib import Path

import torch.distributed.checkpoint as dcp

from gendistill.distill.optimizer import MasterOptimizer
from gendistill.distributed import as_rank_zero_says, is_rank_zero, on_rank_zero, processes
from gendistill.errors import UserError
from gendistill.files import damage_of, make_folder, put_in_place, read_json, seal, write_atomically

KEEP = 2  # the newest, and one to go back to if it is damaged
MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, step: int, optimizer: MasterOptimizer, fingerprint: dict, log: Path | None = None
) -> None:
    """Writes folder/step-N through a temporary name; the one before is kept until the next is whole.

    Args:
        fingerprint: what decides the trajectory; compared when the checkpoint is loaded.
        log: a file as of this step, of which a copy is kept in the checkpoint.

    Raises:
        UserError: the disk is full or a file cannot be written; earlier checkpoints are left as they are.
    """
    final, partial = folder / step_name(step), folder / f"partial-{step:08d}"
    try:
        on_rank_zero(lambda: _empty(partial))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process only is no mistake
            dcp.save(optimizer.state_dict(), checkpoint_id=partial, no_dist=processes() == 1)
        # `dcp.save` returns when all processes have written; only then may the folder get its final name.
        if is_rank_zero():
            write_atomically(partial / MANIFEST, json.dumps({"step": step, "fingerprint": fingerprint}))
            if log is not None:
                shutil.copyfile(log, partial / log.name)
            seal(partial)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one, or no other could take its name
            put_in_place(partial, final)  # for good, before an older one goes
    except (OSError, dcp.api.CheckpointException) as error:  # RuntimeError would be the death of another process
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint could not be written ({_reason(error)}). Free some space and run the same "
            f"command again: it resumes from the last whole checkpoint in {folder}."
        ) from error
    on_rank_zero(lambda: [shutil.rmtree(old) for old in checkpoints(folder)[:-KEEP]])


def load_checkpoint(folder: Path, optimizer: MasterOptimizer, fingerprint: dict) -> tuple[int, list[str]]:
    """Loads the newest whole checkpoint.

    Returns:
        Its step, 0 if there is none; and a note on each that was passed over because it is damaged.

    Raises:
        UserError: the checkpoint was written with another fingerprint, or its files are whole and cannot be read for
            all that.
    """
    notes = []
    for path in reversed(checkpoints(folder)):
        # By one process: a checkpoint is gigabytes, and it reads every byte of them.
        if (damage := as_rank_zero_says(lambda path=path: damage_of(path))) is not None:
            notes.append(f"{path} is damaged ({damage}); going back to the one before")
            continue
        manifest = read_json(path / MANIFEST)
        # Settings that are new to this version are compared as well: an old checkpoint has None for them.
        if changed := sorted(key for key in fingerprint if fingerprint[key] != manifest["fingerprint"].get(key)):
            raise UserError(
                f"{path}: written with other settings, data or weights than this run has; different: "
                f"{', '.join(changed)}. Undo the change, delete {folder} to start the stage anew, or use another "
                "output folder."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.load(lambda state, path=path: dcp.load(state, checkpoint_id=path, no_dist=processes() == 1))
        except (OSError, RuntimeError, dcp.api.CheckpointException) as error:  # too late to go back: half may be loaded
            raise UserError(
                f"{path}: the checkpoint's files cannot be read. Delete it and run the same command again: it resumes "
                f"from the one before, if there is one in {folder}."
            ) from error
        return manifest["step"], notes
    return 0, notes


def step_name(step: int) -> str:
    """Of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))  # numbers have leading zeros, so names sort as they do


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)


def _reason(error: Exception) -> str:
    """One line of an error that may hold the tracebacks of all processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # the error itself comes last
    return lines[-1] if lines else type(error).__name__
