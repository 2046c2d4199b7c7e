import pytest

from gendistill.evaluate.kinds.shared.phrases import flexible_phrase, strict_phrase
from gendistill.evaluate.kinds.shared.words import normalise


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


# What is asked, and replies with their verdicts: strictly and flexibly the same.
CASES = [
    (
        {
            "accepted": ("Paris",),
            "candidates": ("Rome", "Berlin", "Madrid"),
            "question": "What is the capital of France?",
            "truncated": False,
        },
        [
            ("Paris", "right"),
            ("paris.", "right"),
            ("**Paris**", "right"),
            ("The answer is Paris.", "right"),
            ("The answer is: **Paris**", "right"),
            ("Answer: Paris", "right"),
            ("It is Paris.", "right"),
            ("It's Paris!", "right"),
            ("The capital of France is Paris.", "right"),
            ("Paris is the capital of France.", "right"),
            ("Paris\n\nRome is the capital of Italy.", "right"),
            ("Paris, not Rome.", "right"),
            ("It is not Rome but Paris.", "right"),
            ("Paris, France", "right"),
            ("Paris (France)", "right"),
            ("\\boxed{Paris}", "right"),
            ("\\boxed{\\text{Paris}}", "right"),
            ('"Paris"', "right"),
            ("La respuesta es Paris.", "right"),
            ("Die Antwort ist Paris.", "right"),
            ("Die Hauptstadt von Frankreich ist Paris.", "right"),
            ("La capitale de la France est Paris.", "right"),
            ("Paris, because it is where the government sits.", "right"),
            ("Paris. It is not Rome.", "right"),
            ("I think it is Paris.", "right"),
            ("The capital is Paris, which is on the Seine.", "right"),
            ("So the answer is Paris.", "right"),
            ("It is the city of Paris.", "right"),
            ("It is not Paris.", "not right"),
            ("not Paris", "not right"),
            ("It isn't Paris.", "not right"),
            ("It's not Paris", "not right"),
            ("anything but Paris", "not right"),
            ("Paris is not the capital.", "not right"),
            ("Paris isn't the capital of France.", "not right"),
            ("Die Antwort ist nicht Paris.", "not right"),
            ("Es ist nicht Paris.", "not right"),
            ("Ce n'est pas Paris.", "not right"),
            ("No es Paris.", "not right"),
            ("La respuesta no es Paris.", "not right"),
            ("I do not know, maybe Paris or Lyon or Nice.", "not right"),
            ("Paris or Lyon", "not right"),
            ("Paris, Lyon, Nice", "not right"),
            ("Paris, Lyon and Nice", "not right"),
            ("Either Paris or Lyon.", "not right"),
            ("Paris and Rome", "not right"),
            ("Is it Paris?", "not right"),
            ("Paris; Rome", "not right"),
            ("Paris\nRome\nBerlin", "not right"),
            ("No creo que sea Paris.", "not right"),
            ("Ich glaube nicht, dass es Paris ist.", "not right"),
            ("I don't think it is Paris.", "not right"),
            ("Paris Hilton", "not right"),
            ("Rome", "not right"),
            ("It cannot be Paris.", "not right"),
            ("It is never Paris", "not right"),
            ("The answer is Rome. Paris is nice.", "not right"),
            ("The answer is not Paris.", "not right"),
            ("Paris/Lyon", "not right"),
            ("New Paris", "not right"),
            ("It is neither Paris nor Rome.", "not right"),
            ("I don't know whether it is Paris.", "not right"),
            ("It is not, however, Paris.", "not right"),
            ("It is not Paris.", "unparsed"),
            ("Paris or Lyon", "unparsed"),
            ("Rome", "wrong"),
            ("I do not know", "wrong"),
            ("", "unparsed"),
            ("Oslo", "wrong"),
        ],
    ),
    (
        {
            "accepted": ("Paris",),
            "candidates": ("Rome", "Berlin", "Madrid"),
            "question": "What is the capital of France?",
            "truncated": True,
        },
        [
            ("The capital of France is Par", "unparsed"),
            ("The capital of France is Paris", "unparsed"),
            ("The answer is Paris", "unparsed"),
            ("The capital of France is Paris. It is", "right"),
            ("Let me think about this. France is a country in", "unparsed"),
            ("Paris", "unparsed"),
            ("The answer is Paris, which", "right"),
        ],
    ),
    (
        {
            "accepted": ("5",),
            "candidates": ("6", "7", "12"),
            "question": "How many apples are there?",
            "truncated": False,
        },
        [
            ("5", "right"),
            ("5.", "right"),
            ("The answer is 5.", "right"),
            ("There are 5 apples.", "right"),
            ("5 apples", "right"),
            ("It is 5", "right"),
            ("The answer is 5 x", "not right"),
            ("5 x", "not right"),
            ("10 12 5 9 33", "not right"),
            ("5 or 6", "not right"),
            ("5, 6 and 7", "not right"),
            ("not 5", "not right"),
            ("5.5", "not right"),
            ("-5", "not right"),
            ("15", "not right"),
            ("5+3", "not right"),
            ("5 - 3", "not right"),
        ],
    ),
    (
        {
            "accepted": ("1945",),
            "candidates": ("1918",),
            "question": "In which year did the Second World War end?",
            "truncated": False,
        },
        [
            ("The Second World War ended in 1945.", "right"),
            ("It ended on September 2, 1945.", "right"),
        ],
    ),
    (
        {"accepted": ("(A)",), "candidates": ("(B)", "(C)"), "question": "", "truncated": False},
        [
            ("(A) The raven is leftmost.", "right"),
            ("The answer is (A).", "right"),
            ("A", "right"),
            ("(B)", "wrong"),
            ("A raven is leftmost.", "not right"),
            ("So the answer is (B).", "wrong"),
            ("(A) or (B)", "not right"),
        ],
    ),
    (
        {
            "accepted": ("(A)",),
            "candidates": (),
            "question": "Which?\nOptions:\n(A) The raven is the leftmost\n(B) The owl is the leftmost",
            "truncated": False,
        },
        [
            ("The raven is the leftmost.", "right"),
        ],
    ),
    (
        {"accepted": ("Type A",), "candidates": ("Type O",), "question": "Which blood?", "truncated": False},
        [
            ("Type B", "wrong"),
            ("Type A", "right"),
            ("It is type A blood.", "right"),
        ],
    ),
    (
        {"accepted": ("北京",), "candidates": ("上海",), "question": "中国的首都是哪里？", "truncated": False},
        [
            ("答案是北京。", "right"),
            ("北京", "right"),
            ("中国的首都是北京。", "right"),
        ],
    ),
    (
        {"accepted": ("北京",), "candidates": ("上海",), "question": "", "truncated": False},
        [
            ("不是北京。", "not right"),
            ("北京不是首都。", "not right"),
        ],
    ),
    (
        {"accepted": ("北京",), "candidates": ("广州",), "question": "", "truncated": False},
        [
            ("北京、上海", "not right"),
        ],
    ),
    (
        {"accepted": ("yes",), "candidates": ("no",), "question": "Is the sentence plausible?", "truncated": False},
        [
            ("Yes.", "right"),
            ("Yes, it is plausible.", "right"),
            ("No, it is not.", "wrong"),
            ("The answer is yes.", "right"),
            ("No", "wrong"),
            ("So the answer is Yes.", "right"),
        ],
    ),
    (
        {"accepted": ("no",), "candidates": ("yes",), "question": "Is it?", "truncated": False},
        [
            ("No, it is not.", "right"),
            ("No.", "right"),
            ("The answer is no.", "right"),
            ("There is no doubt: yes", "not right"),
        ],
    ),
    (
        {"accepted": ("valid",), "candidates": ("invalid",), "question": "Is it valid or invalid?", "truncated": False},
        [
            ("The argument is not valid.", "not right"),
            ("valid", "right"),
            ("invalid", "wrong"),
            ("The argument is valid.", "right"),
            ("The argument is invalid.", "not right"),
        ],
    ),
    (
        {"accepted": ("Shakespeare",), "candidates": (), "question": "Who wrote Hamlet?", "truncated": False},
        [
            ("William Shakespeare", "right"),
        ],
    ),
    (
        {
            "accepted": ("yen",),
            "candidates": ("won",),
            "question": "What is the currency of Japan?",
            "truncated": False,
        },
        [
            ("The currency of Japan is the Japanese Yen (JPY). It is the official currency.", "right"),
        ],
    ),
    (
        {"accepted": ("York",), "candidates": (), "question": "", "truncated": False},
        [
            ("New York City", "not right"),
        ],
    ),
    (
        {
            "accepted": ("apple banana cherry",),
            "candidates": (),
            "question": "Sort: cherry apple banana",
            "truncated": False,
        },
        [
            ("apple banana cherry", "right"),
        ],
    ),
    (
        {"accepted": ("x",), "candidates": (), "question": "", "truncated": False},
        [
            ("[ ( ) ]", "not right"),
        ],
    ),
    (
        {"accepted": ("no one",), "candidates": (), "question": "Who?", "truncated": False},
        [
            ("no one", "right"),
        ],
    ),
    (
        {"accepted": ("not guilty",), "candidates": ("guilty",), "question": "?", "truncated": False},
        [
            ("The answer is not guilty.", "right"),
        ],
    ),
    (
        {"accepted": ("To Kill a Mockingbird",), "candidates": (), "question": "?", "truncated": False},
        [
            ("To Kill a Mockingbird", "right"),
            ("It is To Kill A Mockingbird.", "right"),
        ],
    ),
    (
        {"accepted": ("Simon and Garfunkel",), "candidates": (), "question": "?", "truncated": False},
        [
            ("Simon and Garfunkel", "right"),
        ],
    ),
    (
        {
            "accepted": ("Simon & Garfunkel", "Simon and Garfunkel"),
            "candidates": (),
            "question": "?",
            "truncated": False,
        },
        [
            ("They are called Simon & Garfunkel", "right"),
        ],
    ),
]


@pytest.mark.parametrize(
    ("asked", "reply", "verdict"), [(asked, reply, verdict) for asked, rows in CASES for reply, verdict in rows]
)
def test_only_what_is_stated_is_right(asked, reply, verdict):
    """Not what is denied, listed, part of something else or cut off, in several languages; letters as options."""
    for read in (strict_phrase, flexible_phrase):
        answer = read(reply, **asked)
        if verdict == "not right":
            assert not answer.correct
        else:
            assert answer.correct == (verdict == "right")
            assert (answer.parsed is None) == (verdict == "unparsed")
