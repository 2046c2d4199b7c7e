import io
import json

import pytest
from rich.console import Console

from gendistill.errors import UserError
from gendistill.evaluate.statistics import Scores, TaskScore, paired_table, retention, wilson
from gendistill.evaluate.tables import PAIRED_HEADER, paired_cells, points_cells, to_markdown, to_rich

TEACHER = Scores("teacher", {"a": TaskScore(100, 80, 60, 5, 2), "b": TaskScore(50, 20, 0, 0, 0)})
STUDENT = Scores("student", {"a": TaskScore(100, 76, 30, 20, 10), "b": TaskScore(50, 10, 5, 10, 0)})


def test_wilson_by_hand():
    # Wilson (1927) for 8 of 10 at z = 1.96: (0.8 + 0.19208 -+ 1.96 sqrt(0.016 + 0.009604)) / 1.38416
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=2e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=2e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=2e-5)


def test_retention():
    assert retention(0.8, 0.6) == pytest.approx(0.75)
    assert retention(0.0, 0.6) is None


def test_counts_from_records():
    rows = [(True, True, "B", False), (True, False, None, True), (False, False, "A", True)]
    names = ("ranking_correct", "generation_correct", "parsed", "truncated")
    score = TaskScore.from_records([dict(zip(names, row, strict=True)) for row in rows])
    assert score == TaskScore(items=3, ranking_correct=2, generation_correct=1, unparsed=1, truncated=2)
    assert score.ranking == pytest.approx(2 / 3)


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
    json.dumps([a, b, mean])


def test_paired_table_refuses_other_items():
    with pytest.raises(UserError, match="'end' was scored on items"):
        paired_table(TEACHER, {"end": Scores("student", {"a": STUDENT.tasks["a"]})})


def test_scores_survive_json():
    assert Scores.from_dict(json.loads(json.dumps(STUDENT.to_dict()))) == STUDENT


def test_tables():
    cells = paired_cells(paired_table(TEACHER, {"end": STUDENT})["end"])
    assert cells[0] == ["a", "100", "80.0", "76.0", "95.0", "60.0", "30.0", "50.0", "+45.0", "20.0"]
    assert cells[1][7:9] == ["–", "–"]
    lines = to_markdown(PAIRED_HEADER, cells).split("\n")
    assert len(lines) == 5 and lines[2] == "| a | 100 | 80.0 | 76.0 | 95.0 | 60.0 | 30.0 | 50.0 | +45.0 | 20.0 |"
    header, rows = points_cells(TEACHER, {"converted": STUDENT, "end": TEACHER})
    assert header == ["point", "a", "b", "rank", "kept", "gen", "kept", "unparsed"]
    assert [row[0] for row in rows] == ["teacher", "converted", "end"]
    assert rows[1] == ["converted", "76.0/30.0", "20.0/10.0", "48.0", "80.0", "20.0", "66.7", "20.0"]
    output = io.StringIO()
    Console(file=output, width=160).print(to_rich("Scores", header, rows))
    assert "76.0/30.0" in output.getvalue()
