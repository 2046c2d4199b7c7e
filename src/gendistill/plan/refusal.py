"""Why a stage cannot run on a device, and what to change about it."""

from gendistill.plan.price import GIB, Planner
from gendistill.recipe.stage import Stage


def cheaper(stage: Stage) -> dict[str, Stage]:
    """What can be changed about a stage that does not fit, by what to write in the recipe."""
    options = {}
    # Halves only: a micro-batch need not divide the step, but a list of every size would be no help.
    smaller = stage.micro_batch
    while smaller > 1:
        smaller //= 2
        options[f"micro_batch: {smaller}"] = {"micro_batch": smaller}
    # Alignment has one layer's activations at a time already.
    if not stage.gradient_checkpointing and stage.compares == "end_to_end":
        options["gradient_checkpointing: true"] = {"gradient_checkpointing": True}
    if stage.optimizer != "adamw_8bit":
        options["optimizer: adamw_8bit"] = {"optimizer": "adamw_8bit"}
    return {text: stage.model_copy(update=change) for text, change in options.items()}


def refusal(name: str, stage: Stage, planner: Planner, device: str, memory: int) -> str | None:
    """Why a stage cannot run on a device with `memory` bytes, and what to change; None if it can."""
    price = planner.price(stage)
    if price.needed <= memory:
        return None
    # Parts below 0.01 GiB explain nothing.
    parts = ", ".join(f"{part} {gib(size)}" for part, size in price.parts.items() if size >= GIB // 100)
    # Each change by itself, so that a user can choose; several together may still be needed.
    prices = {text: planner.price(other).needed for text, other in cheaper(stage).items()}
    # Of ever smaller micro-batches the largest that fits, or the smallest there is.
    sizes = [text for text in prices if text.startswith("micro_batch")]
    best = next((text for text in sizes if prices[text] <= memory), sizes[-1] if sizes else None)
    changes = [f"{text} (needs {gib(need)})" for text, need in prices.items() if text == best or text not in sizes]
    processes = planner.compute.processes
    among = "" if processes == 1 else f" on each of {processes} processes ({price.strategy})"
    return (
        f"stages.{name} cannot fit: it needs {gib(price.needed)} GiB{among}, and {device} has {gib(memory)}. "
        f"In GiB: {parts}; the peak is {price.peak}. Change in stages.{name}: {', '.join(changes) or 'sequence_length'}"
    )


def gib(size: float) -> str:
    """Bytes as GiB."""
    # About three figures, which is more than the formula is good for.
    digits = 0 if size >= 100 * GIB else 2 if size >= GIB else 3
    return f"{size / GIB:,.{digits}f}"
