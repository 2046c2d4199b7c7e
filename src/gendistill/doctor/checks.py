"""Which checks a machine is given: the recurrence of every mixer, and a small student of all of them."""

from gendistill.doctor.machine import Machine
from gendistill.doctor.measurement import Check
from gendistill.doctor.recurrence import HEAD_SIZES, Sizes, recurrence_checks
from gendistill.doctor.student import student_checks


def all_checks(machine: Machine, sizes: Sizes | None = None, head_sizes: tuple[int, ...] = HEAD_SIZES) -> list[Check]:
    """Every check of this machine, not measured yet; those of one table stand together."""
    sizes = sizes or Sizes()
    return [*recurrence_checks(machine, sizes, head_sizes), *student_checks(machine, sizes)]
