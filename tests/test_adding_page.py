"""What docs/adding.md shows is what a contributor can paste: each block in Python runs, and does what the page says."""

import re
from pathlib import Path

import pytest
import torch

from gendistill.evaluate.items import load_items
from gendistill.evaluate.kinds import KINDS, grade
from gendistill.models.families import FAMILIES, Family
from gendistill.names import MIXERS, OBJECTIVES, Predictions
from gendistill.recipe.evaluation import make_task
from gendistill.recipe.stage import Stage
from gendistill.recipe.student import Student

PAGE = Path(__file__).resolve().parents[1] / "docs/adding.md"
STAGE = dict(train=["mlp"], data="text", tokens=64, sequence_length=64, sequences_per_step=1, micro_batch=1)


@pytest.fixture(scope="module")
def shown():
    """Every name that the page's blocks define, rows of tables under ROW as one mapping."""
    names, rows = {}, {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, "adding.md", "exec"), names)
        rows |= names.pop("ROW", {})
    return names | {"rows": rows}


def test_the_kind_makes_items_and_grades_replies(shown, monkeypatch, write_records):
    monkeypatch.setitem(KINDS, "with_letter", shown["WithLetter"])
    records = [{"question": f"Begin with {letter}.", "letter": letter} for letter in "ab"]
    items = load_items("letters", make_task(kind="with_letter", path=write_records("letters.jsonl", records)), seed=0)
    assert [item.candidates for item in items] == [("a is it", "b"), ("b is it", "a")]
    (grades,) = grade(items[:1], ["the answer"])
    assert (grades.strict.correct, grades.flexible.correct) == (False, True)


def test_the_rows_are_rows(shown, monkeypatch):
    rows = shown["rows"]
    monkeypatch.setitem(MIXERS, "delta_fixed", rows["delta_fixed"])
    assert Student(keep_attention=[1], mixer="delta_fixed").mixer == "delta_fixed"
    assert all(isinstance(rows[name], Family) and name not in FAMILIES for name in ("other_llama", "other_qwen"))
    for name in ("chi_square", "hidden_l1"):
        monkeypatch.setitem(OBJECTIVES, name, rows[name])
        assert Stage(objective=name, learning_rate=1e-3, **STAGE).compares == "end_to_end"


def test_the_slopes_of_the_objective_are_its_gradient(shown):
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    p, q = teacher.softmax(-1), student.softmax(-1)
    values, slopes = shown["chi_square"](Predictions(None, p, None, q, None, torch.zeros(5), None))
    torch.testing.assert_close(values, ((p - q) ** 2 / q).sum(-1), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    torch.testing.assert_close(slopes, gradient, rtol=1e-10, atol=1e-10)


def test_the_distance_is_relative(shown):
    ones = torch.ones(2, 3, 4)
    distance = shown["rows"]["hidden_l1"].compute(torch.zeros_like(ones), 3 * ones, torch.tensor(9.0))
    assert torch.equal(distance, torch.ones(2, 3))  # of an output of zeros
