import json
from pathlib import Path

import pytest

from gendistill.evaluate.items import Item
from gendistill.evaluate.parsing import last_number, normalise, number_flexibly, parse_letter, parse_short
from gendistill.names import LETTERS

CHOICES = ("a cat", "Paris", "42", "the Moon")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("b", "B"),
        ("b)", "B"),
        ("(B)", "B"),
        ("( B", None),
        ("(B", None),
        ("**B**", "B"),
        ("B. Paris", "B"),
        ("B) Paris", "B"),
        ("B: Paris", "B"),
        ("(B) Paris", "B"),
        ("B\nBecause it is the capital.", "B"),
        ("  C.  ", "C"),
        ("A. a cat", "A"),
        ("A. A cat", "A"),
        ("The answer is B", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is (D).", "D"),
        ("The answer is: C", "C"),
        ("Answer: B", "B"),
        ("Answer: **B**", "B"),
        ("answer is option C, of course", "C"),
        ("I think the answer is A because it purrs.", "A"),
        ("B. The answer is B.", "B"),
        ("Paris", "B"),
        ("paris.", "B"),
        ("A cat", "A"),
        ("a cat", "A"),
        ("42", "C"),
        ("the  moon", "D"),
        # Nothing that could be read
        ("", None),
        ("A dog is what it is", None),
        ("I do not know", None),
        ("E", None),
        ("E. none of them", None),
        ("The answer is a dog", None),
        ("The answer is not B", None),
        ("The answer is Bern", None),
        ("Paris is in France", None),
        ("Because", None),
        ("BB", None),
        ("B Paris", None),
        ("It could be B.", None),
        # Several letters are no answer
        ("A or B", None),
        ("A, B, C", None),
        ("A. B. C. D.", None),
        ("(A) or (B)", None),
        ("A/B", None),
        ("B. or C.", None),
        ("ABCD", None),
        ("A. a cat\nB. Paris\nC. 42\nD. the Moon", None),
        ("The answer is A or B.", None),
        ("The answer is A, B.", None),
        ("The answer is A. No, the answer is B.", None),
        ("B. The answer is C.", None),
    ],
)
def test_letter(reply, letter):
    assert parse_letter(reply, CHOICES) == letter


def test_letter_of_repeated_option_text_is_none():
    assert parse_letter("cat", ("cat", "Cat", "dog")) is None


def test_options_that_are_letters():
    assert parse_letter("B. A", ("C", "A", "K")) == "B"
    assert parse_letter("A. B. C.", ("C", "A", "K")) is None


def test_letters_reach_as_far_as_the_options():
    assert parse_letter("J. ten", [str(i) for i in range(10)]) == "J"
    assert parse_letter("C", ("yes", "no")) is None


@pytest.mark.parametrize(
    ("reply", "correct", "parsed"),
    [
        ("New York", True, "new york"),
        ("new york.", True, "new york"),
        ("It is New York City, of course.", True, "new york city"),
        ("The answer is: **New York**", True, "new york"),
        ("NYC", True, "nyc"),
        ("new-york", True, "new york"),
        ("York", False, "york"),
        ("Newark", False, "newark"),
        ("I do not know", False, "i do not know"),
        ("New Yorkers", False, "new yorkers"),
        ("New York or Boston", False, None),
        ("Boston, Newark, New York", False, None),
        ("Boston and Newark", False, None),
        ("", False, None),
        ("?!", False, None),
    ],
)
def test_short_answer(reply, correct, parsed):
    answer = parse_short(reply, ["New York", "NYC", "New York City"], ["Boston", "York", "New York", "Newark"])
    assert answer == (parsed, correct)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S. Army", "u s army"),
        ("An  apple, a day", "apple day"),
        ("The", "the"),
        ("1,234.50 km", "1234.50 km"),
        ("-5", "-5"),
        ("3-5", "3 5"),
        ("3rd", "3rd"),
        ("Brasília!", "brasília"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_short_numbers_are_whole_words():
    assert not parse_short("12.5", ["12"], ["12", "7"]).correct
    assert not parse_short("-12", ["12"], ["12", "7"]).correct
    assert parse_short("it is 12.", ["12"], ["12", "7"]).correct


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("18", "18"),
        ("The answer is 18.", "18"),
        ("18.0", "18"),
        ("18.50", "18.5"),
        ("$18", "18"),
        ("$1,234.50.", "1234.5"),
        ("1,234,567 people", "1234567"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("10-5", "5"),
        ("7 - 10 = -3", "-3"),
        ("(-3)", "-3"),
        ("5 - 3", "3"),
        ("0.25", "0.25"),
        (".5", "0.5"),
        ("-0", "0"),
        ("100", "100"),
        ("007", "7"),
        ("3 + 4 = 7, so 7 apples", "7"),
        ("50%", "50"),
        ("18km", "18"),
        ("#### 72", "72"),
        ("**72**", "72"),
        ("x=5", "5"),
        ("H2O", None),
        ("7 parts of CO2", "7"),
        ("eighteen", None),
        ("", None),
        ("-", None),
    ],
)
def test_last_number(reply, number):
    assert last_number(reply) == number


def test_item_marks_replies():
    number = Item(0, "last_number", "6*3?", ("The answer is 18.", "The answer is 2."), (0,), ("18",))
    assert number.parse("So it is $18.00.") == ("18", True)
    assert number.parse("18 or 19") == ("19", False)
    assert number.parse("dunno") == (None, False)
    choice = Item(0, "multiple_choice", "?", ("A", "B"), (1,), ("no",), choices=("yes", "no"))
    assert choice.parse("B. no") == ("B", True)
    assert choice.parse("yes") == ("A", False)
    assert choice.parse("hm") == (None, False)
    short = Item(0, "short_answer", "?", ("red", "blue"), (0,), ("red",))
    assert short.parse("It is red!") == ("red", True)


REAL = json.loads((Path(__file__).parent / "real_replies.json").read_text())["replies"]


@pytest.mark.parametrize("row", REAL)
def test_real_replies_are_read_as_they_were_by_hand(row):
    """Strictly and flexibly, through an item as `evaluate_model` does."""
    letters = tuple(LETTERS[: len(row.get("choices", ()))])
    candidates = letters or (*row.get("accepted", ()), *row.get("others", ()))
    item = Item(0, row["kind"], "?", candidates, (0,), tuple(row.get("accepted", ())), tuple(row.get("choices", ())))
    for how, read in (("strict", item.parse), ("flexible", item.parse_flexibly)):
        answer = read(row["reply"])
        if row["kind"] == "short_answer":
            assert {None: None, True: "right", False: "wrong"}[answer.parsed and answer.correct] == row[how]
        else:
            assert answer.parsed == row[how]


def test_there_are_enough_real_replies():
    assert len(REAL) >= 60
    for how in ("strict", "flexible"):
        assert len({row[how] for row in REAL if row["kind"] == "multiple_choice"}) >= 4


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("The answer is 18. She has 2 sons.", "18"),
        ("#### 1,234\nThat took 3 steps.", "1234"),
        ("So it is \\boxed{-4.50} in 3 days.", "-4.5"),
        ("\\boxed{\\frac{3}{4}}", "0.75"),
        ("\\boxed{\\dfrac{2}{7}} of 9", "2/7"),
        ("The answer is not 5 but 7", "7"),
        ("12 apples and 13 pears", "13"),
        ("none", None),
    ],
)
def test_flexible_numbers(reply, number):
    assert number_flexibly(reply) == number
