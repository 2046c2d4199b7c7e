"""What was kept of the teacher: accuracies, retention, gap, rank flips and replies, all by `gendistill.analysis`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.analysis.diagnostics import SIGNIFICANT, Diagnostics, diagnose
from gendistill.analysis.scores import ACCURACIES, MEAN, Scores, TaskScore, paired_table
from gendistill.analysis.significance import LEVEL, PROTOCOLS, compare, holm, rank_flips
from gendistill.report.evaluations import TEACHER
from gendistill.report.page import drawing
from gendistill.report.page.parts import (
    Column,
    Figure,
    Interval,
    Note,
    Number,
    Part,
    Table,
    count,
    decimals,
    p_value,
    percent,
    points,
)
from gendistill.report.page.reading import Records

INTERVALS = f"Intervals are of {LEVEL:.0%}"


@dataclass(frozen=True)
class Compared:
    """A model beside its teacher, on the same items.

    Attributes:
        name: what the page calls it.
        is_control: it was not distilled by the recipe: the untrained student, or a control of an ablation.
        seed: of the bootstrap.
    """

    name: str
    teacher: Records
    student: Records
    seed: int = 0
    is_control: bool = False


@dataclass(frozen=True)
class Judged:
    """The same with what `gendistill.analysis` finds of it: rows of `paired_table` and `compare` by task or mean."""

    model: Compared
    paired: Mapping[str, Mapping[str, Any]]
    significance: Mapping[str, Mapping[str, Any]]
    diagnostics: Mapping[str, Diagnostics]  # of the student, by task

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def tasks(self) -> list[str]:
        return list(self.model.teacher)

    def retention(self, protocol: str, task: str = MEAN) -> Interval | None:
        """With its bootstrap interval; None where there is no ranking or the teacher got nothing right."""
        return _interval(self.significance[task][protocol]["retention"])

    def gap(self, task: str = MEAN) -> Interval | None:
        return _interval(self.significance[task]["gap"])


def judge(model: Compared) -> Judged:
    teacher = Scores(TEACHER, {task: TaskScore.from_records(items) for task, items in model.teacher.items()})
    student = Scores(model.name, {task: TaskScore.from_records(items) for task, items in model.student.items()})
    rows = paired_table(teacher, {model.name: student})[model.name]
    return Judged(
        model=model,
        paired={row["task"]: row for row in rows},
        significance=compare(model.teacher, model.student, model.seed),
        diagnostics={task: diagnose(items) for task, items in model.student.items()},
    )


def _interval(estimate: Mapping[str, Any]) -> Interval | None:
    return None if estimate["value"] is None else Interval(estimate["value"], *estimate["interval"])


def headline(judged: Sequence[Judged], results: Sequence[Judged]) -> tuple[str, list[Number]]:
    """The result in a sentence, and the numbers behind it with the controls beside them.

    Args:
        judged: all models.
        results: those that are results: one, or several that are compared.
    """
    best = max(results, key=lambda each: _value(each.retention("generation")))
    controls = [each for each in judged if each.model.is_control]
    numbers = []
    for label, read, scale in (
        ("retained by generation", lambda each: each.retention("generation"), 100),
        ("retained by ranking", lambda each: each.retention("ranking"), 100),
        ("gap between the two", lambda each: each.gap(), 1),
    ):
        found, unit = read(best), " %" if scale == 100 else " points"
        if found is None:
            continue
        beside = [f"{each.name}: {scale * read(each).value:.1f}{unit}" for each in controls if read(each) is not None]
        interval = f"{scale * found.low:.1f} to {scale * found.high:.1f}{unit}"
        numbers.append(Number(label, f"{scale * found.value:.1f}{unit}", interval, beside))
    of = f"Of {len(results)} runs, {best.name} keeps most" if len(results) > 1 else f"{best.name} keeps"
    by_generation, by_ranking = best.retention("generation"), best.retention("ranking")
    if by_generation is None:
        return f"The teacher answers nothing right by generation, so {best.name} has nothing to keep.", numbers
    lead = f"{of}: {percent(by_generation.value)} % of the teacher's accuracy by generated answers"
    if by_ranking is not None:
        lead += f", {percent(by_ranking.value)} % by ranking"
    return f"{lead}.", numbers


def _value(found: Interval | None) -> float:
    return -1 if found is None else found.value


def retention_figure(judged: Sequence[Judged]) -> Figure:
    """Retention under both protocols, a line for each model."""
    series = []
    for protocol in reversed(PROTOCOLS):  # generation first: it is what the models are for
        found = [each.retention(protocol) for each in judged]
        if any(found):
            series.append((protocol, [None if one is None else _scaled(one) for one in found]))
    svg = drawing.dots(
        [f"{each.name} (control)" if each.model.is_control else each.name for each in judged],
        series,
        reference=100,
        reference_label="teacher",
        x_label="retention: mean accuracy, percent of the teacher's",
    )
    said = "; ".join(f"{each.name} {_said(each)}" for each in judged)
    return Figure(
        "retention",
        "Accuracy retained under both protocols",
        svg,
        f"Retention in percent of the teacher's accuracy. {said}",
        f"{INTERVALS}, by a paired bootstrap over items.",
    )


def _said(judged: Judged) -> str:
    found = {protocol: judged.retention(protocol) for protocol in PROTOCOLS}
    return ", ".join(f"{protocol} {percent(one.value)}" for protocol, one in found.items() if one is not None)


def _scaled(found: Interval) -> Interval:
    return Interval(*(None if each is None else 100 * each for each in found))


def accuracy_table(judged: Sequence[Judged]) -> Table:
    """Accuracy of teacher and student on each task, under both protocols."""
    columns = [Column("model", "model"), Column("task", "task"), Column("items", "items", count)]
    for accuracy in ACCURACIES:
        columns += [
            Column(f"{accuracy}_teacher", f"{accuracy}: teacher, %", percent),
            Column(f"{accuracy}_student", f"{accuracy}: student, %", percent),
        ]
    columns += [Column("unparsed", "unparsed, %", percent), Column("truncated", "truncated, %", percent)]
    rows = []
    for each in judged:
        for task, row in each.paired.items():
            cells = []
            for accuracy in ACCURACIES:
                cells += [_accuracy(row[accuracy], who) for who in ("teacher", "student")]
            rows.append([each.name, task, row["items"], *cells, row["unparsed"], row["truncated"]])
    note = (
        "Generation is graded by strict extraction, flexible are the same replies by flexible extraction. "
        f"{INTERVALS} (Wilson), of single tasks; means are over tasks of equal weight. Unparsed and truncated: the "
        "student's replies."
    )
    return Table("accuracy", "Accuracy under both protocols", columns, rows, note)


def _accuracy(compared: Mapping[str, Any], who: str) -> Interval | None:
    if compared[who] is None:
        return None
    # Means have no interval here: theirs takes a bootstrap, and is that of their retention.
    return Interval(compared[who], *(compared.get(f"{who}_interval") or (None, None)))


def accuracy_figure(judged: Judged) -> Figure:
    """Accuracy by task: teacher and student, under both protocols."""
    series = []
    for protocol in reversed(PROTOCOLS):
        for who in ("teacher", "student"):
            found = [_accuracy(judged.paired[task][protocol], who) for task in judged.tasks]
            if any(one is not None for one in found):
                series.append((f"{who}, {protocol}", [None if one is None else _scaled(one) for one in found]))
    said = "; ".join(
        f"{task}: " + ", ".join(f"{name} {values[number].value:.1f}" for name, values in series if values[number])
        for number, task in enumerate(judged.tasks)
    )
    svg = drawing.dots(judged.tasks, series, x_label="accuracy, percent")
    title = f"Accuracy by task: {judged.name}"
    return Figure("accuracy_by_task", title, svg, f"Accuracy in percent. {said}", f"{INTERVALS} (Wilson).")


def retention_table(judged: Sequence[Judged]) -> Table:
    """Retention, gap, tests and the minimum detectable effect."""
    columns = [
        Column("model", "model"),
        Column("task", "task"),
        Column("ranking_retention", "ranking: retention, %", percent),
        Column("generation_retention", "generation: retention, %", percent),
        Column("generation_above_chance", "above chance, %", percent),
        Column("gap", "gap, points", points),
        Column("p", "p", p_value),
        Column("p_holm", "p, Holm", p_value),
        Column("minimum_detectable_effect", "min. detectable, points", decimals(1)),
    ]
    found = [(each, task, row) for each in judged for task, row in each.significance.items()]
    tested = {number: row["generation"]["p"] for number, (_, _, row) in enumerate(found) if "p" in row["generation"]}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    rows = []
    for number, (each, task, row) in enumerate(found):
        generation = row["generation"]
        rows.append(
            [
                each.name,
                task,
                _interval(row["ranking"]["retention"]),
                _interval(generation["retention"]),
                generation["corrected_retention"],
                _interval(row["gap"]),
                generation.get("p"),
                corrected.get(number),
                generation.get("minimum_detectable_effect"),
            ]
        )
    note = (
        f"{INTERVALS}, by a paired bootstrap over items. Above chance: retention, by generation, of the accuracy "
        "beyond guessing. Gap: retention by ranking minus by generation. p: McNemar's exact test of student against teacher "
        f"on the replies; Holm: corrected for the {len(tested)} tests of this table. Min. detectable: the difference "
        "that so many items show four times in five."
    )
    return Table("retention", "Retention, gap and significance", columns, rows, note)


def order_parts(judged: Sequence[Judged]) -> list[Part]:
    """Which protocol prefers which model, and where the two disagree; nothing for a single model."""
    ranked = [each for each in judged if each.paired[MEAN]["ranking"]["student"] is not None]
    if len(ranked) < 2:
        return []
    orders = {
        protocol: sorted(ranked, key=lambda each, by=protocol: -each.paired[MEAN][by]["student"])
        for protocol in PROTOCOLS
    }
    columns = [
        Column("model", "model"),
        Column("ranking_place", "place by ranking", count),
        Column("generation_place", "place by generation", count),
        Column("ranking", "ranking, %", percent),
        Column("generation", "generation, %", percent),
    ]
    rows = []
    for each in orders["generation"]:
        places = [1 + orders[protocol].index(each) for protocol in PROTOCOLS]
        rows.append([each.name, *places, *(each.paired[MEAN][protocol]["student"] for protocol in PROTOCOLS)])
    note = "Mean accuracy over the tasks that are ranked as well as generated."
    table = Table("order", "Order of the models under both protocols", columns, rows, note)
    return [*_flips(ranked), table]


def _flips(judged: Sequence[Judged]) -> list[Part]:
    """A sentence on the flips, and a table of them."""
    found = rank_flips({each.name: each.model.student for each in judged})
    pairs = len(judged) * (len(judged) - 1) // 2
    if not found:
        return [Note(f"Both protocols order all {pairs} pairs of models alike: no rank flips.")]
    columns = [
        Column("ranking_prefers", "ranking prefers"),
        Column("generation_prefers", "generation prefers"),
        Column("ranking_difference", "by ranking, points", decimals(1)),
        Column("generation_difference", "by generation, points", decimals(1)),
        Column("p_ranking", "p, ranking", p_value),
        Column("p_generation", "p, generation", p_value),
        Column("p_holm", "p of both, Holm", p_value),
    ]
    # A flip is real if both differences are: the larger p speaks for the pair.
    both = [max(flip["p"].values()) for flip in found]
    corrected = holm(both, of=pairs)
    rows = [
        [*flip["models"], flip["ranking"], -flip["generation"], *(flip["p"][each] for each in PROTOCOLS), p]
        for flip, p in zip(found, corrected, strict=True)
    ]
    certain = sum(p < SIGNIFICANT for p in corrected)
    first = min(range(len(found)), key=both.__getitem__)
    named = (
        f"The clearest: ranking puts {found[first]['models'][0]} above {found[first]['models'][1]} by "
        f"{found[first]['ranking']:.1f} points (p {p_value(found[first]['p']['ranking'])}), generation puts "
        f"{found[first]['models'][1]} above {found[first]['models'][0]} by {-found[first]['generation']:.1f} "
        f"(p {p_value(found[first]['p']['generation'])})."
    )
    lead = f"Ranking and generation disagree on {len(found)} of {pairs} pairs of models; {certain} of these flips "
    lead += "is" if certain == 1 else "are"
    lead += f" significant under both protocols after correction for {pairs} pairs. {named}"
    note = (
        "p by permutation of the two models' outcomes, item by item. p of both: the larger of the two, corrected for "
        f"{pairs} pairs (Holm)."
    )
    return [Note(lead), Table("rank_flips", "Rank flips", columns, rows, note)]


def reply_parts(judged: Sequence[Judged], teacher: Mapping[str, Diagnostics]) -> list[Part]:
    """How the models reply: what stands out, rates, and the letters they choose.

    Args:
        teacher: its diagnostics, by task.
    """
    models = {TEACHER: teacher} | {each.name: each.diagnostics for each in judged}
    columns = [
        Column("model", "model"),
        Column("task", "task"),
        Column("parsed", "parsed: strict, %", percent),
        Column("flexible_parsed", "parsed: flexible, %", percent),
        Column("truncated", "truncated, %", percent),
        Column("repetitive", "repetitive, %", percent),
        Column("median_tokens", "tokens, median", count),
        Column("tokens_90", "tokens, 90 %", count),
        Column("letters", "letters chosen, %"),
    ]
    rows = []
    for name, by_task in models.items():
        for task, found in by_task.items():
            letters = " ".join(f"{letter} {100 * share:.0f}" for letter, share in found.letters.items())
            rates = (1 - found.unparsed, 1 - found.flexible_unparsed, found.truncated, found.repetitive)
            rows.append([name, task, *rates, *found.tokens, letters or None])
    named = [
        Note(f"{task}, {name}: {diagnosis.name}. {diagnosis.sentence}", warns=True)
        for name, by_task in models.items()
        for task, found in by_task.items()
        for diagnosis in found.diagnoses
    ]
    note = "Shares of the replies; repetitive: caught in a loop; letters: of the replies that give one."
    return [
        *(named or [Note("Nothing stands out in the replies.")]),
        *_letters(models),
        Table("replies", "Parse rates, lengths and letters", columns, rows, note),
    ]


def _letters(models: Mapping[str, Mapping[str, Diagnostics]]) -> list[Figure]:
    """A plot for each task whose replies are letters: what was right, and what each model chose."""
    figures = []
    for task, found in models[TEACHER].items():
        if not found.letters:
            continue
        series = {name: by_task[task].letters for name, by_task in models.items()}
        svg = drawing.letters(found.gold_letters, series)
        said = "; ".join(f"{name}: {_shares(shares)}" for name, shares in series.items())
        alt = f"Share of each letter in percent. Right: {_shares(found.gold_letters)}; {said}"
        figures.append(Figure(f"letters_{task}", f"Letters chosen: {task}", svg, alt))
    return figures


def _shares(letters: Mapping[str, float]) -> str:
    return ", ".join(f"{letter} {100 * share:.0f}" for letter, share in letters.items())
