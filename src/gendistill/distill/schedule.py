"""The learning rate over a stage."""

import math

from gendistill.recipe.stage import Schedule


def learning_rate_share(schedule: Schedule, step: int, steps: int) -> float:
    """Share of the peak learning rate at 0-based `step` of `steps`; the last step reaches `schedule.final`."""
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    falling = steps - warmup if schedule.shape == "cosine" else round(schedule.decay * steps)
    done = step - (steps - falling) + 1
    if falling == 0 or done <= 0:
        return 1.0
    progress = done / falling
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.shape == "cosine" else 1 - progress
    return schedule.final + (1 - schedule.final) * left
