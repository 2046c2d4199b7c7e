import pytest

from gendistill.evaluate.kinds.shared.letters import strict_letter

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
    assert strict_letter(reply, CHOICES) == letter


def test_letter_of_repeated_option_text_is_none():
    assert strict_letter("cat", ("cat", "Cat", "dog")) is None


def test_options_that_are_letters():
    assert strict_letter("B. A", ("C", "A", "K")) == "B"
    assert strict_letter("A. B. C.", ("C", "A", "K")) is None


def test_letters_reach_as_far_as_the_options():
    assert strict_letter("J. ten", [str(i) for i in range(10)]) == "J"
    assert strict_letter("C", ("yes", "no")) is None
