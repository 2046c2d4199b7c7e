import time

import pytest

from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.item import Item
from gendistill.evaluate.kinds.shared.letters import flexible_letter, strict_letter
from gendistill.evaluate.kinds.shared.numbers import gold_number, last_number, stated_number
from gendistill.evaluate.kinds.shared.phrases import flexible_phrase, strict_phrase
from gendistill.evaluate.kinds.shared.statements import answer_part


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("B", "B"),
        ("  return x", "  return x"),
        ("<think>\nIt is A.\n</think>\n\nB", "B"),
        ("It is A.\n</think>\n\nB", "B"),  # the template's prompt opens it
        ("<thinking>A</thinking>B", "B"),
        ("<reasoning>A</reasoning>\n    return x", "    return x"),
        ("[THINK]A[/THINK]B", "B"),
        ("<THINK>A</THINK>B", "B"),
        ("◁think▷A◁/think▷B", "B"),
        ("<|begin_of_thought|>A<|end_of_thought|>B", "B"),
        ("<think>A</think>B<think>C</think>", "B"),
        ("<think></think>", ""),
        ("<think>It is A, or", ""),  # ran out of its budget while it thought
        ("B <think>It is A", "B "),
        ("x < y and y > z", "x < y and y > z"),
        ("print('</think>')", "print('</think>')"),
    ],
)
def test_what_a_model_thinks_is_no_part_of_its_answer(reply, answer):
    assert answer_part(reply) == answer


THOUGHT = "<think>\nIs it {}? Yes, the answer is {}.\n</think>\n\n"
ITEMS = {
    "multiple_choice": (Item(0, "multiple_choice", "?", ("A", "B"), (1,), ("no",), ("yes", "no")), "A", "B"),
    "short_answer": (Item(0, "short_answer", "?", ("red", "blue"), (0,), ("red",)), "blue", "red"),
    "last_number": (Item(0, "last_number", "?", answers=("18",)), "2", "18"),
    "last_word": (Item(0, "last_word", "?", answers=("dog",)), "cat", "dog"),
    "needle": (Item(0, "needle", "?", answers=("1234567",)), "7654321", "1234567"),
    "recall": (Item(0, "recall", "?", answers=("123, 456",)), "456, 123", "123, 456"),
    "instructions": (
        Item(0, "instructions", "?", checks={"instruction_ids": ["punctuation:no_comma"], "kwargs": [{}]}),
        "a, b",
        "a b",
    ),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_no_kind_reads_the_thinking(kind):
    item, wrong, right = ITEMS[kind]
    thought = THOUGHT.format(wrong, wrong)
    assert [grades.strict.correct for grades in grade([item] * 2, [thought + right, thought + wrong])] == [True, False]
    assert [grades.flexible.correct for grades in grade([item] * 2, [thought + right, thought + wrong])] == [
        True,
        False,
    ]


def test_code_in_the_thinking_is_not_run():
    item = Item(0, "code", "?", checks={"prefix": "", "entry_point": "f", "tests": "assert f() == 1"})
    block = "```python\ndef f():\n    return {}\n```"
    replies = [f"<think>\n{block.format(2)}\n</think>\n{block.format(1)}", f"<think>\n{block.format(1)}"]
    right, unfinished = grade([item] * 2, replies)
    assert right.strict.correct and not unfinished.strict.correct
    assert "return 2" not in right.strict.parsed and unfinished.notes == {"tests": "unparsed"}


@pytest.mark.parametrize("kind", ["multiple_choice", "short_answer", "last_number", "last_word"])
def test_a_reply_that_was_cut_off_before_its_answer_ended_gives_none(kind):
    item, _, right = ITEMS[kind]
    for reply in (f"The answer is {right}", "Let us think about it. Each of them"):
        (grades,) = grade([item], [reply], [True])
        if kind == "last_word":  # the first word is the answer, whatever follows
            assert not grades.strict.correct
        else:
            assert grades.strict.parsed is grades.flexible.parsed is None


PIECES = (" ", "1", " 1", "1,", "1 234", "{", "\\boxed{", "(", "the answer is ", "not ", "\n", "a", "1/", "=")
PIECES += (
    "answer to ",
    "答案",
    "1. ",
    "- ",
    "A or ",
    "(A)",
    "A. ",
    "option ",
    "选",
    "<think>",
    "[",
    "`",
    "*",
    "$",
    "_",
)
PIECES += (", however", "\\text{", "1,234,", "1.234", "a.", "isn't ", "Paris ", "Paris, ", "Paris or ", "is ", '"')


@pytest.mark.parametrize("piece", PIECES)
def test_reading_takes_no_longer_than_the_reply_is_long(piece):
    """A second for 100 KB leaves room for a slow machine; what is quadratic takes minutes."""
    text = piece * (100_000 // len(piece))
    readings = [last_number, stated_number, gold_number, answer_part]
    readings += [lambda text, read=read: read(text, ("a b", "c d")) for read in (strict_letter, flexible_letter)]
    readings += [lambda text, read=read: read(text, ["Paris"], ["Rome"]) for read in (strict_phrase, flexible_phrase)]
    for read in readings:
        start = time.process_time()
        read(text)
        assert time.process_time() - start < 1.5
