"""From records to questions: what fields may look like, the few-shot examples, and the shipped task files."""

import pytest
import yaml

from gendistill.errors import UserError
from gendistill.evaluate.items import load_items
from gendistill.evaluate.kinds import grade
from gendistill.evaluate.kinds.last_number import solution_of
from gendistill.evaluate.kinds.shared.numbers import last_number
from gendistill.evaluate.kinds.shared.words import normalise
from gendistill.names import LETTERS
from gendistill.recipe.evaluation import TASK_FILES, make_task, read_task_file, task_names


def strict(item, reply):
    (grades,) = grade([item], [reply])
    return grades.strict


def choice(files, **settings):
    return make_task(kind="multiple_choice", path=files["choice_test"], **settings)


def number(files, **settings):
    return make_task(kind="last_number", path=files["number_test"], **settings)


def test_multiple_choice_prompt_and_candidates(files):
    item = load_items("c", choice(files), seed=0)[1]
    prompt = "Which one is number 1!\nA. red 1\nB. green 1\nC. dark blue 1\nD. yellow 1\nAnswer with the letter."
    assert item.messages == [{"role": "user", "content": prompt}]
    assert (item.id, item.candidates, item.gold, item.answers) == (1, ("A", "B", "C", "D"), (1,), ("green 1",))


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
    with pytest.raises(UserError, match=r"asks for 2 few-shot examples; .* has 1 \(11 more are questions of the test"):
        load_items("n", number(files, shots=2, shots_path=path, items=2), seed=3)


def test_solution_of_gsm8k():
    answer = "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
    assert solution_of(answer) == "She makes 9 * 2 = $18 every day.\nThe answer is 18."
    assert solution_of("18") == "18"


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
        assert last_number(item.candidates[item.gold[0]]) == item.answers[0] == str(item.id + 7)
        assert all(candidate.startswith("The answer is ") for candidate in item.candidates)
    assert len({item.gold for item in items}) > 1
    # Golds of 7 to 17: two digits are set against two digits.
    assert all(len(candidate) == len("The answer is 10.") for candidate in items[5].candidates)


def test_short_answer_distractors_are_other_items_answers(files):
    items = load_items("s", make_task(kind="short_answer", path=files["short_test"]), seed=0)
    for item in items:
        assert item.candidates[item.gold[0]] == item.answers[0]
        wrong = {normalise(candidate) for candidate in item.candidates} - {normalise(item.answers[0])}
        assert len(wrong) == 3
        assert not wrong & {normalise(answer) for answer in item.answers}


def test_short_answer_uses_the_records_choices(write_records):
    path = write_records("s.jsonl", [{"question": "?", "choices": ["Rome", "PARIS."], "answer": "Paris"}])
    (item,) = load_items("s", make_task(kind="short_answer", path=path), seed=0)
    assert (item.candidates, item.gold, item.messages[0]["content"]) == (("Rome", "PARIS."), (1,), "?")


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("multiple_choice", {"question": "?", "answer": 0}, "no field 'choices'; it has: question, answer"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"]}, "no field 'answer'; it has: question, choices"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": None}, "no field 'answer'"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": 2}, "an index from 0 to 1, one of"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": -1}, "it is -1"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": ""}, "it is ''"),
        (
            "multiple_choice",
            {"question": "?", "choices": ["a", "b"], "answer": "C"},
            "labels A, B, or an option's text",
        ),
        ("multiple_choice", {"question": "?", "choices": ["a", "a"], "answer": "a"}, "it is 'a'"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b", "c"], "answer": True}, "it is True"),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "answer": [0, 0]}, "it is [0, 0]"),
        ("multiple_choice", {"question": "?", "choices": ["a", " "], "answer": 0}, "an empty text in 'choices'"),
        ("multiple_choice", {"question": "?", "choices": ["a"], "answer": 0}, f"2 to {len(LETTERS)} texts"),
        ("multiple_choice", {"question": "?", "choices": "ab", "answer": 0}, f"2 to {len(LETTERS)} texts"),
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
        ("last_word", {"question": "word"}, "ends with the word to ask for"),
        ("code", {"question": "?"}, "no field 'tests'"),
        ("code", {"question": "?", "tests": []}, "a program, or a list of statements"),
        ("instructions", {"question": "?"}, "no field 'instruction_id_list'"),
        ("instructions", {"question": "?", "instruction_id_list": ["a"], "kwargs": []}, "lists of the same length"),
    ],
)
def test_bad_records_are_named(write_records, kind, record, message):
    path = write_records("bad.jsonl", [record])
    with pytest.raises(UserError, match="task 'bad'") as raised:
        load_items("bad", make_task(kind=kind, path=path), seed=0)
    assert message in str(raised.value)


def test_empty_and_short_sources(files, write_records):
    empty = write_records("empty.jsonl", [])
    with pytest.raises(UserError, match="no records"):
        load_items("c", make_task(kind="multiple_choice", path=empty), seed=0)
    with pytest.raises(UserError, match="asks for 12 items; its source has 11"):
        load_items("n", number(files, items=12), seed=0)


# What the sources call their fields, in one record each, its question and its right options. Written for these tests.
HUB = {
    "arc_easy": (
        {"question": "Q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        ("Q", ("x", "y", "z"), (2,)),
    ),
    "mmlu": (
        {"question": "Q", "subject": "s", "choices": ["w", "x", "y", "z"], "answer": 1},
        ("Q", ("w", "x", "y", "z"), (1,)),
    ),
    "hellaswag": (
        {"activity_label": "Cooking", "ctx": "He", "endings": ["w", "x", "y", "z"], "label": "3"},
        ("How does this go on?\n\nCooking: He", ("w", "x", "y", "z"), (3,)),
    ),
    "winogrande": (
        {"sentence": "So _ left.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        ("What belongs in the gap ( _ )?\n\nSo _ left.", ("Ann", "Bea"), (1,)),
    ),
    "piqa": ({"goal": "G", "sol1": "x", "sol2": "y", "label": 0}, ("Which way is better?\n\nG", ("x", "y"), (0,))),
    "openbookqa": (
        {"question_stem": "Q", "choices": {"text": ["w", "x", "y", "z"], "label": [*"ABCD"]}, "answerKey": "D"},
        ("Q", ("w", "x", "y", "z"), (3,)),
    ),
    "boolq": ({"question": "q", "passage": "P", "answer": True}, ("P\n\nQuestion: q?", ("no", "yes"), (1,))),
    "ceval": (
        {"subject": "s", "question": "Q", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "B", "explanation": ""},
        ("Q", ("w", "x", "y", "z"), (1,)),
    ),
    "cmmlu": (
        {"subject": "s", "Question": "Q", "A": "w", "B": "x", "C": "y", "D": "z", "Answer": "C"},
        ("Q", ("w", "x", "y", "z"), (2,)),
    ),
}
PLAIN = {  # the same questions as an index into a list of choices
    "hellaswag": {"question": "Cooking: He", "choices": ["w", "x", "y", "z"], "answer": 3},
    "winogrande": {"question": "So _ left.", "choices": ["Ann", "Bea"], "answer": 1},
    "piqa": {"question": "G", "choices": ["x", "y"], "answer": 0},
    "openbookqa": {"question": "Q", "choices": ["w", "x", "y", "z"], "answer": 3},
    "arc_easy": {"question": "Q", "choices": ["x", "y", "z"], "answer": 2},
}


@pytest.mark.parametrize("name", HUB)
def test_shipped_tasks_read_the_hubs_fields_and_plain_ones(write_records, name):
    record, expected = HUB[name]
    for fields in [record, *([PLAIN[name]] if name in PLAIN else [])]:
        task = make_task(task=name, path=write_records(f"{name}.jsonl", [fields]), shots=0)
        (item,) = load_items(name, task, seed=0)
        assert (item.question, item.choices, item.gold) == expected


def test_truthfulqa_moves_the_right_answer_from_the_first_place(write_records):
    targets = {"choices": [*"vwxyz"], "labels": [1, 0, 0, 0, 0]}
    path = write_records("t.jsonl", [{"question": f"Q{i}", "mc1_targets": targets} for i in range(40)])
    task = make_task(task="truthfulqa", path=path)
    items = load_items("truthfulqa", task, seed=0)
    assert all(item.choices[item.gold[0]] == "v" and sorted(item.choices) == [*"vwxyz"] for item in items)
    assert {item.gold[0] for item in items} == set(range(5))
    assert load_items("truthfulqa", task, seed=0) == items != load_items("truthfulqa", task, seed=1)


def test_free_answers_of_shipped_tasks(write_records):
    quiz = {"question": "Who?", "answer": {"value": "Ann", "aliases": ["Ann", "Annie"], "type": "x"}}
    other = {"question": "Where?", "answer": {"value": "Rome", "aliases": ["Roma"], "type": "x"}}
    items = load_items("q", make_task(task="triviaqa", path=write_records("q.jsonl", [quiz, other]), shots=0), seed=0)
    assert [item.answers for item in items] == [("Ann", "Annie"), ("Rome", "Roma")]
    assert {*items[0].candidates} == {"Ann", "Rome"} and items[0].question == "Who?\nReply with the answer alone."
    assert strict(items[0], "Annie").correct and not strict(items[0], "Rome").correct

    questions = [{"question": "who", "answer": ["Ann"]}, {"question": "where", "answer": ["Rome", "in Rome"]}]
    items = load_items("n", make_task(task="nq_open", path=write_records("n.jsonl", questions), shots=0), seed=0)
    assert items[1].question == "where?\nReply with the answer alone." and items[1].answers == ("Rome", "in Rome")

    texts = [{"text": f"It was late, and she said goodbye to her {word}"} for word in ("horse", "brother", "friend")]
    items = load_items("l", make_task(task="lambada", path=write_records("l.jsonl", texts)), seed=0)
    assert items[0].answers == ("horse",) and items[0].question.endswith("\n\nIt was late, and she said goodbye to her")
    assert {*items[0].candidates} == {"horse", "brother", "friend"}
    assert strict(items[0], "Horse.").correct and strict(items[0], "horse, of course").correct
    assert not strict(items[0], "My horse").correct and strict(items[0], " ").parsed is None


def test_distractors_are_of_the_items_subject(write_records):
    records = [{"input": "So?", "target": target, "subject": "logic"} for target in ("(A)", "(B)", "(C)")]
    records += [{"input": "Sort.", "target": target, "subject": "words"} for target in ("a b", "b c", "c d")]
    items = load_items("b", make_task(task="bbh", path=write_records("b.jsonl", records)), seed=0)
    assert {*items[0].candidates} == {"(A)", "(B)", "(C)"} and {*items[5].candidates} == {"a b", "b c", "c d"}
    assert items[0].question.startswith("So?\n\nLet's think step by step.") and strict(items[0], "(A)").correct


def test_humaneval(write_records):
    record = {"task_id": "HumanEval/0", "prompt": "def two():\n    'Two.'\n", "entry_point": "two"}
    record |= {"canonical_solution": "    return 2\n", "test": "def check(candidate):\n    assert candidate() == 2\n"}
    (item,) = load_items("h", make_task(task="humaneval", path=write_records("h.jsonl", [record])), seed=0)
    assert (item.candidates, item.gold, item.choices, item.answers) == ((), (), (), ())
    assert item.question.endswith("```python\ndef two():\n    'Two.'\n```")
    assert item.solution == "```python\ndef two():\n    'Two.'\n    return 2\n```"
    assert (item.checks["entry_point"], item.checks["prefix"]) == ("two", record["prompt"])
    program = record["prompt"] + record["canonical_solution"] + item.checks["tests"]
    exec(program, {})
    with pytest.raises(AssertionError):
        exec(program.replace("return 2", "return 3"), {})


def test_mbpp_in_both_its_forms(write_records):
    code = {"code": "def two():\n    return 2", "test_list": ["assert two() == 2", "assert two() != math.pi"]}
    sanitized = code | {"prompt": "Give two.", "test_imports": ["import math"]}
    full = code | {"text": "Give two.", "test_setup_code": "import math"}
    for number, fields in enumerate((sanitized, full)):
        (item,) = load_items("m", make_task(task="mbpp", path=write_records(f"m{number}.jsonl", [fields])), seed=0)
        assert item.question.startswith(
            "Give two.\n\nThe code must pass these tests:\n\n```python\nassert two() == 2\n"
        )
        assert (item.checks["entry_point"], item.checks["prefix"]) == (None, "")
        exec(fields["code"] + "\n" + item.checks["tests"], {})


def test_instructions_drop_the_hubs_empty_arguments(write_records):
    record = {"key": 1, "prompt": "Write.", "instruction_id_list": ["length_constraints:number_words"]}
    record |= {"kwargs": [{"num_words": 30, "relation": "at least", "num_bullets": None}]}
    (item,) = load_items("i", make_task(task="ifeval", path=write_records("i.jsonl", [record])), seed=0)
    assert item.messages == [{"role": "user", "content": "Write."}] and item.candidates == ()
    assert item.checks == {
        "instruction_ids": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 30, "relation": "at least"}],
    }


def test_corrected_answers(write_records):
    cases = [  # verdict, correct_answer, the right options; None: dropped
        ("ok", "", (0,)),
        ("ok", "either 1 or 3", (0,)),
        ("expert", "", (0,)),
        ("wrong groundtruth", "C", (2,)),
        ("wrong_groundtruth", "3", (3,)),
        ("wrong groundtruth", "", None),
        ("multiple correct answers", "(0, 1)", (0, 1)),
        ("multiple correct answers", "D,B", (1, 3)),
        ("multiple correct answers", "1 or 2", (1, 2)),
        ("multiple correct answers", "depends on interpretation", None),
        ("multiple correct answers", "A vague question", None),
        ("no correct answer", "2", None),
        ("bad_question_clarity", "1", None),
    ]
    plain = {"subject": "s", "choices": [*"wxyz"], "answer": 0}
    records = [
        plain | {"question": f"Q{i}", "error_type": verdict, "correct_answer": answer}
        for i, (verdict, answer, _) in enumerate(cases)
    ]
    items = load_items("r", make_task(task="mmlu_redux", path=write_records("r.jsonl", records), shots=0), seed=0)
    assert {item.id: item.gold for item in items} == {i: gold for i, (_, _, gold) in enumerate(cases) if gold}
    both = next(item for item in items if item.gold == (1, 3))
    assert both.answers == ("x", "z") and both.solution == "B"
    assert [strict(both, letter).correct for letter in "ABCD"] == [False, True, False, True]
    for turned in both.rotations():
        assert {turned.choices[place] for place in turned.gold} == {"x", "z"}


def test_few_shot_examples_are_of_the_items_subject(write_records):
    def records(numbers):
        return [
            {"subject": ("even", "odd")[i % 2], "question": f"Q{i}", "choices": [*"wxyz"], "answer": 0} for i in numbers
        ]

    def drawn(examples, shots):
        dev = write_records("dev.jsonl", records(examples))
        items = load_items("m", make_task(task="mmlu", path=path, shots_path=dev, shots=shots), seed=0)
        assert len({item.shots for item in items}) == 2
        return {item.id % 2: sorted(int(user[1:].split()[0]) for user, _ in item.shots) for item in items}

    path = write_records("test.jsonl", records(range(10)))
    assert drawn(range(10, 14), 2) == {0: [10, 12], 1: [11, 13]}
    # Q9 is asked, so "odd" has two examples left, and the third is of the other subject.
    three = drawn(range(9, 15), 3)
    assert three[0] == [10, 12, 14] and three[1][0] in (10, 12) or three[1][-1] == 14
    assert {11, 13} < set(three[1]) and 9 not in three[1] and len(three[1]) == 3
    with pytest.raises(UserError, match="no few-shot example has 'odd' in field 'subject'"):
        drawn([10, 12], 1)


def test_a_folder_holds_items_and_examples(tmp_path, files):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("test", "train"):
        (folder / f"{split}.jsonl").write_bytes((tmp_path / f"choice_{split}.jsonl").read_bytes())
    task = make_task(kind="multiple_choice", path=str(folder), shots=2)
    apart = choice(files, shots=2, shots_path=files["choice_train"])
    assert load_items("c", task, seed=0) == load_items("c", apart, seed=0)

    (folder / "train.jsonl").unlink()
    with pytest.raises(UserError) as raised:
        load_items("c", task, seed=0)
    assert "task 'c' asks for 2 few-shot examples" in str(raised.value)
    assert "no split 'train'; it holds test" in str(raised.value) and "shots: 0" in str(raised.value)


def test_examples_must_come_from_elsewhere(files):
    with pytest.raises(UserError, match="holds its test items. Give a file with examples as shots_path"):
        load_items("c", choice(files, shots=1), seed=0)


def test_choices_that_differ_in_number(files):
    with pytest.raises(UserError, match="record 1 of .*: 4 choices, and the task says choice_count: 3; mend"):
        load_items("c", choice(files, choice_count=3), seed=0)


def test_a_template_and_what_it_asks_for(write_records):
    path = write_records("t.jsonl", [{"stem": {"text": " What? "}, "hint": ["a", "b"]}])
    settings = {"kind": "code", "path": path, "question": "stem.text", "tests": "hint"}
    task = make_task(**settings, template=["{note}", "{question}\n{hint} {}"])
    assert load_items("t", task, seed=0)[0].question == "What?\na\nb {}"
    with pytest.raises(UserError, match="no field 'note', which the template asks for; it has: stem, hint"):
        load_items("t", make_task(**settings, template="{question} {note}"), seed=0)


def test_anyones_records_are_a_task_through_a_few_lines(tmp_path, write_records):
    rows = [
        {"prompt": "Capital of France?", "correct": "Paris", "wrong": ["Rome", "Oslo"]},
        {"prompt": "Capital of Norway?", "correct": "Oslo", "wrong": ["Rome", "Paris"]},
    ]
    settings = {"kind": "multiple_choice", "path": write_records("capitals.jsonl", rows), "question": "prompt"}
    settings |= {"choices": "correct, wrong", "answer": "correct", "shuffle": True}
    own = tmp_path / "capitals.yaml"
    own.write_text(yaml.safe_dump(settings))
    items = load_items("capitals", make_task(task=str(own), max_new_tokens=4), seed=0)
    assert [item.choices[item.gold[0]] for item in items] == ["Paris", "Oslo"]
    assert all(sorted(item.choices) == ["Oslo", "Paris", "Rome"] for item in items)


@pytest.mark.parametrize("name", task_names())
def test_shipped_task_files_are_whole(name):
    task = make_task(task=name)
    written = read_task_file(name)
    source = {"length", "keys"} if task.is_made else {"hub", "split"}
    assert {"kind", "version", "max_new_tokens", *source} <= written.keys()
    assert task.task is None and all(getattr(task, name) == written[name] for name in source)
    assert make_task(**task.model_dump(mode="json")) == task
    assert (TASK_FILES / f"{name}.yaml").read_text().startswith("# ")


def test_null_options_are_not_shown(write_records):
    records = [
        {"question": "Which is wet?", "choices": ["water", "stone", None, None], "answer": 0},
        {"question": "Which is dry?", "choices": ["rain", None, "sand", None], "answer": "C"},
        {"question": "Which is hot?", "choices": ["ice", None, "fire"], "answer": [0, None, 1]},
    ]
    items = load_items("t", make_task(kind="multiple_choice", path=write_records("null.jsonl", records)), 0)
    assert [item.choices for item in items] == [("water", "stone"), ("rain", "sand"), ("ice", "fire")]
    assert [item.gold for item in items] == [(0,), (1,), (1,)]  # letters follow the options that are shown
    assert all(item.candidates == ("A", "B") and "None" not in item.user_turn for item in items)
    columns = [{"question": "?", "A": "x", "B": "y", "C": None, "answer": "B"}]
    (item,) = load_items(
        "t", make_task(kind="multiple_choice", path=write_records("c.jsonl", columns), choices="A, B, C"), 0
    )
    assert (item.choices, item.gold) == (("x", "y"), (1,))


def test_null_is_no_accepted_answer(write_records):
    records = [{"question": "Who?", "answer": ["Ann", None]}, {"question": "Where?", "answer": "Rome"}]
    items = load_items("t", make_task(kind="short_answer", path=write_records("null.jsonl", records)), 0)
    assert [item.answers for item in items] == [("Ann",), ("Rome",)]
    assert not grade(items[:1], ["None"])[0].flexible.correct


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("short_answer", {"answer": None}),
        ("short_answer", {"answer": [None, None]}),
        ("last_number", {"answer": None}),
        ("multiple_choice", {"choices": ["a", "b"], "answer": None}),
        ("multiple_choice", {"choices": ["a", None], "answer": 0}),
        ("multiple_choice", {"choices": ["a", None, "b"], "answer": 1}),
    ],
)
def test_a_record_whose_answer_or_options_are_null_is_named(write_records, kind, record):
    path = write_records("null.jsonl", [{"question": "?"} | record])
    with pytest.raises(UserError, match=r"record 0 of .*(null|None)"):
        load_items("t", make_task(kind=kind, path=path), 0)


def test_fractions_are_right_answers_as_numbers(write_records):
    records = [{"question": "?", "answer": answer} for answer in ("1/2", "3 1/2", "$9{,}500$", "x\n#### \\frac{2}{3}")]
    items = load_items("t", make_task(kind="last_number", path=write_records("f.jsonl", records)), 0)
    assert [item.answers for item in items] == [("0.5",), ("3.5",), ("9500",), ("2/3",)]
    half = [grades.strict.correct for grades in grade([items[0]] * 3, ["1/2", "The answer is 0.5.", "2"])]
    assert half == [True, True, False]
