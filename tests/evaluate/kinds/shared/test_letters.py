import pytest

from gendistill.evaluate.kinds.shared.letters import flexible_letter, strict_letter

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


BIRDS = ("cage", "sky", "countryside", "desert")
SPECIES = ("C. elegans", "A. flavus", "E. coli", "D. melanogaster")
VITAMINS = ("vitamin C", "vitamin A", "vitamin K", "vitamin D")


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is b.",
        "答案：B",
        "Answer：B",
        "Answer: $B$",
        "B is correct.",
        "答案是B",
        "答案是 B。",
        "选B",
        "选择B",
        "我选择B。",
        "正确答案为（B）",
        "正确答案是：B",
        "应选B",
        "故选：B",
        "因此，答案为B。",
        "Ｂ",
        "（Ｂ）",
        "[B]",
        "**[B]**",
        "$B$",
        "$\\boxed{B}$",
        "\\boxed{\\text{B}}",
        "\\text{B}",
        "\\(B\\)",
        "La respuesta es B",
        "La respuesta correcta es la B.",
        "La respuesta correcta es la opción B.",
        "Respuesta: B",
        "Die Antwort ist B.",
        "Die richtige Antwort lautet B",
        "Antwort: (B)",
        "La réponse est B.",
        "La bonne réponse est la B.",
        "Réponse : B",
        "La réponse correcte est (B).",
        "The correct option is B",
        "The correct choice is (b).",
        "Option B",
        "option B.",
        "Option B is correct.",
        "The answer is option B.",
        "The answer is B: sky",
        "B) sky\n\nA is wrong because cages are closed. C is a place.",
        "The answer is B.\n\nA. cage: wrong, birds are not free.\nC. countryside: wrong.",
        "B\n\nExplanation: A is not home.",
        "The answer is B, not A.",
        "The answer is not A but B.",
        "sky",
        "Sky.",
        "The answer is sky.",
        'The answer is "sky".',
        "B. sky is where",
        "B - sky",
        "Final answer: B",
        "**Answer:** B",
        "Answer:\nB",
        "Answer:\n\n**B. sky**",
        "The answer is: **B**",
        "(B) sky",
        "The best answer is B.",
        "B。",
        "B、sky",
        "正解はBです",
        "A resposta correta é B.",
        "La risposta è B.",
        "<answer>B</answer>",
        "The answer is “B”.",
        "the answer is (b)",
        "Answer is b",
        "The correct answer is B) sky.",
        "The correct answer is B because A is not free and C is empty.",
        "The answer to the question is B.",
        "B is the correct answer.",
        "The answer is definitely B.",
        "B选项正确",
        "B 正确",
        "【答案】B",
        '{"answer": "B"}',
    ],
)
def test_a_letter_is_read_in_any_form_and_language(reply):
    assert strict_letter(reply, BIRDS) == flexible_letter(reply, BIRDS) == "B"


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is not A.",
        "A and B",
        "not A",
        "Not B",
        "It is not A.",
        "It isn't B.",
        "A or B",
        "A & B",
        "The answer is A and B.",
        "Both A and B",
        "A和B",
        "答案是A和B",
        "A, B",
        "不是A",
        "答案不是A",
        "不选A",
        "Die Antwort ist nicht A.",
        "La respuesta no es A.",
        "La réponse n'est pas A.",
        "A is wrong.",
        "A is not correct.",
        "Option A is incorrect.",
        "Neither A nor B",
        "The answer is either A or B.",
        "anything but A",
        "The answer is a bird.",
        "I do not know.",
        "",
        "A. cage\nB. sky\nC. countryside\nD. desert",
        "The answer is anything but A.",
    ],
)
def test_denied_and_several_letters_pick_none(reply):
    assert strict_letter(reply, BIRDS) is flexible_letter(reply, BIRDS) is None


@pytest.mark.parametrize(
    ("reply", "choices", "letter"),
    [
        ("A. flavus", SPECIES, "B"),
        ("The answer is A. flavus", SPECIES, "B"),
        ("A. flavus is the one.", SPECIES, "B"),
        ("B. A. flavus", SPECIES, "B"),
        ("C. elegans", SPECIES, "A"),
        ("Vitamin C", VITAMINS, "A"),
        ("The answer is vitamin C.", VITAMINS, "A"),
        ("Answer: Vitamin C", VITAMINS, "A"),
        ("vitamin A.", VITAMINS, "B"),
        ("B. Vitamin A", VITAMINS, "B"),
        ("Hepatitis B", ("Hepatitis A", "Hepatitis C", "Hepatitis B"), "C"),
        ("C", ("A", "C", "B"), "C"),
        ("A", ("B", "A"), "A"),
    ],
)
def test_a_letter_in_an_options_text_is_not_an_options_letter(reply, choices, letter):
    assert strict_letter(reply, choices) == flexible_letter(reply, choices) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("I think B", "B"),
        ("It could be B.", "B"),
        ("A. cage\n\nThe answer is B.", "B"),
        ("B. sky\nC. countryside", None),
        ("B\nC", None),
    ],
)
def test_the_flexible_reading_takes_what_a_patient_person_would(reply, letter):
    assert strict_letter(reply, BIRDS) is None
    assert flexible_letter(reply, BIRDS) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is B", None),
        ("The answer is", None),
        ("Let's see. A is a cage, B is", None),
        ("The answer is B. sky is", "B"),
        ("B. sk", "B"),
    ],
)
def test_a_statement_that_was_cut_off_picks_none(reply, letter):
    assert strict_letter(reply, BIRDS, truncated=True) == flexible_letter(reply, BIRDS, truncated=True) == letter
