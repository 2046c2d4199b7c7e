"""Reply-KL of the students of a run, as a table and as curves over the position in the reply."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gendistill.files import write_atomically
from gendistill.report.plots import pyplot_to_files

Measured = Mapping[str, Mapping[str, Any]]  # fields of `distill.reply_kl.ReplyKL`, by label ("0-conversion", ...)

# Positions in a reply, from 1, that are taken together: single ones late in a reply have few replies to say anything.
SPANS = ((1, 1), (2, 4), (5, 16), (17, 64), (65, 256))
REPLY_KL_HEADER = (
    "student",
    "all tokens",
    *(f"{first}-{last}" if last > first else str(first) for first, last in SPANS),
    "replies",
    "tokens",
    "early",
    "at limit",
    "looping",
)
REPLY_KL_NOTE = (
    "KL(student || teacher) in nats a token along replies that the student wrote itself, sampled at temperature 1, to "
    "prompts that no stage trains on; by position in the reply. Early = ended at half the length of the data's reply "
    "or before; at limit = not ended within the budget; looping = of those, caught in a repetition loop; percent of "
    "the replies."
)


def reply_kl_cells(measured: Measured) -> list[list[str]]:
    cells = []
    for label, found in measured.items():
        counts = found["counts"]  # as `distill.replies.COUNTS` has them
        shares = [f"{100 * counts[name] / counts['written']:.0f}" for name in ("ended_early", "at_limit", "looping")]
        spans = [mean_of_span(found, first, last) for first, last in SPANS]
        means = ["–" if mean is None else f"{mean:.4f}" for mean in (found["mean"], *spans)]
        # Ends included, which a reply at its limit has none of.
        tokens = f"{counts['tokens'] / counts['written']:.0f}"
        cells.append([label, *means, str(counts["written"]), tokens, *shares])
    return cells


def mean_of_span(found: Mapping[str, Any], first: int, last: int) -> float | None:
    """Over the tokens at positions `first` to `last`, from 1; None if no reply is so long."""
    span = slice(first - 1, last)
    counts = found["tokens_by_position"][span]
    total = sum(mean * count for mean, count in zip(found["by_position"][span], counts, strict=True))
    return total / sum(counts) if counts else None


def plot_reply_kl(path: Path, measured: Measured) -> None:
    """A curve a student, over the position in the reply; both axes logarithmic."""
    import io

    pyplot = pyplot_to_files()
    figure, axis = pyplot.subplots(figsize=(6, 4))
    for label, found in measured.items():
        positions, means = smoothed(found)
        axis.plot(positions, means, linewidth=1, marker="o", markersize=3, label=label)
    # Errors grow over a reply, and by orders of magnitude from stage to stage.
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("position in the reply, tokens", fontsize=9)
    axis.set_ylabel("KL(student || teacher), nats per token", fontsize=9)
    axis.grid(True, which="major", alpha=0.25)
    axis.legend(fontsize=7)
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, metadata={"Date": None})  # no date, so that equal runs draw equal files
    pyplot.close(figure)
    write_atomically(path, drawn.getvalue())


def smoothed(found: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Means over positions 1, 2, 3-4, 5-8, 9-16, ..., drawn at each one's end."""
    positions, means = [], []
    first, last = 1, 1  # then 2 to 2, 3 to 4, 5 to 8
    longest = len(found["by_position"])
    while first <= longest:
        # Identical to the teacher is 0, which a logarithmic axis has no place for.
        means.append(max(mean_of_span(found, first, last), 1e-9))
        positions.append(min(last, longest))
        first, last = last + 1, 2 * last
    return positions, means
