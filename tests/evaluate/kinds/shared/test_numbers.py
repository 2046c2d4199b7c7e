import pytest

from gendistill.evaluate.kinds.shared.numbers import last_number, stated_number


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
    assert stated_number(reply) == number
