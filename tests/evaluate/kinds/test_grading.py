"""Replies graded through an item, strictly and flexibly: made-up ones, and some 600 of real models, graded by hand."""

import json
from pathlib import Path

import pytest

from gendistill.evaluate.kinds import KINDS, grade
from gendistill.evaluate.kinds.item import Item
from gendistill.names import LETTERS


def strict(item, reply):
    (grades,) = grade([item], [reply])
    return grades.strict


def test_replies_are_graded_by_their_items_kind():
    number = Item(0, "last_number", "6*3?", ("The answer is 18.", "The answer is 2."), (0,), ("18",))
    assert strict(number, "So it is $18.00.") == ("18", True)
    assert strict(number, "18 or 19") == (None, False)
    assert strict(number, "dunno") == (None, False)
    choice = Item(0, "multiple_choice", "?", ("A", "B"), (1,), ("no",), choices=("yes", "no"))
    assert strict(choice, "B. no") == ("B", True)
    assert strict(choice, "yes") == ("A", False)
    assert strict(choice, "hm") == (None, False)
    short = Item(0, "short_answer", "?", ("red", "blue"), (0,), ("red",))
    assert strict(short, "It is red!") == ("red", True)


@pytest.mark.parametrize("kind", ["multiple_choice", "short_answer", "last_number", "last_word", "fact"])
@pytest.mark.parametrize("reply", ["", " \n", "<think>Hmm, it may be", "**"])
def test_a_reply_that_was_cut_off_before_it_said_anything_is_unparsed(kind, reply):
    item = Item(0, kind, "6*3?", ("18", "2"), (0,), ("18",), choices=("18", "2"))
    (grades,) = grade([item], [reply], [True])
    assert grades.strict == grades.flexible == (None, False)


REAL = json.loads((Path(__file__).parent / "shared/real_replies.json").read_text())["replies"]
# Rows that the flexible reading does not read as a patient person does, and why.
FLEXIBLY_ELSE = {
    175: "an endless decimal fraction, cut off",
    240: "says no in other words than yes and no, and is cut off",
    241: "says invalid as not valid",
    280: "working that is cut off behind another equation than that of the result",
    360: "the sequence with the bracket that was asked for alone",
    468: "a note's name is the text of an option and the letter of another; cut off",
    516: "the option runs on across the end of the thought",
    544: "the symbol B is the text of option C",
    553: "names two options and settles on one behind them",
    562: "an option's text among nonsense, cut off",
    575: "the stated letter is the last of a reply that was cut off",
    595: "both prices, the second at the end, not added",
}


def item_of(row) -> Item:
    """The item that a row's reply is graded through, as `evaluate_model` does."""
    letters = tuple(LETTERS[: len(row.get("choices", ()))])
    checks = {
        key: row[key] for key in ("prefix", "entry_point", "tests", "instruction_ids", "kwargs", "prices") if key in row
    }
    return Item(
        0,
        row["kind"],
        row.get("question", "?"),
        letters or (*row.get("accepted", ()), *row.get("others", ())),
        (0,),
        # Several values of a list are asked for in its order.
        (", ".join(row["answers"]),) if "answers" in row else tuple(row.get("accepted", ())),
        tuple(row.get("choices", ())),
        checks,
    )


def verdict(row, answer) -> str | None:
    """In the table's terms: what was read where an answer is a letter or a number, else whether it is right."""
    if row["kind"] in ("multiple_choice", "last_number") or answer.parsed is None:
        return answer.parsed
    return "right" if answer.correct else "wrong"


@pytest.fixture(scope="module")
def graded():
    return [grade([item_of(row)], [row["reply"]], [row.get("cut_off", False)])[0] for row in REAL]


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in REAL}))
def test_real_replies_are_read_strictly_as_a_person_does(graded, kind):
    differ = [
        (number, row["reply"], verdict(row, grades.strict), row["strict"])
        for number, (row, grades) in enumerate(zip(REAL, graded, strict=True))
        if row["kind"] == kind and verdict(row, grades.strict) != row["strict"]
    ]
    assert differ == []


def test_the_flexible_reading_differs_in_at_most_2_percent_and_is_never_better(graded):
    rows = enumerate(zip(REAL, graded, strict=True))
    differ = {number for number, (row, grades) in rows if verdict(row, grades.flexible) != row["flexible"]}
    assert differ == set(FLEXIBLY_ELSE)
    assert len(differ) <= 0.02 * len(REAL)


def test_there_are_enough_real_replies():
    assert len(REAL) >= 400
    assert len({row["model"].split(",")[0] for row in REAL}) >= 3
    assert len({row["language"] for row in REAL}) >= 5
    assert {row["kind"] for row in REAL} == set(KINDS)


FRANCE = Item(0, "short_answer", "What is the capital of France?", ("Paris", "Rome"), (0,), ("Paris",))
OPTIONS = Item(0, "multiple_choice", "?", ("A", "B", "C"), (1,), ("sky",), ("cage", "sky", "desert"))
NUMBER = Item(0, "last_number", "How many?", (), (), ("5",))
HOW_MANY = Item(0, "short_answer", "How many?", ("5", "6"), (0,), ("5",))
COLOUR = Item(0, "fact", "?", ("red", "blue"), (0,), ("red",))
PRICES = Item(0, "needle_sum", "?", ("2 + 3 = 5",), (0,), ("5",), checks={"prices": [2, 3]})
NEEDLE = Item(0, "needle", "?", ("1234567",), (0,), ("1234567",))
# Made up for forms that no reply of a model in the table has, and graded by hand like those: item, reply, whether it is
# right strictly and flexibly; None where it is unparsed.
MADE_UP = [
    # The number of a figure is no answer, whatever the kind.
    *[(item, reply, None, None) for item in (NUMBER, HOW_MANY) for reply in ("Fig.5", "Fig. 5", "See Fig.5", "Eq. 5")],
    (NUMBER, "The answer is 5, see Fig.7.", True, True),
    (HOW_MANY, "5 (Fig.7)", True, True),
    # Possible is not what is so: in every kind.
    (FRANCE, "It could be Paris, but I am not sure", None, True),
    (OPTIONS, "It could be B, but I am not sure", None, True),
    (NUMBER, "It could be 5, but I am not sure", None, True),
    (COLOUR, "It could be red, but I am not sure", None, True),
    (COLOUR, "red, but I am not sure", None, True),
    (COLOUR, "I think it is red", True, True),
    (PRICES, "It could be 5, but I am not sure", None, True),
    (NEEDLE, "It could be 1234567, but I am not sure", None, True),
    (NEEDLE, "I believe it is 1234567", True, True),
    # A number in words is a number where it is stated.
    *[
        (item, reply, True, True)
        for item in (NUMBER, PRICES)
        for reply in (
            "The answer is five",
            "The answer is five.",
            "Answer: Five",
            "The answer is five because 2 + 3 = 5.",
        )
    ],
    (NUMBER, "The answer is four", False, False),
    (NUMBER, "The answer is minus five.", False, False),
    *[
        (NUMBER, f"The answer is {said}", None, None)
        for said in ("not five", "five or six", "twenty-five", "five hundred", "one of them", "as follows")
    ],
    # A letter that is chosen is an answer.
    *[
        (OPTIONS, reply, True, True)
        for reply in (
            "I choose B",
            "I choose (B).",
            "I choose **B**",
            "I pick option B.",
            "I would go with B. sky",
            "I choose B because it is blue.",
            "I choose B over C.",
            "It is blue, so I choose B.",
            "Ich wähle B.",
            "Je choisis B.",
            "Elijo B.",
        )
    ],
    (OPTIONS, "I choose A", False, False),
    *[
        (OPTIONS, reply, None, None)
        for reply in (
            "I choose A dog",
            "I choose B or C",
            "I choose not B",
            "I do not choose B",
            "I choose between B and C",
        )
    ],
    # These choose nothing; a patient person sees the one letter that they name.
    *[(OPTIONS, reply, None, True) for reply in ("Should I choose B?", "If I choose B", "I choose B?")],
    (OPTIONS, "I choose B, but I am not sure.", None, True),
    (OPTIONS, "I choose C. The answer is B.", None, True),
]


@pytest.mark.parametrize(("item", "reply", "strictly", "flexibly"), MADE_UP, ids=lambda each: str(each)[:40])
def test_made_up_replies_are_read_as_a_person_does(item, reply, strictly, flexibly):
    (grades,) = grade([item], [reply])
    for answer, right in ((grades.strict, strictly), (grades.flexible, flexibly)):
        assert (answer.parsed is None) == (right is None)
        assert answer.correct == bool(right)


@pytest.mark.parametrize(
    ("item", "reply"), [(NUMBER, "The answer is five"), (OPTIONS, "I choose B"), (PRICES, "The answer is five")]
)
def test_what_is_cut_off_in_words_is_not_stated_yet(item, reply):
    (grades,) = grade([item], [reply], [True])  # "five" may have become "five hundred"
    assert grades.strict.parsed is None
