"""What was trained, how the losses went and what it cost: read off the lines of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from gendistill.distill.tracking import complaint, distant_ends, held_out_ends
from gendistill.report.page import charts
from gendistill.report.page.drawing import WIDTH
from gendistill.report.page.parts import (
    NOTHING,
    Column,
    Figure,
    Part,
    Table,
    batches,
    count,
    decimals,
    file_name,
    percent,
    warnings,
)
from gendistill.report.page.reading import RunRecords
from gendistill.report.reply_kl import REPLY_KL_NOTE, SPANS, mean_of_span, smoothed
from gendistill.report.summary import loss_label

SECONDS_AN_HOUR = 3600
ENDS = {"ended_early": "early", "at_limit": "at limit", "looping": "looping"}  # of replies, by their counts
CURVES_IN_A_PANEL = 8  # more would hide each other


def training_parts(runs: Sequence[RunRecords], groups: Mapping[str, Sequence[RunRecords]]) -> list[Part]:
    """Curves and a table of the losses of every stage; what is wrong with one of them stands first.

    Args:
        groups: runs whose curves share a panel, by what the panels of a group are called; "" for a single group.
    """
    if not any(run.metrics for run in runs):
        return []  # converted and evaluated, and nothing trained
    wrong = []
    for run in runs:
        for stage, rows in run.metrics.items():
            if (said := complaint(run.recipe.stages[stage], rows)) is not None:
                wrong.append(f"{run.name}, stage {stage}: {said}.")
    figures = [figure for title, some in groups.items() for figure in _loss_figures(title, some)]
    return [*warnings("losses", wrong), *figures, _loss_table(runs), *_distant(runs)]


def _loss_figures(group: str, runs: Sequence[RunRecords]) -> list[Figure]:
    """A panel for each stage and objective: the runs' curves, and those of records held out."""
    panels: dict[tuple[str, str], list[RunRecords]] = {}
    for run in runs:
        for stage in run.metrics:
            # Runs whose objectives differ have no axis in common.
            panels.setdefault((stage, loss_label(run.recipe.stages[stage])), []).append(run)
    figures = []
    for (stage, label), having in panels.items():
        # The axis it is on, of an ablation; and what is minimised, where values of the axis differ in that.
        title = ": ".join(filter(None, (group, stage)))
        if [name for name, _ in panels].count(stage) > 1:
            title += f" ({label.splitlines()[0]})"
        for number, some in batches(having, CURVES_IN_A_PANEL):
            figures.append(_loss_panel(f"{title}{number}", stage, label, some))
    return figures


def _loss_panel(title: str, stage: str, label: str, runs: Sequence[RunRecords]) -> Figure:
    series = []
    said = []  # the same in words, for those who do not see it
    for run in runs:
        rows = run.metrics[stage]
        name = run.name if len(runs) > 1 else "training"
        series.append((name, [row["tokens"] for row in rows], [row["loss"] for row in rows]))
        said.append(f"{run.name} from {rows[0]['loss']:.4g} to {rows[-1]['loss']:.4g}")
        held_out = _held_out(rows)
        if held_out and len(runs) == 1:  # of several runs the table has them: twice as many curves are a tangle
            series.append(("held out", *map(list, zip(*held_out, strict=True))))
    svg = charts.curves(series, x_label="tokens", y_label=label)
    return Figure(file_name("loss", title), title, svg, f"Loss of stage {stage} over tokens: {'; '.join(said)}")


def _held_out(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    # Before the first step, then wherever it was measured: `get`, since earlier versions had none.
    points = [(0, rows[0].get("held_out_loss_before"))]
    points += [(row["tokens"], row.get("held_out_loss")) for row in rows]
    return [(tokens, loss) for tokens, loss in points if loss is not None]


def _loss_table(runs: Sequence[RunRecords]) -> Table:
    columns = [
        Column("run", "run"),
        Column("stage", "stage"),
        Column("objective", "objective"),
        Column("tokens", "tokens", count),
        Column("loss_first", "first step", decimals(4)),
        Column("loss_last", "last step", decimals(4)),
        Column("held_out_before", "held out, before", decimals(4)),
        Column("held_out_after", "held out, after", decimals(4)),
    ]
    rows = []
    for run in runs:
        for stage, lines in run.metrics.items():
            # A mixture has a line for each of its terms.
            label = loss_label(run.recipe.stages[stage]).replace("\n", " ")
            losses = [lines[0]["loss"], lines[-1]["loss"], *held_out_ends(lines)]
            rows.append([run.name, stage, label, lines[-1]["tokens"], *losses])
    note = "Each stage's own objective; held out: on records that no stage trains on. Curves: means of up to "
    note += f"{charts.POINTS} spans of steps."
    return Table("losses", "Losses of every stage", columns, rows, note)


def _distant(runs: Sequence[RunRecords]) -> list[Table]:
    columns = [
        Column("run", "run"),
        Column("stage", "stage"),
        Column("windows", "windows"),
        Column("before", "before", decimals(4)),
        Column("after", "after", decimals(4)),
    ]
    rows = [
        [run.name, stage, how.replace("_", " "), *ends]
        for run in runs
        for stage, lines in run.metrics.items()
        for how, ends in distant_ends(lines).items()
    ]
    note = "On distant answers that no stage trains on, by the stage's own objective."
    return [Table("distant_losses", "Losses on distant answers", columns, rows, note)] if rows else []


def reply_kl_parts(runs: Sequence[RunRecords]) -> list[Part]:
    """How far the students' own replies lead them from their teacher, of those that were measured."""
    # Of a single run the students of all stages, of several that of each one's last.
    measured = {
        (label if len(runs) == 1 else f"{run.name}, {label}"): found
        for run in runs
        for label, found in run.reply_kl.items()
        if len(runs) == 1 or label == run.last
    }
    if not measured:
        return []
    panels = batches(list(measured.items()), CURVES_IN_A_PANEL)
    figures = [_reply_kl_figure(number, dict(some)) for number, some in panels]
    columns = [Column("student", "student"), Column("mean", "all tokens, nats", decimals(4))]
    columns += [
        Column(f"at_{first}_{last}", f"{first}\u2011{last}" if last > first else str(first), decimals(4))
        for first, last in SPANS
    ]
    columns += [Column("replies", "replies", count), Column("tokens", "tokens", decimals(1))]
    columns += [Column(key, f"{label}, %", percent) for key, label in ENDS.items()]
    rows = []
    for name, found in measured.items():
        spans = [mean_of_span(found, first, last) for first, last in SPANS]
        counts = found["counts"]  # as `distill.replies.COUNTS` has them
        written = counts["written"]
        ends = [counts[key] / written for key in ENDS]
        rows.append([name, found["mean"], *spans, written, counts["tokens"] / written, *ends])
    return [*figures, Table("reply_kl", "Reply-KL by position in the reply", columns, rows, REPLY_KL_NOTE)]


def _reply_kl_figure(number: str, measured: Mapping[str, Mapping[str, Any]]) -> Figure:
    svg = charts.curves(
        [(name, *smoothed(found)) for name, found in measured.items()],
        x_label="position in the reply, tokens",
        y_label="KL(student || teacher), nats per token",
        width=WIDTH,
        x_log=True,
        markers=True,
    )
    said = "; ".join(f"{name} {found['mean']:.3g}" for name, found in measured.items())
    title = f"Reply-KL by position{number}"
    return Figure(file_name("reply_kl", number), title, svg, f"Mean KL in nats a token: {said}")


def cost_parts(runs: Sequence[RunRecords]) -> list[Part]:
    """Tokens, seconds and GPU hours of every stage, and of every run in all."""
    columns = [
        Column("run", "run"),
        Column("stage", "stage"),
        Column("tokens", "tokens", count),
        Column("seconds", "seconds", decimals(1)),
        Column("tokens_per_second", "tokens/s", count),
        Column("device", "device"),
        Column("processes", "processes", count),
        Column("gpu_hours", "GPU hours", decimals(4)),
    ]
    rows = []
    for run in runs:
        stages = [_cost(run, stage, lines) for stage, lines in run.metrics.items()]
        rows += stages
        if len(stages) > 1:  # the sum of one would be its row again
            tokens, seconds = (sum(row[place] for row in stages) for place in (2, 3))
            hours = [row[7] for row in stages]
            # A sum without one of them would be too small, and look whole.
            total = None if None in hours else sum(hours)
            rows.append([run.name, "all stages", tokens, seconds, tokens / seconds, None, None, total])
    if not rows:
        return []
    note = (
        "Seconds of the steps' own, without preparing data, evaluating and starting; a stage's GPU hours are its "
        f"seconds times its processes, 0 on a CPU. {NOTHING} stands where an earlier version did not record the device."
    )
    return [Table("cost", "What training cost", columns, rows, note)]


def _cost(run: RunRecords, stage: str, lines: Sequence[Mapping[str, Any]]) -> list[Any]:
    tokens, seconds = lines[-1]["tokens"], sum(line["seconds"] for line in lines)
    # In reports since devices and versions are recorded there.
    machine = run.reports.get(stage, {}).get("machine")
    if machine is None:
        return [run.name, stage, tokens, seconds, tokens / seconds, None, None, None]
    # An hour of a CPU is no hour of a GPU, however many processes it has.
    on_gpu = machine["device"] != "CPU"
    hours = seconds * machine["processes"] / SECONDS_AN_HOUR if on_gpu else 0.0
    return [run.name, stage, tokens, seconds, tokens / seconds, machine["device"], machine["processes"], hours]
