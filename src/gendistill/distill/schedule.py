"""The learning rate over a stage."""

import math

from gendistill.recipe.stage import Schedule


def learning_rate_share(schedule: Schedule, step: int, steps: int) -> float:
    """Share of the peak learning rate at 0-based `step` of `steps`; the last step reaches `schedule.final`."""
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup  # + 1: a first step at a rate of zero would do nothing
    match schedule.shape:
        case "cosine":
            falling, left = steps - warmup, _cosine
        case "wsd":
            falling, left = round(schedule.decay * steps), _linear
        case _:
            raise ValueError(f"unknown schedule '{schedule.shape}'; known: cosine, wsd")
    done = step - (steps - falling) + 1  # of the falling steps, this one included
    if falling == 0 or done <= 0:
        return 1.0  # the plateau
    return schedule.final + (1 - schedule.final) * left(done / falling)


def _cosine(done: float) -> float:
    """What is left of the way down, by the share of the falling steps that is done."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _linear(done: float) -> float:
    return 1 - done
