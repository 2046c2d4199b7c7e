"""Which replies are kept: every check against replies written for it."""

import pytest

from gendistill.evaluate.kinds.item import Item
from gendistill.inference.generation import Reply
from gendistill.recipe.data import Prompts, Synthesis
from gendistill.synthesize.judge import Answered, code_of, judge, letters
from gendistill.synthesize.overlap import OverlapIndex
from gendistill.synthesize.prompts import Prompt

ASKED = Prompts(kind="instruction", path="x.jsonl")
CHOICE = Item(
    0,
    "multiple_choice",
    "Which is a fruit?",
    tuple("ABCD"),
    (1,),
    ("pear",),
    ("stone", "pear", "oak", "tin"),
    solution="B",
)


def prompt(kind="instruction", record=0, rotation=0, user="Name a fruit.", **fields) -> Prompt:
    group = f"0/{record}"
    return Prompt(f"{group}/{rotation}", group, kind, "x", record, rotation, [1], user, user, **fields)


def answered(text, to=None, tokens=5, truncated=False, scores=None) -> Answered:
    return Answered(to or prompt(), 0, Reply(text, tokens, truncated), scores)


def rotated(texts, scores=None, record=0) -> list[Answered]:
    """A reply to each rotation of CHOICE; the pear is at B, A, D, C."""
    return [
        answered(text, prompt("multiple_choice", record, by, f"{record} {by} {item.choices}", item=item), 1, False, s)
        for by, (item, text, s) in enumerate(zip(CHOICE.rotations(), texts, scores or [None] * len(texts), strict=True))
    ]


def verdicts(replies, index=None, **settings) -> list[str | None]:
    judge(replies, Synthesis(prompts=[ASKED], **settings), index or OverlapIndex())
    return [a.failed for a in replies]


def test_rotations_put_each_option_at_each_letter():
    turned = CHOICE.rotations()
    assert [item.choices[item.gold[0]] for item in turned] == ["pear"] * 4
    assert [item.solution for item in turned] == ["B", "A", "D", "C"]
    for letter in range(4):
        assert {item.choices[letter] for item in turned} == set(CHOICE.choices)


def test_all_rotations_must_agree():
    assert verdicts(rotated(["B", "A", "D", "C"])) == [None] * 4
    # Always the same letter: right once.
    assert verdicts(rotated("BBBB")) == ["rotations", "wrong_answer", "wrong_answer", "wrong_answer"]
    assert verdicts(rotated(["B", "A", "D", "no idea"])) == ["rotations"] * 3 + ["unparsed"]
    # Wrong, but of one mind: kept where the known answer is not asked for.
    stone = ["A", "D", "C", "B"]
    assert verdicts(rotated(stone)) == ["wrong_answer"] * 4
    assert verdicts(rotated(stone), known_answer=False) == [None] * 4
    assert verdicts(rotated(["A", "D", "C", "A"]), known_answer=False) == ["rotations"] * 4


def test_one_narrow_rotation_rejects_the_question():
    wide, narrow = [-3.0, -0.1, -4.0, -5.0], [-3.0, -9.0, -4.0, -2.5]
    scores = [wide, [-0.1, -3.0, -4.0, -5.0], [-5.0, -3.0, -4.0, -0.1], [-5.0, -1.0, -0.7, -3.0]]
    replies = rotated(["B", "A", "D", "C"], scores)
    assert verdicts(replies, margin=0.2) == [None] * 4
    assert [a.notes["margin"] for a in replies] == pytest.approx([2.9, 2.9, 2.9, 0.3])
    assert verdicts(rotated(["B", "A", "D", "C"], scores), margin=0.5) == ["margin"] * 4
    # A letter that is not even the likeliest has a negative margin.
    assert verdicts(rotated(["B", "A", "D", "C"], [narrow, *scores[1:]]), margin=0.0) == ["margin"] * 4


def test_kept_letters_are_balanced():
    replies = rotated(["B", "A", "D", "C"]) + rotated("BBBB", record=1)
    verdicts(replies)
    assert letters(replies) == {"A": 1, "B": 1, "C": 1, "D": 1}


def test_length_loops_and_known_answers():
    number = Item(0, "last_number", "6 x 7?", ("The answer is 42.",), (0,), ("42",), solution="The answer is 42.")
    question = prompt("last_number", user="6 x 7?", item=number)
    loop = "and the tree grew and grew until it was as tall as a house " * 12
    assert verdicts([answered("A pear is one that many like", truncated=True)]) == ["truncated"]
    assert verdicts([answered("A pear.", tokens=2)], min_new_tokens=3) == ["too_short"]
    assert verdicts([answered(loop)]) == ["repeats"]
    assert verdicts([answered("6 x 7 = 42", question)]) == [None]
    assert verdicts([answered("6 x 7 = 43", question)]) == ["wrong_answer"]
    assert verdicts([answered("I do not know", question)]) == ["unparsed"]
    cut = prompt("continuation", user="Once upon a time")
    assert verdicts([answered("there was a king", cut, truncated=True)]) == [None]


def test_code_is_run_with_its_tests():
    def asked(record):
        return prompt("code", record, user=f"Write double(x). {record}", tests="assert double(3) == 6")

    right = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles."
    replies = [
        answered(right, asked(0)),
        answered("```python\ndef double(x):\n    return x\n```", asked(1)),
        answered("def double(x):\n    return x + x", asked(2)),
        answered("```python\nimport sys\nsys.exit(0)\n```", asked(3)),
    ]
    assert verdicts(replies) == [None, "tests", None, "tests"]
    assert code_of(right) == "def double(x):\n    return 2 * x\n"


def test_duplicates_and_overlap_with_an_evaluation():
    index = OverlapIndex()
    item = "Which of these materials would be the best conductor for an electric current in a kitchen lamp"
    index.add("physics", item)
    replies = [
        answered("A pear."),
        answered("a  PEAR"),
        answered("An apple."),
        answered(f"Here is a question: {item.upper()}?", prompt(record=1, user="Write a question.")),
    ]
    assert verdicts(replies, index) == [None, "duplicate", None, "overlap"]
    assert replies[3].notes["overlap"]["evaluation"] == "physics"


def test_counts_add_up():
    replies = rotated(["B", "A", "D", "C"]) + rotated("BBBB", record=1) + [answered("x", truncated=True)]
    counts = judge(replies, Synthesis(prompts=[ASKED]), OverlapIndex())
    assert counts["truncated"] == {"seen": 9, "rejected": 1}
    assert counts["wrong_answer"] == {"seen": 8, "rejected": 3}
    assert counts["rotations"] == {"seen": 5, "rejected": 1}
    assert counts["duplicate"] == {"seen": 4, "rejected": 0}
