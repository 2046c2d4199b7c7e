"""The summary of a run: the paired table, diagnoses, the way there, loss curves, and answers side by side."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendistill.analysis.diagnostics import Diagnostics, diagnose
from gendistill.analysis.scores import Scores, paired_table
from gendistill.analysis.significance import compare, rank_flips
from gendistill.analysis.tables import (
    PAIRED_HEADER,
    RANKINGS_HEADER,
    REPLIES_HEADER,
    ROTATIONS_HEADER,
    SURE_HEADER,
    paired_cells,
    points_cells,
    rankings_cells,
    replies_cells,
    rotations_cells,
    sure_cells,
    to_markdown,
)
from gendistill.evaluate.harness import HARNESS_HEADER, harness_cells
from gendistill.files import write_atomically
from gendistill.recipe.loading import Recipe

EXAMPLES_PER_TASK = 2


@dataclass(frozen=True)
class Results:
    """What a run has come to.

    Attributes:
        root: folder to write into.
        students: scores by label ("0-conversion", ...), in the order of the run; the last one is the result.
        records: of every item, by label ("teacher" too) and task.
        metrics: lines of metrics.jsonl, by the name of the stage; of the stages that have run.
        evaluation: folder with what lm-evaluation-harness found.
    """

    root: Path
    recipe: Recipe
    conversion_report: Mapping[str, Any]
    teacher: Scores
    students: Mapping[str, Scores]
    records: Mapping[str, Mapping[str, list[dict[str, Any]]]]
    metrics: Mapping[str, list[dict[str, Any]]]
    evaluation: Path


def write_summary(run: Results) -> Path:
    """Writes summary.md, scores.json and loss.svg; returns the first one's path."""
    teacher, students, records = run.teacher, run.students, run.records
    conversion_report = run.conversion_report
    paired = paired_table(teacher, students)
    last = list(students)[-1]
    plotted = plot_losses(run)
    sure = compare(records["teacher"], records[last], run.recipe.seed)
    flips = rank_flips({label: records[label] for label in students})
    diagnostics = {
        task: {label: diagnose(records[label][task]) for label in ("teacher", last)}
        for task in run.recipe.evaluation.tasks
    }
    sections = [
        f"# {run.recipe.name}: {run.recipe.teacher} -> hybrid, after {last}",
        _ABOUT.format(
            kept=len(run.recipe.student.keep_attention),
            linear=len(conversion_report["layers"]),
            teacher_loss=conversion_report["teacher_loss"],
            student_loss=conversion_report["student_loss"],
            uniform_loss=conversion_report["uniform_loss"],
        ),
        "## Teacher and student on the same items",
        to_markdown(PAIRED_HEADER, paired_cells(paired[last])),
        "Accuracy and unparsed replies in percent; kept = student / teacher; flexible = by generation, replies read "
        "flexibly; gap = kept by ranking minus kept by generation (read strictly), in points.",
        "## How sure",
        to_markdown(SURE_HEADER, sure_cells(sure)),
        "Kept and gap with 95 % intervals of a paired bootstrap over items; above chance = what is kept of the "
        "accuracy beyond guessing; p by McNemar's exact test on the replies; seen = the smallest difference that so "
        "many items show four times in five, in points.",
        *_flip_lines(flips),
        "## Diagnoses",
        *_diagnoses(diagnostics),
        "## The way there",
        to_markdown(*points_cells(teacher, students)),
        "Each task: accuracy by ranking/by generation, percent. Below: means over the tasks that have both.",
        *_harness(run, last),
        *(["## Losses", "![Loss of each stage](loss.svg)"] if plotted else []),
        "## Answers, word for word",
        _answers(records, list(students)),
    ]
    scores = {"teacher": teacher.to_dict(), "paired": paired, "sure": {last: sure}, "rank_flips": flips}
    scores["diagnostics"] = {
        task: {label: found.to_dict() for label, found in models.items()} for task, models in diagnostics.items()
    }
    write_atomically(run.root / "scores.json", json.dumps(scores, indent=1))
    path = run.root / "summary.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    return path


_ABOUT = (
    "{kept} layers keep softmax attention, {linear} hold Kimi Delta Attention. Next-token loss before any training: "
    "teacher {teacher_loss:.3f}, untrained student {student_loss:.3f}, uniform guess {uniform_loss:.3f} nats."
)


def _flip_lines(flips: list[dict]) -> list[str]:
    """A sentence for each pair of points that ranking orders one way and generation the other."""
    return [
        f"Ranking prefers {flip['models'][0]} to {flip['models'][1]} by {flip['ranking']:.1f} points "
        f"(p {flip['p']['ranking']:.3f}), generation the other way round by {-flip['generation']:.1f} "
        f"(p {flip['p']['generation']:.3f})."
        for flip in flips
    ]


def _harness(run: Results, student: str) -> list[str]:
    """What lm-evaluation-harness found, if the recipe has it asked."""
    if run.recipe.evaluation.harness is None:
        return []
    cells = harness_cells(run.evaluation, student)
    return [
        "## Tasks of lm-evaluation-harness",
        to_markdown(HARNESS_HEADER, cells),
        "As it scores them; ± standard error.",
    ]


def _diagnoses(diagnostics: Mapping[str, Mapping[str, Diagnostics]]) -> list[str]:
    """What is worth saying of the replies, then the figures behind it."""
    said = [
        f"- **{task}, {label}: {diagnosis.name}.** {diagnosis.sentence}"
        for task, models in diagnostics.items()
        for label, found in models.items()
        for diagnosis in found.diagnoses
    ]
    sections = ["\n".join(said) or "Nothing stands out in the replies."]
    for header, to_cells, note in _FIGURES:
        if cells := [row for task, models in diagnostics.items() for row in to_cells(task, models)]:
            sections += [to_markdown(header, cells), note]
    return sections


_FIGURES = [
    (
        REPLIES_HEADER,
        replies_cells,
        "Percent of the items; tokens of a reply: median/90 %; loops = replies caught in a repetition; margin = lead "
        "of the best candidate over the second in ranking, nats; letters = share of the replies/of the right answers.",
    ),
    (
        RANKINGS_HEADER,
        rankings_cells,
        "Right in percent if options are ranked by their letter, or by their text: its log-likelihood, or that by the "
        "token or the byte.",
    ),
    (
        ROTATIONS_HEADER,
        rotations_cells,
        "Options at every letter in turn, percent: right over all rotations; items right, answered with one letter, "
        "and with one option under every rotation.",
    ),
]


def _answers(records: Mapping[str, Mapping[str, list[dict]]], labels: list[str]) -> str:
    """A few items with the replies of the teacher and of the student at the first and the last point."""
    shown = {"teacher": "teacher", f"student {labels[0]}": labels[0], f"student {labels[-1]}": labels[-1]}
    blocks = []
    for task in records["teacher"]:
        asked = {who: records[label][task] for who, label in shown.items()}
        for index in range(min(EXAMPLES_PER_TASK, len(asked["teacher"]))):
            lines = [f"**{task}**: {_one_line(asked['teacher'][index]['question'])}", ""]
            for who, rows in asked.items():
                mark = "right" if rows[index]["generation_correct"] else "wrong"
                lines.append(f"- {who} ({mark}): {_one_line(rows[index]['reply'])}")
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _one_line(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plot_losses(run: Results) -> bool:
    """Draws loss.svg, a panel a stage; returns False if no stage has run."""
    curves = {
        name: ([line["tokens"] for line in lines], [line["loss"] for line in lines])
        for name, lines in run.metrics.items()
    }
    if not curves:
        return False
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    columns = min(2, len(curves))
    figure, axes = pyplot.subplots(
        math.ceil(len(curves) / columns),
        columns,
        figsize=(5 * columns, 3 * math.ceil(len(curves) / columns)),
        squeeze=False,
    )
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, (tokens, losses)) in zip(axes.flat, curves.items(), strict=False):
        axis.plot(tokens, losses, linewidth=1)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("tokens", fontsize=9)
        objective = run.recipe.stages[name].objective
        axis.set_ylabel("KL, nats a token" if objective == "forward_kl" else "relative squared error", fontsize=9)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_major_locator(pyplot.MaxNLocator(6))
        axis.grid(True, which="both", alpha=0.25)
    figure.tight_layout()
    figure.savefig(run.root / "loss.svg", metadata={"Date": None})
    pyplot.close(figure)
    return True
