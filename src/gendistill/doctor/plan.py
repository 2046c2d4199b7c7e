"""Which checks a machine is given.

A `Check` is one measurement; `plan` lists them, `Check.run` measures one and never raises. Nothing here prints.
"""

from gendistill.doctor.checks import Check
from gendistill.doctor.machine import Machine
from gendistill.doctor.recurrence import HEAD_SIZES, Sizes, recurrence_checks
from gendistill.doctor.student import student_checks


def plan(machine: Machine, sizes: Sizes | None = None, head_sizes: tuple[int, ...] = HEAD_SIZES) -> list[Check]:
    """Every check of this machine."""
    sizes = sizes or Sizes()
    return [*recurrence_checks(machine, sizes, head_sizes), *student_checks(machine, sizes)]
