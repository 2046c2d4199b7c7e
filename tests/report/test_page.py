"""`gendistill report`: the numbers are those of analysis, the page loads nothing, and texts in it do nothing."""

import base64
import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from cli_tools import in_process
from gendistill.ablation.result import Ablation, write_ablation
from gendistill.analysis.ablation import compare_rows
from gendistill.analysis.scores import MEAN, Scores, TaskScore, paired_table, wilson
from gendistill.analysis.significance import compare
from gendistill.files import seal, write_jsonl
from gendistill.report.page import charts, drawing
from gendistill.report.page.comparison import flattened
from gendistill.report.page.formats import to_csv, to_json, to_latex, to_markdown_table
from gendistill.report.page.make import names_of
from gendistill.report.page.parts import Column, Interval, Table, decimals, file_name, percent
from gendistill.report.page.write import check_folder
from run_maker import MACHINE, choices, make_run, metrics, programs, three_models

ROOT = Path(__file__).resolve().parents[2]
STUDENT = {"choice": choices(14, 20), "programs": programs(6)}
CSS = (ROOT / "src/gendistill/report/page/page.css").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "kda", three_models(STUDENT))


@pytest.fixture(scope="module")
def report(run):
    """The folder of the run's report."""
    return written(run)


def written(*runs, output=None):
    """The folder that the command writes for these runs."""
    code, said = in_process("report", *runs, *([] if output is None else ["--output", output]))
    assert code == 0, said
    return output or runs[0] / "report"


def refused(*arguments):
    code, said = in_process("report", *arguments)
    assert code == 2, said
    return said


def table(folder, name):
    return json.loads((folder / "tables" / f"{name}.json").read_text())["rows"]


def page(folder):
    return (folder / "report.html").read_text()


def row_of(rows, **wanted):
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_numbers_are_those_of_analysis(report):
    models = three_models(STUDENT)
    scores = {
        label: Scores(label, {task: TaskScore.from_records(items) for task, items in by_task.items()})
        for label, by_task in models.items()
    }
    teacher = scores.pop("teacher")
    accuracy = table(report, "accuracy")
    for label, rows in paired_table(teacher, scores).items():
        for row in rows:
            shown = row_of(accuracy, model=label, task=row["task"])
            for protocol in ("ranking", "generation"):
                expected = [row[protocol]["student"], *(row[protocol].get("student_interval") or (None, None))]
                got = [shown[f"{protocol}_student{end}"] for end in ("", "_low", "_high")]
                assert got == expected, (label, row["task"], protocol)
    found = compare(models["teacher"], STUDENT, 0)
    shown = row_of(table(report, "retention"), model="1-logit_distillation", task=MEAN)
    assert shown["generation_retention"] == found[MEAN]["generation"]["retention"]["value"]
    assert [shown["gap"], shown["gap_low"], shown["gap_high"]] == [
        found[MEAN]["gap"]["value"],
        *found[MEAN]["gap"]["interval"],
    ]
    lead = re.search(r'<p class="lead"><bdi>(.*?)</bdi>', page(report))[1]
    assert f"{100 * 14 / 22:.1f} % of the teacher&#39;s accuracy by generated answers" in lead
    assert f"{100 * 20 / 23:.1f} % by ranking" in lead
    low, high = wilson(14, 24)
    assert f"{100 * low:.1f} to {100 * high:.1f}" in page(report)


def test_holm_is_over_the_tests_that_are_shown(report):
    rows = [row for row in table(report, "retention") if row["p"] is not None]
    assert len(rows) == 4  # result and control, two tasks each
    least = min(rows, key=lambda row: row["p"])
    assert least["p_holm"] == pytest.approx(min(1, 4 * least["p"]))


def test_every_table_and_plot_lies_beside_the_page(report):
    text = page(report)
    for link in re.findall(r'href="((?:tables|plots)/[^"]+)"', text):
        assert (report / link).is_file(), link
    linked = set(re.findall(r'href="(?:tables|plots)/([^"]+)"', text))
    there = {path.name for below in ("tables", "plots") for path in (report / below).iterdir()} - {"SHA256SUMS"}
    assert linked == there
    plots = {path.stem for path in (report / "plots").glob("*.svg")}
    assert plots == {
        "retention",
        "accuracy_by_task",
        "order",
        "letters_choice",
        "loss_logit_distillation",
        "layers",
    }


def test_the_page_asks_for_nothing(report):
    text = page(report)
    # Names of XML's vocabularies are no addresses that anything is fetched from.
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    targets = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(target.startswith(("#", "data:,", "tables/", "plots/")) for target in targets)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src &#39;none&#39;" in text and f"sha256-{digest}" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_texts_do_nothing(tmp_path):
    hostile = "<script>alert(1)</script> & \u202egnp.exe \x1b[31m {{ page }}"
    student = {"choice": choices(0, 20), "programs": programs(6)}
    student["choice"][0] |= {"reply": hostile, "parsed": hostile}
    models = three_models(student)
    for by_task in models.values():
        by_task["choice"][0]["question"] = hostile
    text = page(written(make_run(tmp_path / "a<b>$x$", models)))
    assert text.count("<script>") == 1  # our own
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; ⟨U+202E⟩gnp.exe ⟨U+001B⟩[31m {{ page }}" in text
    assert "\u202e" not in text and "\x1b" not in text
    assert "a&lt;b&gt;$x$" in text


def test_examples_are_ten_that_differ(report):
    text = page(report)
    assert "10 of the 11 items on which teacher and student differ by generation." in text
    assert text.count('<article class="example">') == 10
    assert "choice, item 14" in text and "programs, item 6" in text  # of both tasks
    assert "choice, item 13<" not in text  # both are right


def test_cost_counts_gpu_hours(report, tmp_path):
    (row,) = table(report, "cost")
    assert row["seconds"] == 3.0 and row["tokens"] == 1024
    assert row["gpu_hours"] == pytest.approx(3.0 * 8 / 3600)
    for machine, hours in ((MACHINE | {"device": "CPU", "processes": 2}, 0.0), (None, None)):
        made = make_run(tmp_path / str(hours), three_models(STUDENT), machine=machine)
        assert table(written(made), "cost")[0]["gpu_hours"] == hours


def test_speed_is_shown_where_bench_ran(report, tmp_path):
    assert "Speed and memory" not in page(report)
    made = make_run(tmp_path / "fast", three_models(STUDENT))
    measured = ROOT / "results/cpu/bench/smollm2-135m-window.json"
    (made / "bench").mkdir()
    shutil.copy(measured, made / "bench/bench.json")
    folder = written(made)
    first = json.loads(measured.read_text())["rows"][0]
    row = row_of(table(folder, "speed"), model=first["model"], form=first["form"], context=first["context"])
    assert row["first_ms"] == 1000 * first["first_median"] and row["first_ms_low"] == 1000 * min(first["first"])
    assert {"speed_first.svg", "speed_token.svg"} <= {path.name for path in (folder / "plots").iterdir()}
    (made / "bench/bench.json").write_text("{")
    assert "bench.json: is damaged" in refused(made)


def one_task(right, ranked):
    """Records of a teacher and of a student that is right on so many of 200."""
    student = {"choice": choices(right, ranked, 200)}
    return {"teacher": {"choice": choices(190, 190, 200)}, "1-logit_distillation": student}


@pytest.fixture(scope="module")
def flip(tmp_path_factory):
    """Runs of which ranking prefers one and generation the other, and one that is as good as another."""
    folder = tmp_path_factory.mktemp("flip")
    sizes = {"ranks": (40, 180), "answers": (180, 40), "twin": (181, 41)}
    runs = []
    for name, (right, ranked) in sizes.items():
        models = {
            "teacher": {"choice": choices(190, 190, 200)},
            "1-logit_distillation": {"choice": choices(right, ranked, 200)},
        }
        runs.append(make_run(folder / name, models))
    return written(*runs, output=folder / "out"), sizes


def test_a_planted_flip_is_named_in_both_orders_and_a_null_effect_is_none(flip):
    folder, sizes = flip
    text = page(folder)
    assert "ranking puts ranks above" in text
    flips = table(folder, "rank_flips")
    assert {(row["ranking_prefers"], row["generation_prefers"]) for row in flips} == {
        ("ranks", "answers"),
        ("ranks", "twin"),
    }
    assert all(
        row["p_corrected"] < 0.01 and row["ranking_difference"] > 0 < row["generation_difference"] for row in flips
    )
    records = {name: {0: {"choice": choices(*counts, 200)}} for name, counts in sizes.items()}
    rows = {"teacher": {0: {"choice": choices(190, 190, 200)}}} | records
    found = compare_rows(rows, "ranks", "teacher")["rows"]["answers"]["generation"]
    shown = row_of(table(folder, "differences_of_models"), row="answers")
    assert shown["generation_difference"] == found["difference"]["value"] and shown["generation_p"] == found["p"]


def test_a_null_effect_is_within_chance(tmp_path):
    runs = []
    for name, right in (("one", 120), ("other", 121)):
        models = {
            "teacher": {"choice": choices(190, 190, 200)},
            "1-logit_distillation": {"choice": choices(right, 150, 200)},
        }
        runs.append(make_run(tmp_path / name, models))
    text = page(written(*runs, output=tmp_path / "out"))
    assert "Beyond chance by generation, after correction: no difference." in text


def test_recipes_and_what_differs(tmp_path):
    runs = [make_run(tmp_path / f"seed{seed}", three_models(STUDENT), held_out=0.1 * seed) for seed in (1, 2)]
    folder = written(*runs, output=tmp_path / "out")
    (row,) = table(folder, "differences")
    assert row == {"setting": "held_out", "seed1": "0.1", "seed2": "0.2"}
    assert page(folder).count("# sha256 of the lines above") == 2  # both recipes, word for word
    versions = table(folder, "versions")
    assert versions[0]["torch"] == "2.13.0" and len(versions) == 2
    nested = {"a": {"b": 1, "c": []}, "d": [1, 2], "e": [{"f": None}]}
    assert dict(flattened(nested)) == {"a.b": 1, "a.c": [], "d": [1, 2], "e.0.f": None}


def test_runs_that_cannot_be_compared_are_refused(tmp_path, run):
    other_items = three_models(STUDENT)
    for by_task in other_items.values():
        by_task["choice"] = [record | {"id": record["id"] + 100} for record in by_task["choice"]]
    assert "different items of 'choice'" in refused(run, make_run(tmp_path / "items", other_items))
    fewer = {label: {"choice": by_task["choice"]} for label, by_task in three_models(STUDENT).items()}
    assert "was evaluated on choice, programs" in refused(run, make_run(tmp_path / "tasks", fewer))
    assert "other weights" in refused(run, make_run(tmp_path / "teacher", three_models(STUDENT), teacher="embedded:x"))
    assert "given twice" in refused(run, run / ".." / run.name)
    assert "no run folder" in refused(tmp_path / "nothing")
    (tmp_path / "teacher/recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert "changed since the run wrote it" in refused(tmp_path / "teacher")
    untaught = make_run(tmp_path / "untaught", three_models(STUDENT))
    shutil.rmtree(untaught / "evaluation/teacher")
    assert "the teacher has not been evaluated" in refused(untaught)


def test_only_an_earlier_report_is_replaced(tmp_path):
    made = make_run(tmp_path / "run", three_models(STUDENT))
    folder = written(made)
    before = page(folder)
    assert page(written(made)) == before  # and equal runs make equal pages
    (folder / "tables/notes.txt").write_text("mine")
    assert "notes.txt added since written" in refused(made)
    (folder / "tables/notes.txt").unlink()
    (folder / "report.html").write_text("mine")
    assert "report.html changed since written" in refused(made)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    assert "holds no earlier report" in refused(made, "--output", foreign)
    assert "is a file" in refused(made, "--output", foreign / "thesis.tex")
    assert (foreign / "thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")


VARIANTS = [
    dict(name="base-seed0", axis=None, value="base", seed=0, state="done"),
    dict(name="base-seed1", axis=None, value="base", seed=1, state="done"),
    dict(name="rate-high-seed0", axis="rate", value="high", seed=0, state="done"),
    dict(name="rate-high-seed1", axis="rate", value="high", seed=1, state="done"),
    dict(name="rate-1000-seed0", axis="rate", value="1000", seed=0, state="diverged", reason="the loss is NaN"),
    dict(name="window-seed0", axis=None, value="window", seed=0, state="done", control="window"),
    dict(name="teacher-seed0", axis=None, value="teacher", seed=0, state="done", control="teacher"),
]


def drawn(seed, right, ranked):
    """Items of a seed's own."""
    return [record | {"id": 100 * seed + record["id"]} for record in choices(right, ranked)]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    variants = [each | dict(overrides={}, folder=f"variants/{each['name']}") for each in VARIANTS]
    for each in variants:
        if each["state"] == "done" and each.get("control") != "teacher":
            right = {"base": 12, "high": 20, "window": 2}[each["value"]] + each["seed"]
            # Each seed draws items of its own.
            shift, taught = (drawn(each["seed"], *counts) for counts in ((right, 20), (23, 23)))
            models = {"teacher": {"choice": taught}, "1-logit_distillation": {"choice": shift}}
            make_run(folder / each["folder"], models, seed=each["seed"])
    shared = [dict(stage="conversion", variants=["base-seed0", "rate-high-seed0"], run_once_in="variants/base-seed0")]
    made = Ablation(
        name="small", base="tiny.yaml", seeds=[0, 1], axes={"rate": ["high", "1000"]}, variants=variants, shared=shared
    )
    write_ablation(folder, made)
    return folder


def test_an_ablation_is_compared_over_seeds_and_items(ablation):
    folder = written(ablation)
    text = page(folder)
    assert "6 of 7 variants are done" in text and "rate-1000-seed0 diverged: the loss is NaN" in text
    rows = table(folder, "rows")
    assert [(row["row"], row["seeds"]) for row in rows] == [
        ("base", 2),
        ("teacher", 2),
        ("rate=high", 2),
        ("window", 1),
    ]
    shown = row_of(table(folder, "differences_of_models"), row="rate=high")
    assert shown["generation_difference"] == pytest.approx(100 * 8 / 24)
    assert shown["generation_difference_low"] < shown["generation_difference"] < shown["generation_difference_high"]
    assert "untrained window: " in text  # beside the headline
    assert table(folder, "shared") == [{"stage": "conversion", "run_once_in": "variants/base-seed0", "used_by": 2}]
    # One item, and the replies of those that were asked it: a seed's items are its own.
    shown = re.findall(r"<h4><bdi>(.*?)</bdi>", text)
    assert set(shown) == {"teacher", "base-seed0", "rate-high-seed0"}
    assert {"teacher, seed 0", "teacher, seed 1"} <= {row["model"] for row in table(folder, "replies")}
    assert "has a page of its own" in refused(ablation, ablation / "variants/base-seed0")


def test_an_ablation_whose_base_is_not_done_is_refused(tmp_path):
    variants = [dict(VARIANTS[0], state="running", overrides={}, folder="variants/base-seed0")]
    write_ablation(tmp_path, Ablation(name="x", base="x.yaml", seeds=[0], axes={"rate": ["high"]}, variants=variants))
    assert "is not done yet" in refused(tmp_path)


TABLE = Table(
    "some",
    "Some_thing & more",
    [Column("model", "model"), Column("kept", "kept, %", percent), Column("loss", "loss", decimals(2))],
    [["a|b_1", Interval(0.5, 0.25, 0.75), None], ["c", None, 1.5]],
    "50 % of it.",
)


def test_a_table_in_every_format():
    rows = list(csv.reader(to_csv(TABLE).splitlines()))
    assert rows == [
        ["model", "kept", "kept_low", "kept_high", "loss"],
        ["a|b_1", "0.5", "0.25", "0.75", ""],
        ["c", "", "", "", "1.5"],
    ]
    first, second = json.loads(to_json(TABLE))["rows"]
    assert first == {"model": "a|b_1", "kept": 0.5, "kept_low": 0.25, "kept_high": 0.75, "loss": None}
    assert second["loss"] == 1.5
    assert "| a\\|b_1 | 50.0 (25.0 to 75.0) | – |" in to_markdown_table(TABLE)
    latex = to_latex(TABLE)
    assert r"\begin{tabular}{lrr}" in latex and r"model & kept, \% & loss \\" in latex
    assert r"a|b\_1 & 50.0 (25.0 to 75.0) & -- \\" in latex


def test_a_loss_that_is_no_number_is_drawn_around_and_sorts_last(tmp_path):
    made = make_run(tmp_path / "run", three_models(STUDENT))
    lines = metrics()
    lines[-1]["loss"] = float("nan")
    write_jsonl(made / "1-logit_distillation/metrics.jsonl", lines)
    seal(made / "1-logit_distillation")
    folder = written(made)
    assert table(folder, "losses")[0]["loss_last"] is None
    assert "NaN" not in (folder / "tables/losses.json").read_text()
    assert re.search(r'<td class="number" data-empty><bdi>nan</bdi></td>', page(folder))
    assert "its loss ended above where it began" in page(folder)


def test_files_have_plain_names():
    assert file_name("loss", "qk_alignment") == "loss_qk_alignment"
    odd = [file_name("loss", "a/b"), file_name("loss", "a b"), file_name("loss", "x" * 300)]
    assert len(set(odd)) == 3 and all(re.fullmatch(r"[\w-]{1,64}", name) for name in odd)
    assert names_of([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]


def test_a_plot_keeps_its_numbers_and_takes_the_page_s_colours():
    svg = charts.curves([("loss", [1000.0, 2000.0], [0.0151234, 0.005])], x_label="tokens", y_label="loss")
    assert ">0.015<" in svg and ">0.005<" in svg  # rounding is for the shapes alone
    assert drawing.INK in svg and "var(" not in svg  # a file has colours
    inside = drawing.in_page(svg, "what it shows", 7)
    assert set(re.findall(r"#[0-9a-f]{6}\b", inside)) == set()
    assert 'role="img" aria-label="what it shows"' in inside
    assert all(name.startswith("p7-") for name in re.findall(r'\bid="([^"]+)"', inside))


def test_a_long_curve_is_drawn_by_means():
    x, y = charts.thinned(list(range(1, 1001)), [float(step) for step in range(1, 1001)])
    assert len(x) == charts.POINTS and x[0] == 5 and y[0] == 3.0 and x[-1] == 1000
    assert charts.thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_series_are_told_apart_without_colour():
    styles = [drawing.style(number) for number in range(84)]
    assert len(set(styles)) == 84
    for one, other in zip(styles, styles[1:], strict=False):
        assert one.marker != other.marker and one.dashes != other.dashes and one.color != other.color


def test_colours_are_one_set_and_can_be_seen_on_either_paper():
    light, dark = (
        dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", part)) for part in CSS.split("prefers-color-scheme: dark")
    )
    for colour, variable in drawing.VARIABLES.items():
        assert light[variable] == colour
    for scheme in (light, light | dark):
        for name, colour in scheme.items():
            if name.startswith("--series"):
                assert contrast(colour, scheme["--paper"]) >= 3, name
        for name in ("--ink", "--dim", "--link", "--right", "--wrong"):
            assert contrast(scheme[name], scheme["--paper"]) >= 4.5, name


def contrast(one, other):
    """WCAG 2's ratio of two colours."""

    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
