"""Replies graded through an item, strictly and flexibly: made-up ones, and 120 of real models, graded by hand."""

import json
from pathlib import Path

import pytest

from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.item import Item
from gendistill.names import LETTERS


def strict(item, reply):
    (grades,) = grade([item], [reply])
    return grades.strict


def test_replies_are_graded_by_their_items_kind():
    number = Item(0, "last_number", "6*3?", ("The answer is 18.", "The answer is 2."), (0,), ("18",))
    assert strict(number, "So it is $18.00.") == ("18", True)
    assert strict(number, "18 or 19") == ("19", False)
    assert strict(number, "dunno") == (None, False)
    choice = Item(0, "multiple_choice", "?", ("A", "B"), (1,), ("no",), choices=("yes", "no"))
    assert strict(choice, "B. no") == ("B", True)
    assert strict(choice, "yes") == ("A", False)
    assert strict(choice, "hm") == (None, False)
    short = Item(0, "short_answer", "?", ("red", "blue"), (0,), ("red",))
    assert strict(short, "It is red!") == ("red", True)


REAL = json.loads((Path(__file__).parent / "real_replies.json").read_text())["replies"]


@pytest.mark.parametrize("row", REAL)
def test_real_replies_are_graded_as_they_were_by_hand(row):
    """By strict and flexible extraction, through an item as `evaluate_model` does."""
    letters = tuple(LETTERS[: len(row.get("choices", ()))])
    candidates = letters or (*row.get("accepted", ()), *row.get("others", ()))
    item = Item(0, row["kind"], "?", candidates, (0,), tuple(row.get("accepted", ())), tuple(row.get("choices", ())))
    (grades,) = grade([item], [row["reply"]])
    for how, answer in (("strict", grades.strict), ("flexible", grades.flexible)):
        if row["kind"] == "short_answer":
            assert {None: None, True: "right", False: "wrong"}[answer.parsed and answer.correct] == row[how]
        else:
            assert answer.parsed == row[how]


def test_there_are_enough_real_replies():
    assert len(REAL) >= 60
    for how in ("strict", "flexible"):
        assert len({row[how] for row in REAL if row["kind"] == "multiple_choice"}) >= 4
