import pytest

from gendistill.evaluate.kinds.shared.numbers import gold_number, last_number, stated_number


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
        ("1, 2, 3", None),
        ("1,2,3", None),
        ("-5", "-5"),
        ("−5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("10-5", None),
        ("7 - 10 = -3", "-3"),
        ("(-3)", "-3"),
        ("5 - 3", None),
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
        ("12 apples and 13 pears", None),
        ("none", None),
    ],
)
def test_flexible_numbers(reply, number):
    assert stated_number(reply) == number


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("The answer is $9{,}500$.", "9500"),
        ("\\boxed{9\\,500}", "9500"),
        ("The answer is 2 1/2.", "2.5"),
        ("The answer is Rs.75", "75"),
        ("答案是12。", "12"),
        ("12", "12"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("\\boxed{\\dfrac{2}{7}}", "2/7"),
        ("\\boxed{2\\frac{1}{2}}", "2.5"),
        ("The answer is 2½.", "2.5"),
        ("½", "0.5"),
        ("The answer is −5.", "-5"),
        ("The answer is -$5.", "-5"),
        ("The answer is 1/2", "0.5"),
        ("3/4 of the cake", "0.75"),
        ("The answer is approx.12", "12"),
        ("No. 5", "5"),
        ("USD 5", "5"),
        ("US$5.50", "5.5"),
        ("5 dollars", "5"),
        ("5€", "5"),
        ("€5", "5"),
        ("5 €", "5"),
        ("12,50 €", "12.5"),
        ("1.234,56", "1234.56"),
        ("1 234", "1234"),
        ("1'234", "1234"),
        ("1,234", "1234"),
        ("1\u202f234", "1234"),
        ("The answer is 1.234.567.", "1234567"),
        ("50%", "50"),
        ("50\\%", "50"),
        ("18km", "18"),
        ("The answer is 18 km per hour.", "18"),
        ("答案：12元", "12"),
        ("Die Antwort ist 12.", "12"),
        ("La respuesta es 12.", "12"),
        ("La réponse est 12.", "12"),
        ("The answer is 18 because 9 * 2 = 18.", "18"),
        ("The answer is 9 * 2 = 18.", "18"),
        ("So she has 5 - 2 = 3 apples.", "3"),
        ("Thus, Jean should buy \\(\\boxed{6}\\) packs of 10 cupcakes.", "6"),
        ("#### 1,234", "1234"),
        ("5 apples", "5"),
        ("She sold 18 apples.", "18"),
        ("\\boxed{\\text{18}}", "18"),
        ("\\boxed{18 \\text{ dollars}}", "18"),
        ("\\boxed{x = 5}", "5"),
        ("x=5", "5"),
        ("The answer is 6.02 × 10^23.", "602000000000000000000000"),
        ("The answer is \\$18.", "18"),
        ("**18**", "18"),
        ("The answer is: 18", "18"),
        ("Answer:\n18", "18"),
        ("18\nQuestion: 5 and 6?", "18"),
        ("The answer is ５.", "5"),
        ("The answer is not 5 but 7.", "7"),
        ("The answer is 7, not 5.", "7"),
        ("1. She has 3.\n2. She sells 2.\nThe answer is 1.", "1"),
        ("The answer is $\\frac{9{,}500}{2}$", "4750"),
        ("\\frac12", "0.5"),
        ("Therefore, Liza reads 15 more pages than Suzie in 3 hours.", "15"),
        ("答案是 3.5 米", "3.5"),
        ("The answer is 007.", "7"),
        ("3rd", "3"),
        ("The answer is (-3).", "-3"),
        ("一共有12个苹果。", "12"),
        ("The total is 12.5%", "12.5"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("so the final answer is 1,000,000 people.", "1000000"),
        ("-1 1/2", "-1.5"),
        ("The final answer is: $\\boxed{-\\frac{1}{2}}$", "-0.5"),
        ("The answer is 24 apples (12 red and 12 green).", "24"),
    ],
)
def test_a_number_is_read_as_it_is_written(reply, number):
    """LaTeX, separators, signs, fractions, currencies, units, languages, and numbers beside the one that is stated."""
    assert last_number(reply) == stated_number(reply) == number


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is 5 x",
        "10 12 7 9 33",
        "5 x",
        "5x",
        "18 or 19",
        "The answer is 18 or 19.",
        "12 apples and 13 pears",
        "between 5 and 7",
        "The answer is 5 to 7.",
        "5-7",
        "1, 2, 3",
        "10\n12\n7",
        "The answer is 5 + 3",
        "not 5",
        "The answer is not 5.",
        "It is not 5.",
        "",
        "eighteen",
        "H2O",
        "The answer is 2^5.",
        "3:30",
        "Die Antwort ist nicht 5.",
        "答案不是5。",
        "Is it 5?",
        "The answer is x + 5.",
    ],
)
def test_lists_terms_and_denials_are_no_number(reply):
    assert last_number(reply) is stated_number(reply) is None


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("The answer is 18", None),
        ("The answer is 1", None),
        ("1", None),
        ("\\boxed{18", None),
        ("She has 5 apples and", None),
        ("The answer is 18 because", "18"),
        ("The answer is 18. Now", "18"),
        ("\\boxed{18} dol", "18"),
    ],
)
def test_a_statement_that_was_cut_off_states_nothing(reply, number):
    assert last_number(reply, truncated=True) == stated_number(reply, truncated=True) == number


@pytest.mark.parametrize(
    ("reply", "number"), [("The answer is 18. The answer is 19.", "19"), ("The 3 boys have 12 apples.", "12")]
)
def test_the_flexible_reading_takes_what_a_patient_person_would(reply, number):
    assert last_number(reply) is None
    assert stated_number(reply) == number


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("1/2", "0.5"),
        ("3 1/2", "3.5"),
        ("9{,}500", "9500"),
        ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("\\frac{2}{3}", "2/3"),
        ("so 18", "18"),
        ("12 apples and 13 pears", "13"),
        ("none", None),
        ("½", "0.5"),
        ("-7", "-7"),
        ("$1,000", "1000"),
        ("1000000", "1000000"),
        ("0.125", "0.125"),
        ("9" * 5000, None),
    ],
)
def test_the_number_of_a_records_answer(answer, number):
    assert gold_number(answer) == number


@pytest.mark.parametrize("label", ["Fig.5", "Fig. 5", "fig.5", "Eq.12", "Sec. 3.2", "Vol.7", "Abb. 4", "vs.3"])
def test_the_number_of_a_figure_is_no_answer(label):
    assert last_number(label) is stated_number(f"The answer is {label}.") is None
    assert last_number(f"The answer is 18, as {label} shows.") == last_number(f"{label} shows that it is 18.") == "18"


@pytest.mark.parametrize("amount", ["Rs.75", "Rs. 75", "No.75", "Ans.75", "ca.75", "75.", "EUR 75"])
def test_abbreviations_of_amounts_stand_before_answers(amount):
    assert last_number(amount) == last_number(f"The answer is {amount}") == "75"
