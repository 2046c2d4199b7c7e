import io
import json

import pytest
from rich.console import Console

from gendistill.analysis.scores import MEAN_OF_ALL, Scores, TaskScore, paired_table, retention, wilson
from gendistill.analysis.tables import PAIRED_HEADER, paired_cells, stages_cells, to_markdown, to_rich
from gendistill.errors import UserError

TEACHER = Scores("teacher", {"a": TaskScore(100, 80, 60, 64, 5, 2), "b": TaskScore(50, 20, 0, 0, 0, 0)})
STUDENT = Scores("student", {"a": TaskScore(100, 76, 30, 48, 20, 10), "b": TaskScore(50, 10, 5, 5, 10, 0)})
# Programs are not ranked.
TEACHER_TOO = Scores("teacher", TEACHER.tasks | {"code": TaskScore(40, None, 30, 30, 0, 0)})
STUDENT_TOO = Scores("student", STUDENT.tasks | {"code": TaskScore(40, None, 6, 6, 4, 0)})


def test_wilson_by_hand():
    # Wilson (1927) for 8 of 10 at z = 1.96: (0.8 + 0.19208 -+ 1.96 sqrt(0.016 + 0.009604)) / 1.38416
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=2e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=2e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=2e-5)


def test_retention():
    assert retention(0.8, 0.6) == pytest.approx(0.75)
    assert retention(0.0, 0.6) is None


def test_counts_from_records():
    rows = [(True, True, True, "B", False), (True, False, True, None, True), (False, False, False, "A", True)]
    names = ("ranking_correct", "generation_correct", "flexible_correct", "parsed", "truncated")
    records = [dict(zip(names, row, strict=True)) for row in rows]
    score = TaskScore.from_records(records)
    assert score == TaskScore(
        items=3, ranking_correct=2, generation_correct=1, flexible_correct=2, unparsed=1, truncated=2
    )
    assert score.ranking == score.flexible == pytest.approx(2 / 3)
    unranked = TaskScore.from_records([record | {"ranking_correct": None} for record in records])
    assert unranked.ranking is None and unranked.generation == pytest.approx(1 / 3)


def test_paired_table_by_hand():
    a, b, mean = paired_table(TEACHER, {"end": STUDENT})["end"]
    assert a["ranking"]["retention"] == pytest.approx(0.95)
    assert a["generation"]["retention"] == pytest.approx(0.5)
    assert a["gap"] == pytest.approx(45.0)
    assert a["ranking"]["difference"] == pytest.approx(-4.0)
    assert a["generation"]["difference"] == pytest.approx(-30.0)
    assert a["generation"]["student_interval"] == pytest.approx(wilson(30, 100))
    assert (a["unparsed"], a["truncated"], a["teacher_unparsed"], a["items"]) == (0.2, 0.1, 0.05, 100)
    assert b["ranking"]["retention"] == pytest.approx(0.5)
    assert b["generation"]["retention"] is None and b["gap"] is None
    # Means over tasks: ranking 0.6 and 0.48, generation 0.3 and 0.2
    assert mean["task"] == "mean" and mean["items"] == 150
    assert mean["ranking"]["retention"] == pytest.approx(0.8)
    assert mean["generation"]["retention"] == pytest.approx(2 / 3)
    assert mean["gap"] == pytest.approx(100 * (0.8 - 2 / 3))
    assert mean["unparsed"] == pytest.approx(0.2)
    assert a["flexible"]["retention"] == pytest.approx(0.75)
    assert mean["flexible"]["student"] == pytest.approx((0.48 + 0.1) / 2)
    json.dumps([a, b, mean])


def test_a_task_that_is_not_ranked_is_in_no_pair():
    with_code = paired_table(TEACHER_TOO, {"end": STUDENT_TOO})["end"]
    a, b, code, mean, of_all = with_code
    assert [a, b, mean] == paired_table(TEACHER, {"end": STUDENT})["end"]
    assert set(code["ranking"].values()) == {None} and code["gap"] is None
    assert code["generation"]["retention"] == pytest.approx(0.2)
    assert of_all["task"] == MEAN_OF_ALL and of_all["items"] == 190
    assert set(of_all["ranking"].values()) == {None} and of_all["gap"] is None
    assert of_all["generation"]["teacher"] == pytest.approx((0.6 + 0 + 0.75) / 3)
    assert TEACHER_TOO.ranking == TEACHER.ranking and STUDENT_TOO.paired == STUDENT
    json.dumps(with_code)


def test_if_nothing_is_ranked_there_is_one_mean():
    teacher, student = TEACHER_TOO.of(["code"]), STUDENT_TOO.of(["code"])
    code, mean = paired_table(teacher, {"end": student})["end"]
    assert mean["task"] == "mean" and mean["ranking"]["teacher"] is teacher.ranking is None
    assert mean["generation"]["retention"] == code["generation"]["retention"] == pytest.approx(0.2)
    rows = stages_cells(teacher, {"end": student})[1]
    assert [row[2] for row in rows] == ["15.0", "–", "–", "15.0", "20.0", "10.0"]


def test_paired_table_refuses_other_items():
    with pytest.raises(UserError, match="'end' was scored on items"):
        paired_table(TEACHER, {"end": Scores("student", {"a": STUDENT.tasks["a"]})})


def test_scores_survive_json():
    assert Scores.from_dict(json.loads(json.dumps(STUDENT.to_dict()))) == STUDENT


def test_tables():
    cells = paired_cells(paired_table(TEACHER, {"end": STUDENT})["end"])
    assert cells[0] == ["a", "80.0", "76.0", "95.0", "60.0", "30.0", "50.0", "75.0", "+45.0", "20.0"]
    assert cells[1][6:9] == ["–", "–", "–"]
    lines = to_markdown(PAIRED_HEADER, cells).split("\n")
    assert len(lines) == 5 and lines[2] == "| a | 80.0 | 76.0 | 95.0 | 60.0 | 30.0 | 50.0 | 75.0 | +45.0 | 20.0 |"
    header, rows = stages_cells(TEACHER, {"converted": STUDENT, "end": TEACHER})
    assert header == ["task", "teacher", "converted", "end"]
    assert [row[0] for row in rows] == ["a", "b", "ranking", "retention", "generation", "retention", "unparsed"]
    assert [row[2] for row in rows] == ["76.0/30.0", "20.0/10.0", "48.0", "80.0", "20.0", "66.7", "20.0"]
    output = io.StringIO()
    Console(file=output, width=160).print(to_rich("Scores", header, rows))
    assert "76.0/30.0" in output.getvalue()
    header, rows = stages_cells(TEACHER_TOO, {"end": STUDENT_TOO})
    assert [row[2] for row in rows] == ["76.0/30.0", "20.0/10.0", "15.0", "48.0", "80.0", "20.0", "66.7", "20.0"]


def test_the_pair_fits_a_terminal_of_80_columns():
    widest = [["commonsense_qa", *["100.0"] * 9], ["mean of all", *["100.0"] * 7, "+100.0", "100.0"]]
    output = io.StringIO()
    Console(file=output, width=80).print(to_rich("pair", PAIRED_HEADER, widest))
    assert output.getvalue().count("100.0") == 18
    header = output.getvalue().split("───")[0]
    assert all(part in header for part in ("flexible:", "reten-", "un-", "parsed")) and "…" not in header


def test_stage_by_stage_fits_a_terminal_of_80_columns():
    """Of the demo's five stages and twelve tasks."""
    tasks = {f"task_{number}": TEACHER.tasks["a"] for number in range(11)} | {"arc_challenge": TEACHER.tasks["a"]}
    stages = ["conversion", "qk_alignment", "block_alignment", "logit_distillation", "instruction_distillation"]
    students = {f"{number}-{name}": Scores(name, tasks) for number, name in enumerate(stages)}
    output = io.StringIO()
    Console(file=output, width=80).print(to_rich("stages", *stages_cells(Scores("teacher", tasks), students)))
    assert output.getvalue().count("80.0/60.0") == 12 * 6 and "…" not in output.getvalue()
    assert "distillation" in output.getvalue()
