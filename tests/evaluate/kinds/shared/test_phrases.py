import pytest

from gendistill.evaluate.kinds.shared.phrases import normalise, strict_phrase


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
    answer = strict_phrase(reply, ["New York", "NYC", "New York City"], ["Boston", "York", "New York", "Newark"])
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
    assert not strict_phrase("12.5", ["12"], ["12", "7"]).correct
    assert not strict_phrase("-12", ["12"], ["12", "7"]).correct
    assert strict_phrase("it is 12.", ["12"], ["12", "7"]).correct
