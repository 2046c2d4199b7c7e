"""The summary of a run: paired table, significance, diagnoses, stage by stage, loss curves, replies side by side."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gendistill.analysis.diagnostics import MIN_ITEMS, Diagnostics, diagnose
from gendistill.analysis.scores import Scores, paired_table
from gendistill.analysis.significance import compare, rank_flips
from gendistill.analysis.tables import (
    PAIRED_HEADER,
    RANKINGS_HEADER,
    REPLIES_HEADER,
    ROTATIONS_HEADER,
    SIGNIFICANCE_HEADER,
    paired_cells,
    rankings_cells,
    replies_cells,
    rotations_cells,
    significance_cells,
    stages_cells,
    to_markdown,
)
from gendistill.distill.tracking import complaint
from gendistill.evaluate.harness import HARNESS_HEADER, harness_cells
from gendistill.files import write_atomically
from gendistill.names import MIXERS, OBJECTIVES, look_up
from gendistill.recipe.loading import Recipe
from gendistill.recipe.stage import Stage
from gendistill.recipe.student import Student
from gendistill.report.placement import PLACEMENT_HEADER, placement_cells, plot_placements

EXAMPLES_PER_TASK = 2
SHOWN = 160  # characters of a question or reply

Records = Mapping[str, list[dict[str, Any]]]  # of one model: records per item, by task
Metrics = Mapping[str, Sequence[Mapping[str, Any]]]  # lines of metrics.jsonl, by the name of the stage


@dataclass(frozen=True)
class Results:
    """What a run has come to.

    Attributes:
        root: folder to write into.
        students: scores by label ("0-conversion", ...), in the order of the run; the last one is the result.
        records: of every item, by label ("teacher" too) and task.
        metrics: lines of metrics.jsonl, by the name of the stage; of the stages that have run.
        evaluation: folder with the results of lm-evaluation-harness, if the recipe has tasks of it.
        placement: the result of choosing the layers that keep attention, if the recipe does not list them.
    """

    root: Path
    recipe: Recipe
    conversion_report: Mapping[str, Any]
    teacher: Scores
    students: Mapping[str, Scores]
    records: Mapping[str, Records]
    metrics: Metrics
    evaluation: Path
    placement: Mapping[str, Any] | None = None


class _Statistics(NamedTuple):
    """What scores.json holds besides the teacher's counts."""

    paired: dict[str, list[dict[str, Any]]]  # by label
    significance: dict[str, dict[str, Any]]  # of the last student, by task
    flips: list[dict[str, Any]]
    diagnostics: dict[str, dict[str, Diagnostics]]  # of the teacher and the last student, by task and label


def write_summary(run: Results) -> Path:
    """Writes summary.md, scores.json and loss.svg; returns the first one's path."""
    last = list(run.students)[-1]
    found = _statistics(run, last)
    plotted = plot_losses(run.root / "loss.svg", run.recipe.stages, run.metrics)
    scores = {
        "teacher": run.teacher.to_dict(),
        "paired": found.paired,
        "significance": {last: found.significance},
        "rank_flips": found.flips,
        "diagnostics": {
            task: {label: diagnostics.to_dict() for label, diagnostics in models.items()}
            for task, models in found.diagnostics.items()
        },
    }
    write_atomically(run.root / "scores.json", json.dumps(scores, indent=1))
    # Last: where there is a summary, what it refers to is there as well.
    path = run.root / "summary.md"
    write_atomically(path, "\n\n".join(_sections(run, found, last, plotted)) + "\n")
    return path


def _statistics(run: Results, last: str) -> _Statistics:
    records = run.records
    diagnostics = {}
    for task in run.recipe.evaluation.tasks:
        diagnostics[task] = {label: diagnose(records[label][task]) for label in ("teacher", last)}
    return _Statistics(
        paired=paired_table(run.teacher, run.students),
        # Of the last student only: of every stage they would be many tests, some of them significant by chance.
        significance=compare(records["teacher"], records[last], run.recipe.seed),
        flips=rank_flips({label: records[label] for label in run.students}),
        diagnostics=diagnostics,
    )


def _complaints(run: Results) -> list[str]:
    """A paragraph for each stage whose loss went wrong."""
    found = []
    for name, lines in run.metrics.items():
        wrong = complaint(run.recipe.stages[name], [line["loss"] for line in lines])
        if wrong is not None:
            found.append(f"**Warning: stage {name}: {wrong}.**")
    return found


def _sections(run: Results, found: _Statistics, last: str, plotted: bool) -> list[str]:
    """Headings, paragraphs and tables of summary.md, from the figures most asked for to single replies."""
    return [
        f"# {run.recipe.name}: {run.recipe.teacher} -> {_kind(run.recipe.student)}, after {last}",
        _about(run.recipe.student, run.conversion_report),
        *_complaints(run),
        "## Teacher and student on the same items",
        to_markdown(PAIRED_HEADER, paired_cells(found.paired[last])),
        _PAIRED_NOTE,
        "## Significance",
        to_markdown(SIGNIFICANCE_HEADER, significance_cells(found.significance)),
        _SIGNIFICANCE_NOTE,
        *_flip_lines(found.flips),
        "## Diagnoses",
        *_diagnoses(found.diagnostics),
        "## Stage by stage",
        to_markdown(*stages_cells(run.teacher, run.students)),
        "Each task: accuracy by ranking/by generation, percent. Below: means over the tasks that have both.",
        *_harness(run, last),
        *_placement(run),
        *(["## Losses", "![Loss of each stage](loss.svg)"] if plotted else []),
        "## Replies, word for word",
        _replies(run.records, list(run.students)),
    ]


_PAIRED_NOTE = (
    "Accuracy and unparsed replies in percent; retention = student / teacher; flexible = by generation, with flexible "
    "extraction; gap = retention by ranking minus retention by generation (strict extraction), in points."
)
_SIGNIFICANCE_NOTE = (
    "Retention and gap with 95 % intervals of a paired bootstrap over items; above chance = retention by generation of "
    "the accuracy beyond guessing; p by McNemar's exact test on the replies; min. detectable = minimum detectable "
    "effect, the difference that so many items show four times in five, in points."
)


def _kind(student: Student) -> str:
    return "hybrid" if student.keep_attention else "pure student"


def _about(student: Student, conversion_report: Mapping[str, Any]) -> str:
    """What the layers hold, and the losses before any training."""
    losses = "teacher {teacher_loss:.3f}, untrained student {student_loss:.3f}, uniform guess {uniform_loss:.3f} nats"
    replaced = [layer["layer"] for layer in conversion_report["layers"]]
    return (
        f"{layers_sentence(student, replaced)} "
        f"Next-token loss before any training: {losses.format_map(conversion_report)}."
    )


def layers_sentence(student: Student, replaced: Sequence[int]) -> str:
    """How many layers keep softmax attention, and how many of those replaced (0-based) hold each mixer."""
    kept = len(student.keep_attention)
    parts = [f"{kept or 'No'} {'layers keep' if kept > 1 else 'layer keeps'} softmax attention"]
    # In the order of their first layers: a Counter keeps that in which it counted.
    holding = Counter(student.mixer_in_layer.get(layer, student.mixer) for layer in replaced)
    for mixer, count in holding.items():
        parts.append(f"{count} {'hold' if count > 1 else 'holds'} {_holding(student, mixer)}")
    return ", ".join(parts) + "."


def _holding(student: Student, mixer: str) -> str:
    """What layers of a mixer hold: its name, and the window that is it or stands beside it."""
    label = look_up(MIXERS, mixer, "mixer").label
    if mixer == "window":
        return label
    return label if student.window is None else f"{label} beside a window of {student.window} tokens"


def _flip_lines(flips: list[dict]) -> list[str]:
    """A sentence for each pair of stages that ranking orders one way and generation the other."""
    return [
        f"Ranking prefers {flip['models'][0]} to {flip['models'][1]} by {flip['ranking']:.1f} points "
        f"(p {flip['p']['ranking']:.3f}), generation the other way round by {-flip['generation']:.1f} "
        f"(p {flip['p']['generation']:.3f})."
        for flip in flips
    ]


def _placement(run: Results) -> list[str]:
    """What was measured to choose the layers that keep attention, if the recipe does not list them."""
    if run.placement is None:
        return []
    results = {"placement.json": run.placement}
    plot_placements(run.root / "placement.svg", results)
    return [
        "## Layers that keep attention",
        to_markdown(PLACEMENT_HEADER, placement_cells(results)),
        "Scores on recall prompts: mean -log p of the right answers' tokens, and answers that are right word for word.",
        "![What was measured of each layer](placement.svg)",
    ]


def _harness(run: Results, student: str) -> list[str]:
    """The scores of lm-evaluation-harness, if the recipe has tasks of it."""
    if run.recipe.evaluation.harness is None:
        return []
    cells = harness_cells(run.evaluation, student)
    return [
        "## Tasks of lm-evaluation-harness",
        to_markdown(HARNESS_HEADER, cells),
        "As it scores them; ± standard error.",
    ]


def _diagnoses(diagnostics: Mapping[str, Mapping[str, Diagnostics]]) -> list[str]:
    """What is worth knowing of the replies, then the figures behind it."""
    named = [
        f"- **{task}, {label}: {diagnosis.name}.** {diagnosis.sentence}"
        for task, models in diagnostics.items()
        for label, found in models.items()
        for diagnosis in found.diagnoses
    ]
    named += [
        f"- {task}, {label}: too few items to diagnose ({found.items}; at least {MIN_ITEMS})."
        for task, models in diagnostics.items()
        for label, found in models.items()
        if found.too_few
    ]
    sections = ["\n".join(named) or "Nothing stands out in the replies."]
    for header, to_cells, note in _FIGURES:
        cells = []
        for task, models in diagnostics.items():
            cells += to_cells(task, models)
        if cells:  # no task may have options to rank, or be rotated
            sections += [to_markdown(header, cells), note]
    return sections


_FIGURES = [
    (
        REPLIES_HEADER,
        replies_cells,
        "Percent of the items; tokens of a reply: median/90 %; repetitive = replies caught in a loop; margin = lead "
        "of the best candidate over the second in ranking, nats; letters = share of the replies/of the right answers.",
    ),
    (
        RANKINGS_HEADER,
        rankings_cells,
        "Right in percent if options are ranked by their letter, or by their text: its log-likelihood, or that per "
        "token or per byte.",
    ),
    (
        ROTATIONS_HEADER,
        rotations_cells,
        "Options at every letter in turn, percent: right over all rotations; items right, answered with one letter, "
        "and with one option under every rotation.",
    ),
]


def _replies(records: Mapping[str, Records], labels: list[str]) -> str:
    """A few items with the replies of the teacher and of the student at the first and the last stage."""
    # A dict, so that a run with a single evaluated stage shows its student once.
    shown = {"teacher": "teacher", f"student {labels[0]}": labels[0], f"student {labels[-1]}": labels[-1]}
    blocks = []
    for task, items in records["teacher"].items():
        for index, item in enumerate(items[:EXAMPLES_PER_TASK]):
            lines = [f"**{task}**: {_one_line(item['question'])}", ""]
            for who, label in shown.items():
                record = records[label][task][index]
                grade = "right" if record["generation_correct"] else "wrong"
                lines.append(f"- {who} ({grade}): {_one_line(record['reply'])}")
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _one_line(text: str) -> str:
    text = " ".join(text.split())  # line breaks in a reply would end the list of Markdown
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def loss_label(stage: Stage) -> str:
    """What a stage's loss curve shows, with its unit: the objective, or the terms of a mixture with their weights."""
    lines = []
    for name, weight in stage.terms.items():
        label = look_up(OBJECTIVES, name, "objective").label
        if list(stage.terms.values()) != [1]:
            label = f"{weight:g} × ({label})" if " - " in label else f"{weight:g} × {label}"
        lines.append(f"+ {label}" if lines else label)  # a line for each term of the sum
    if stage.temperature != 1:
        # Of tempered distributions, and times the temperature's square: no nats of the models' own distributions.
        lines.append(f"at temperature {stage.temperature:g}")
    return "\n".join(lines)


def plot_losses(path: Path, stages: Mapping[str, Stage], metrics: Metrics) -> bool:
    """Draws loss curves, a panel for each stage that has been run; returns False, and draws none, if none has."""
    curves = {name: metrics[name] for name in stages if metrics.get(name)}
    if not curves:
        return False
    import matplotlib  # takes a second to import, which only this needs

    matplotlib.use("svg")  # before pyplot, which would look for a display
    matplotlib.rcParams["svg.hashsalt"] = "gendistill"  # else the ids in a file are random
    from matplotlib import pyplot

    columns = min(2, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(5 * columns, 3 * lines), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, rows) in zip(axes.flat, curves.items(), strict=False):  # an odd number leaves a panel empty
        _panel(axis, name, rows, loss_label(stages[name]))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})  # no date, so that equal runs draw equal files
    pyplot.close(figure)
    return True


def _panel(axis: Any, title: str, rows: Sequence[Mapping[str, Any]], label: str) -> None:
    """One stage's curve over tokens, on a logarithmic axis."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.plot([row["tokens"] for row in rows], [row["loss"] for row in rows], linewidth=1)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("tokens", fontsize=9)
    axis.set_ylabel(label, fontsize=7 if "\n" in label else 8)  # a term with its weight is as long as the panel is high
    axis.set_yscale("log")  # losses fall by orders of magnitude in the first steps
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.grid(True, which="both", alpha=0.25)
