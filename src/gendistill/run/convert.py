"""The step from the teacher to the untrained student."""

import json
import math
from dataclasses import replace

from gendistill.data.dataset import PackedDataset
from gendistill.distill.batches import rows_as_tensors
from gendistill.distributed import on_rank_zero
from gendistill.errors import UserError
from gendistill.files import folder_in_one_piece, write_atomically
from gendistill.models.calibration import calibrate
from gendistill.models.conversion import (
    check_conversions,
    convert,
    mean_loss,
    measure_conversion,
    weights_sha256,
)
from gendistill.models.proof import not_finite, prove_kept_attention
from gendistill.names import INITIALISATIONS
from gendistill.run.place import place_layers
from gendistill.run.prepare import prepare_mixture
from gendistill.run.run import Run

ROWS_AT_ONCE = 4  # packed sequences in a batch of the measurement; sums in float32 depend on it in their last digits


def convert_teacher(run: Run) -> dict:
    """Converts the teacher and measures the untrained student, unless that is done; returns the conversion report.

    Raises:
        UserError: the teacher computes what is no number; or see `prove_kept_attention`, `models.conversion.convert`,
            `check_conversions`, `place_layers` and `prepare_mixture`.
    """
    place_layers(run)
    if not run.folder.has_student("conversion"):
        settings = run.recipe.conversion
        dataset = prepare_mixture(run, settings.data, sequence_length=settings.sequence_length, tokens=settings.tokens)
        with run.times.of("conversion", "conversion"):
            on_rank_zero(lambda: _convert(run, dataset))
    return run.folder.read_report("conversion")


def _convert(run: Run, dataset: PackedDataset) -> None:
    chosen = run.recipe.conversion.initialisation
    # Each batch has input_ids, position_ids and loss_mask, [ROWS_AT_ONCE, T].
    batches = rows_as_tensors(dataset, ROWS_AT_ONCE, run.compute.device)
    run.console.print(f"conversion: measures a student that keeps all attention against {run.recipe.teacher}")
    prove_kept_attention(run.teacher, run.config, batches)
    teacher_loss = mean_loss(run.teacher, batches).mean
    if not math.isfinite(teacher_loss):
        raise UserError(not_finite(run.recipe.teacher, f"its loss on {run.recipe.conversion.data} is {teacher_loss}"))
    reports = {}
    # Every initialisation is measured, for comparison; the chosen one last, since the last student is the one saved.
    # Without a recurrence nothing is new, and beside a window it has next to no share yet: there all would be alike.
    is_heard = bool(run.config.linear_layers) and run.config.window is None
    names = INITIALISATIONS if is_heard else [chosen]
    for name in sorted(names, key=lambda name: name == chosen):
        run.console.print(f"conversion: initialisation '{name}'")
        # Anew each time: the one before was calibrated in place. The seed makes what is new the same.
        student, accounting = convert(run.teacher, run.config, run.recipe.seed)
        calibrate(run.teacher, student.to(run.compute.device), batches, name)
        reports[name] = measure_conversion(
            run.teacher,
            student,
            accounting,
            batches,
            name=run.recipe.teacher,
            seed=run.recipe.seed,
            teacher_loss=teacher_loss,
        )
    if (warning := check_conversions(reports, chosen, run.recipe.conversion.max_loss)) is not None:
        run.console.print(f"WARNING: conversion: {warning}")
    losses = {name: report.student_loss for name, report in reports.items()}
    with folder_in_one_piece(run.folder.student("conversion")) as partial:
        student.save_pretrained(partial)
        run.tokenizer.save_pretrained(partial)
        report = replace(
            reports[chosen], losses_by_initialisation=losses, weights_sha256=weights_sha256(partial)
        ).to_dict()
        write_atomically(partial / run.folder.report("conversion").name, json.dumps(report, indent=1))
