"""Sets in the form in which their authors published them, a record or two of each, written for these tests."""

from gendistill.evaluate.items import load_counted, load_items
from gendistill.evaluate.kinds import grade
from gendistill.recipe.evaluation import make_task

PUZZLES = [("Which is red?\nOptions:\n(A) grass\n(B) blood", "(B)"), ("Which is big?\n(A) ant\n(B) sea", "(A)")]
PUZZLES += [(f"Which is {n}?\n(A) one\n(B) two", "(A)") for n in range(4)]
# By reply, the answer that a person reads there.
STEPS = {
    "Grass is green, so (A) is wrong. So the answer is (B).": True,
    "(A)? The answer is (A) only for grass. Blood is red. So the answer is (B).": True,
    "so the answer is (A). No: grass is green.\nSo the answer is (B)": True,
    "Grass is green, blood is red. So the answer is (A).": False,
    "So the answer is (B) if grass is red; it is not. So the answer is (A).": False,
    "İstanbul has İ. So the answer is (A). SO THE ANSWER IS (B).": True,
}


def bbh(write_records, **settings):
    path = write_records(
        "bbh.jsonl", [{"input": question, "target": answer, "subject": "s"} for question, answer in PUZZLES]
    )
    return make_task(task="bbh", path=path, **settings)


def test_bbh_is_asked_step_by_step_and_its_last_statement_is_read(write_records):
    task = bbh(write_records)
    assert task.max_new_tokens == 512
    item = load_items("bbh", task, seed=0)[0]
    assert "Let's think step by step." in item.question and item.question.endswith('"So the answer is" and the answer.')
    grades = grade([item] * len(STEPS), list(STEPS))
    assert {reply: each.strict.correct for reply, each in zip(STEPS, grades, strict=True)} == STEPS
    assert {reply: each.flexible.correct for reply, each in zip(STEPS, grades, strict=True)} == STEPS


def test_few_shot_examples_show_the_working_where_the_source_has_it(write_records):
    working = [{"input": f"Worked {n}?", "target": "(A)", "cot": f"Step {n}. So the answer is (A)."} for n in range(3)]
    plain = [{"input": f"Plain {n}?", "target": "(A)"} for n in range(3)]
    for examples, shown in ((working, "So the answer is (A)."), (plain, "(A)")):
        task = bbh(write_records, shots=3, shots_by=None, shots_path=write_records("examples.jsonl", examples))
        item = load_items("bbh", task, seed=0)[0]
        assert len(item.shots) == 3 and all(solution.endswith(shown) for _, solution in item.shots)


def test_nq_open_with_an_answer_that_has_no_word(write_records):
    records = [{"question": f"who was {n}", "answer": [f"King {n}", f"{n}"]} for n in range(8)]
    records.insert(5, {"question": "what is morse for o", "answer": ["---"]})
    loaded = load_counted("nq", make_task(task="nq_open", path=write_records("nq.jsonl", records), shots=0), seed=0)
    assert len(loaded.items) == 8 and loaded.malformed == 1
    assert 5 not in [item.id for item in loaded.items]


def test_mbpp_as_its_authors_file_has_it(write_records):
    record = {
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\r\n  return a + b",
        "task_id": 601,
        "test_setup_code": "",
        "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"],
        "challenge_test_list": [],
    }
    (item,) = load_items("mbpp", make_task(task="mbpp", path=write_records("mbpp.jsonl", [record])), seed=0)
    replies = {
        item.solution: True,
        "```python\ndef add(a, b):\n    return a + b\n\nprint(add(int(input()), 1))\n```": True,
        "```python\ndef add(a, b):\n    return a - b\n```": False,
    }
    grades = grade([item] * len(replies), list(replies))
    assert [each.strict.correct for each in grades] == list(replies.values())


def test_social_iqa_through_a_few_lines(write_records):
    record = {"context": "Ann helped Bo.", "question": "How does Bo feel?"}
    record |= {"answerA": "angry", "answerB": "thankful", "answerC": "tired", "correct": "B", "label": "2"}
    path = write_records("siqa.jsonl", [record])
    task = make_task(
        kind="multiple_choice",
        path=path,
        template="{context} {question}",
        choices="answerA, answerB, answerC",
        labels=["1", "2", "3"],
        answer="label",
    )
    (item,) = load_items("siqa", task, seed=0)
    assert (item.choices, item.gold) == (("angry", "thankful", "tired"), (1,))
    assert item.question == "Ann helped Bo. How does Bo feel?"
