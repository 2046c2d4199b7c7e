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
    file_name,
    p_value,
    percent,
    points,
)
from gendistill.report.page.reading import Records

INTERVALS = f"Intervals are of {100 * LEVEL:.0f} %"
STYLES = {"generation": 0, "ranking": 1}  # of the protocols, the same in every plot

MDE_NOTE = "Min. detectable: the difference that so many items show four times in five."
LEAST_TO_DRAW = 3  # models; two are told by a sentence
P_PLACE = 6  # of p in a row of `difference_table`; its correction stands behind it


@dataclass(frozen=True)
class Compared:
    """A model beside its teacher, on the same items.

    Attributes:
        name: what the page calls it.
        control: what it is if it is no result, but something to hold results against: "untrained student".
        seed: of the bootstrap.
    """

    name: str
    teacher: Records
    student: Records
    seed: int = 0
    control: str | None = None


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
    controls = [each for each in judged if each.model.control is not None]
    who = f"Of {len(results)} runs, {best.name}" if len(results) > 1 else f"After {best.name}, the student"
    numbers = []
    for label, read, scale in (
        ("retention by generation", lambda each: each.retention("generation"), 100),
        ("retention by ranking", lambda each: each.retention("ranking"), 100),
        ("gap between the two", lambda each: each.gap(), 1),
    ):
        found, unit = read(best), " %" if scale == 100 else " points"
        if found is None:
            continue
        beside = [
            f"{each.model.control}: {scale * read(each).value:.1f}{unit}" for each in controls if read(each) is not None
        ]
        interval = f"{scale * found.low:.1f} to {scale * found.high:.1f}{unit}"
        numbers.append(Number(label, f"{scale * found.value:.1f}{unit}", interval, beside))
    by_generation, by_ranking = best.retention("generation"), best.retention("ranking")
    if by_generation is None:
        return "The teacher answers nothing right by generation, so there is nothing that could be retained.", numbers
    verb = "retains most: " if len(results) > 1 else "retains "
    lead = f"{who} {verb}{percent(by_generation.value)} % of the teacher's accuracy by generated answers"
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
            scaled = [None if one is None else _scaled(one) for one in found]
            series.append(drawing.Dots(protocol, scaled, STYLES[protocol]))
    svg = drawing.dots(
        [f"{each.name} ({each.model.control})" if each.model.control else each.name for each in judged],
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
        for who in ("teacher", "student"):
            columns.append(Column(f"{accuracy}_{who}", f"{accuracy}: {who}, %", percent))
    columns.append(Column("unparsed", "unparsed, %", percent))
    rows = []
    for each in judged:
        for task, row in each.paired.items():
            cells = [_accuracy(row[protocol], who) for protocol in PROTOCOLS for who in ("teacher", "student")]
            # The same replies graded once more: a third pair of intervals would say little, and fill the page.
            cells += [row["flexible"][who] for who in ("teacher", "student")]
            rows.append([each.name, task, row["items"], *cells, row["unparsed"]])
    note = (
        "Generation is graded by strict extraction, flexible are the same replies by flexible extraction. "
        f"{INTERVALS} (Wilson), of single tasks; means are over tasks of equal weight. Unparsed: of the "
        "student's replies, by strict extraction."
    )
    return Table("accuracy", "Accuracy under both protocols", columns, rows, note)


def _accuracy(compared: Mapping[str, Any], who: str) -> Interval | None:
    """None if it is not ranked. Means have no interval here: theirs takes a bootstrap, and is that of retention."""
    if compared[who] is None:
        return None
    return Interval(compared[who], *(compared.get(f"{who}_interval") or (None, None)))


def accuracy_figure(judged: Judged) -> Figure:
    """Accuracy by task: teacher and student, under both protocols."""
    series = []
    for protocol in reversed(PROTOCOLS):
        for who in ("teacher", "student"):
            found = [_accuracy(judged.paired[task][protocol], who) for task in judged.tasks]
            if any(one is not None for one in found):
                scaled = [None if one is None else _scaled(one) for one in found]
                series.append(drawing.Dots(f"{who}, {protocol}", scaled, STYLES[protocol], hollow=who == "teacher"))
    said = "; ".join(
        f"{task}: " + ", ".join(f"{own.name} {own.values[number].value:.1f}" for own in series if own.values[number])
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
        "beyond guessing. Gap: retention by ranking minus by generation. p: McNemar's exact test of student against "
        f"teacher on the replies; Holm: corrected for the {len(tested)} tests of this table. {MDE_NOTE}"
    )
    return Table("retention", "Retention, gap and significance", columns, rows, note)


def difference_table(pairs: Sequence[tuple[Judged, Judged]]) -> Table:
    """Students of several runs beside one another: each pair is a reference and what is compared with it."""
    columns = [
        Column("model", "model"),
        Column("reference", "compared with"),
        Column("task", "task"),
        Column("ranking_difference", "ranking: difference, points", points),
        Column("generation_difference", "generation: difference, points", points),
        Column("generation_ratio", "generation: ratio, %", percent),
        Column("p", "p", p_value),
        Column("p_holm", "p, Holm", p_value),
        Column("minimum_detectable_effect", "min. detectable, points", decimals(1)),
    ]
    rows = []
    for reference, other in pairs:
        # As if the reference were the teacher: the same pairing, tests and draws.
        beside = judge(Compared(other.name, reference.model.student, other.model.student, other.model.seed))
        for task, paired in beside.paired.items():
            generation = beside.significance[task]["generation"]
            differences = [paired[protocol]["difference"] for protocol in PROTOCOLS]
            ratio = _interval(generation["retention"])
            tests = [generation.get("p"), None, generation.get("minimum_detectable_effect")]
            rows.append([other.name, reference.name, task, *differences, ratio, *tests])
    tested = [row for row in rows if row[P_PLACE] is not None]
    for row, p in zip(tested, holm([row[P_PLACE] for row in tested]), strict=True):
        row[P_PLACE + 1] = p
    note = (
        f"Difference and ratio of the two students' accuracies on the same items. {INTERVALS}, by a paired bootstrap over "
        "items; not over seeds. p: McNemar's exact test of the two on the replies; Holm: corrected for the "
        f"{len(tested)} tests of this table. {MDE_NOTE}"
    )
    return Table("between", "One against the other", columns, rows, note)


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
    flips = _flips(ranked)
    if len(ranked) < LEAST_TO_DRAW:
        return [*flips, table]
    places = {row[0]: (row[1], row[2]) for row in rows}
    said = "; ".join(f"{name} {first} and {second}" for name, (first, second) in places.items())
    alt = f"Places of the models by ranking and by generation: {said}"
    figure = Figure(
        "order", "Order under both protocols", drawing.slopes(places), alt, "Lines that cross are rank flips."
    )
    return [*flips, figure, table]


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


def reply_parts(judged: Sequence[Judged], results: Sequence[str], teacher: Mapping[str, Diagnostics]) -> list[Part]:
    """How the models reply: what stands out, rates, and the letters they choose.

    Args:
        results: names of those whose diagnoses are told in words; the table has those of all.
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
        Column("diagnoses", "diagnoses"),
    ]
    rows = []
    for name, by_task in models.items():
        for task, found in by_task.items():
            letters = " ".join(f"{letter}\u00a0{100 * share:.0f}" for letter, share in found.letters.items())
            rates = (1 - found.unparsed, 1 - found.flexible_unparsed, found.truncated, found.repetitive)
            named = "; ".join(diagnosis.name for diagnosis in found.diagnoses)
            rows.append([name, task, *rates, *found.tokens, letters or None, named or None])
    said = [
        Note(f"{task}, {name}: {diagnosis.name}. {diagnosis.sentence}", warns=True)
        for name, by_task in models.items()
        if name == TEACHER or name in results
        for task, found in by_task.items()
        for diagnosis in found.diagnoses
    ]
    note = "Shares of the replies; repetitive: caught in a loop; letters: of the replies that give one."
    return [
        *(said or [Note("Nothing stands out in the replies.")]),
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
        figures.append(Figure(file_name("letters", task), f"Letters chosen: {task}", svg, alt))
    return figures


def _shares(letters: Mapping[str, float]) -> str:
    return ", ".join(f"{letter} {100 * share:.0f}" for letter, share in letters.items())
