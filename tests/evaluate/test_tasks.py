import pytest

from gendistill.errors import UserError
from gendistill.evaluate.parsing import last_number, normalise
from gendistill.evaluate.tasks import load_items, worked_answer
from gendistill.recipe import Task


def choice(files, **settings):
    return Task(kind="multiple_choice", path=files["choice_test"], **settings)


def number(files, **settings):
    return Task(kind="last_number", path=files["number_test"], **settings)


def test_multiple_choice_prompt_and_candidates(files):
    item = load_items("c", choice(files), seed=0)[1]
    prompt = "Which one is number 1!\nA. red 1\nB. green 1\nC. dark blue 1\nD. yellow 1\nAnswer with the letter."
    assert item.messages == [{"role": "user", "content": prompt}]
    assert (item.id, item.candidates, item.gold, item.answers) == (1, ("A", "B", "C", "D"), 1, ("green 1",))


def test_shots_are_alternating_turns_the_same_for_all_items(files):
    items = load_items("c", choice(files, shots=2, shots_path=files["choice_train"]), seed=0)
    assert [message["role"] for message in items[0].messages] == ["user", "assistant"] * 2 + ["user"]
    assert all(item.messages[:4] == items[0].messages[:4] for item in items)
    assert items[0].messages[1]["content"] in "ABC"
    assert items[0].messages[0]["content"].endswith("\nAnswer with the letter.")


def test_shots_depend_on_the_seed_and_are_no_test_items(files):
    task = number(files, shots=3, shots_path=files["number_train"])
    drawn = [load_items("n", task, seed=seed)[0].shots for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    questions = {item.question for item in load_items("n", task, seed=0)}
    assert not questions & {user for user, _ in drawn[0]}


def test_test_questions_in_the_shots_file_are_never_shown(files, write_records):
    records = [{"question": f"WHAT is {i} + 7 ?", "answer": f"#### {i + 7}"} for i in range(11)]
    records.append({"question": "What is 500 + 7?", "answer": "#### 507"})
    path = write_records("mixed.jsonl", records)
    items = load_items("n", number(files, shots=1, shots_path=path, items=2), seed=3)
    assert items[0].shots == (("What is 500 + 7?", "The answer is 507."),)
    with pytest.raises(UserError, match=r"asks for 2 worked examples; .* has 1 \(11 more are questions of the test"):
        load_items("n", number(files, shots=2, shots_path=path, items=2), seed=3)


def test_worked_answer():
    answer = "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
    assert worked_answer(answer) == "She makes 9 * 2 = $18 every day.\nThe answer is 18."
    assert worked_answer("18") == "18"


def test_items_are_drawn_by_the_seed_in_source_order(files):
    drawn = [[item.id for item in load_items("n", number(files, items=5), seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert drawn[0] != drawn[2]
    # An item is the same, distractors too, whether or not others are asked with it.
    every = load_items("n", number(files), seed=0)
    assert load_items("n", number(files, items=5), seed=0) == [every[index] for index in drawn[0]]


def test_number_candidates_hold_the_gold_once(files):
    items = load_items("n", number(files), seed=0)
    for item in items:
        assert len(set(item.candidates)) == 4
        assert last_number(item.candidates[item.gold]) == item.answers[0] == str(item.id + 7)
        assert all(candidate.startswith("The answer is ") for candidate in item.candidates)
    assert len({item.gold for item in items}) > 1
    # Golds of 7 to 17: two digits are set against two digits.
    assert all(len(candidate) == len("The answer is 10.") for candidate in items[5].candidates)


def test_short_answer_distractors_are_other_items_answers(files):
    items = load_items("s", Task(kind="short_answer", path=files["short_test"]), seed=0)
    for item in items:
        assert item.candidates[item.gold] == item.answers[0]
        wrong = {normalise(candidate) for candidate in item.candidates} - {normalise(item.answers[0])}
        assert len(wrong) == 3
        assert not wrong & {normalise(answer) for answer in item.answers}


def test_short_answer_uses_the_records_choices(write_records):
    path = write_records("s.jsonl", [{"question": "?", "choices": ["Rome", "PARIS."], "answer": "Paris"}])
    (item,) = load_items("s", Task(kind="short_answer", path=path), seed=0)
    assert (item.candidates, item.gold, item.messages[0]["content"]) == (("Rome", "PARIS."), 1, "?")


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("multiple_choice", {"question": "?", "answer": 0}, "no field 'choices'; it has: question, answer"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": 2}, "0 to 1; it is 2"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": "B"}, "0 to 1; it is 'B'"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": True}, "0 to 1; it is True"),
        ("multiple_choice", {"question": "?", "choices": ["a"], "answer": 0}, "2 to 10 texts"),
        ("multiple_choice", {"question": "?", "choices": "ab", "answer": 0}, "2 to 10 texts"),
        ("multiple_choice", {"question": " ", "choices": ["a", "b"], "answer": 0}, "should be a question"),
        ("short_answer", {"question": "?"}, "no field 'answer'"),
        ("short_answer", {"question": "?", "answer": []}, "a text or a list of texts"),
        ("short_answer", {"question": "?", "answer": "..."}, "a text or a list of texts"),
        ("short_answer", {"question": "?", "answer": "x", "choices": ["y", "z"]}, "exactly one of 'choices'"),
        ("short_answer", {"question": "?", "answer": "x", "choices": ["x", "X."]}, "exactly one of 'choices'"),
        ("short_answer", {"question": "?", "answer": "x", "choices": ["x", ""]}, "an empty text"),
        ("short_answer", {"question": "?", "answer": "x"}, "nothing to rank it against"),
        ("last_number", {"question": "?", "answer": "none"}, "no number in field 'answer'"),
        ("last_number", {"answer": "1"}, "no field 'question'; it has: answer"),
    ],
)
def test_bad_records_are_named(write_records, kind, record, message):
    path = write_records("bad.jsonl", [record])
    with pytest.raises(UserError, match="task 'bad'") as raised:
        load_items("bad", Task(kind=kind, path=path), seed=0)
    assert message in str(raised.value)


def test_empty_and_short_sources(files, write_records):
    empty = write_records("empty.jsonl", [])
    with pytest.raises(UserError, match="no records"):
        load_items("c", Task(kind="multiple_choice", path=empty), seed=0)
    with pytest.raises(UserError, match="asks for 12 items; its source has 11"):
        load_items("n", number(files, items=12), seed=0)
