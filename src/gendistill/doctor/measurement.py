"""A check is one measurement: two ways to compute the same numbers, and how far apart they may be."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

Errors = dict[str, float]  # relative errors by the name of what was compared


@dataclass(frozen=True)
class Check:
    """Two ways to compute the same, and the relative error allowed between them.

    Attributes:
        table, row, column: where its outcome stands, as "recurrence in float32", "kda 64", "packed".
        bound: of every relative error that `measure` gives.
        advice: what to do where it fails.
    """

    table: str
    row: str
    column: str
    bound: float
    measure: Callable[[], Errors] = field(repr=False)
    advice: str

    def run(self) -> "Outcome":
        """Measures; whatever goes wrong becomes a failed outcome."""
        start = time.perf_counter()
        errors: Errors = {}
        reason = None
        try:
            errors = self.measure()
        except Exception as error:  # a kernel that does not compile raises almost anything
            reason = f"{type(error).__name__}: {error}"
        return Outcome(self, errors, reason, time.perf_counter() - start)


@dataclass(frozen=True)
class Outcome:
    """What a check measured, or the reason why it could not."""

    check: Check
    errors: Errors
    reason: str | None
    seconds: float

    @property
    def worst(self) -> tuple[str, float] | None:
        """Name and size of the largest error."""
        return max(self.errors.items(), key=lambda item: item[1], default=None)

    @property
    def passed(self) -> bool:
        return self.reason is None and self.worst[1] <= self.check.bound  # NaN has become infinity by now

    @property
    def where(self) -> str:
        """The check's row and column, with every error above the bound."""
        wrong = [f"{name} {error:.0e}" for name, error in self.errors.items() if error > self.check.bound]
        return f"{self.check.row}, {self.check.column}" + (f": {', '.join(wrong)}" if wrong else "")

    def to_dict(self) -> dict:
        """Everything, for JSON (which has no infinity)."""
        check = self.check
        return {
            "table": check.table,
            "row": check.row,
            "column": check.column,
            "passed": self.passed,
            "bound": check.bound,
            "worst": self.worst and self.worst[0],
            "errors": {name: error if error < float("inf") else "inf" for name, error in self.errors.items()},
            "reason": self.reason,
            "advice": None if self.passed else check.advice,
            "seconds": round(self.seconds, 3),
        }


def failures(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], list[str]]:
    """Where checks failed, by what went wrong and what to do about it."""
    # One broken kernel fails dozens of checks in the same way: told once, with where.
    places: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if not outcome.passed:
            check = outcome.check
            what = outcome.reason or f"relative errors above the bound of {check.bound:.0e}"
            places.setdefault((f"{check.table}: {what}", check.advice), []).append(outcome.where)
    return places


def relative_errors(got: dict[str, torch.Tensor | None], exact: dict[str, torch.Tensor]) -> Errors:
    """Norm of the difference over the norm; infinite for what is missing or not finite."""
    errors = {}
    for name, expected in exact.items():
        expected = expected.double()
        if got[name] is None:  # a gradient that never came
            errors[name] = float("inf")
            continue
        difference = got[name].double() - expected  # in float64, so that the comparison adds no error of its own
        error = (difference.norm() / expected.norm()).item()
        errors[name] = error if error < float("inf") else float("inf")  # NaN compares as False, so it is infinity too
    return errors
