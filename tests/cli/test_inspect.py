"""gendistill inspect: counts, the language of conditions, items side by side."""

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from gendistill.cli import inspect
from gendistill.errors import UserError
from gendistill.files import file_sha256
from record_maker import choice_record, free_record

TEACHER = [
    choice_record(number, gold=number % 4, reply=f"{'ABCD'[number % 4]}.", parsed="ABCD"[number % 4])
    for number in range(12)
]
STUDENT = [choice_record(number, gold=number % 4, reply="A", ranked=1) for number in range(12)]
STUDENT[3] |= dict(reply="It is \x1b[31mgrey, as things go.", parsed=None, flexible_parsed="D", flexible_correct=True)
STUDENT[5] |= dict(reply="I do not know. " * 40, reply_tokens=160, parsed=None, flexible_parsed=None, truncated=True)
PROGRAMS = [free_record(number, right=number > 0) for number in range(4)]


def write_evaluated(path, records):
    """Records with the file beside them that says they are whole."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    path.with_name(f"{path.stem}.meta.json").write_text(json.dumps({"records": file_sha256(path)}))


@pytest.fixture
def folder(tmp_path):
    def write(label, task, records):
        path = tmp_path / "run" / "evaluation" / label
        path.mkdir(parents=True, exist_ok=True)
        write_evaluated(path / f"{task}.jsonl", records)

    write("teacher", "colours", TEACHER)
    write(
        "0-conversion",
        "colours",
        [record | dict(reply="\u2028", parsed=None, generation_correct=False) for record in STUDENT],
    )
    write("10-the_last_stage", "colours", STUDENT)
    for label in ("teacher", "10-the_last_stage"):
        write(label, "programs", PROGRAMS)
    write("9-before", "colours", STUDENT)
    (tmp_path / "run" / "evaluation" / "9-before" / "programs.partial.jsonl").write_text('{"sha256": "0"}\n')
    (tmp_path / "run" / "recipe.yaml").write_text("name: run\n")
    return tmp_path / "run"


@pytest.fixture
def call(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer()
    app.command()(inspect.command)

    def run(*arguments, at=folder):
        return CliRunner().invoke(app, [str(at), *map(str, arguments)], catch_exceptions=False).output

    return run


def matching(call, where, *options):
    """Ids of the items that match."""
    lines = call("--task", "colours", "--where", where, "--json", *options).splitlines()
    return [json.loads(line)["id"] for line in lines]


def test_counts_of_all_tasks(call):
    output = call()
    assert "items that teacher and 10-the_last_stage get right" in output
    rows = [line.split() for line in output.splitlines()]
    # Ranked by B always: right in 1, 5, 9. Answered A always, but for two: right in 0, 4, 8.
    assert ["colours", "ranking", "3", "9", "0", "0", "12"] in rows
    assert ["generation", "3", "9", "0", "0", "12"] in rows
    assert ["flexible", "4", "8", "0", "0", "12"] in rows
    assert ["programs", "generation", "3", "0", "0", "1", "4"] in rows
    assert "programs" not in call("--task", "colours") and max(map(len, output.splitlines()[:-1])) <= 80


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("teacher right, student wrong", [1, 2, 3, 5, 6, 7, 9, 10, 11]),
        ("student right", [0, 4, 8]),
        ("student flexibly right, student wrong", [3]),
        ("student unparsed", [3, 5]),
        ("student parsed,teacher answers d", [7, 11]),
        ("student truncated", [5]),
        ("student repeats", [5]),
        ("student ranks right , student wrong", [1, 5, 9]),
        ("student ranks wrong, the_last_stage answers A, teacher answers A", [0, 4, 8]),
        ("0-conversion unparsed, 10-the_last_stage right", [0, 4, 8]),
        ("teacher wrong", []),
    ],
)
def test_where(call, where, found):
    assert matching(call, where) == found


def test_another_point_is_the_student(call):
    assert matching(call, "student right", "--stage", "conversion") == []
    assert matching(call, "student unparsed", "--stage", "0-conversion") == list(range(12))


def test_items_side_by_side(call):
    output = call("--task", "colours", "--where", "teacher right, student unparsed", "--limit", 1)
    assert "colours: 2 of 12 items match; 1 of them shown (--limit)" in output
    assert "colours, item 3" in output and "item 5" not in output
    assert "Which colour has thing 3?" in output and "<|im_start|>user" in output
    assert re.search(r"✓ D\. grey +► -0\.50 +-2\.50\n", output)
    assert re.search(r"  B\. green +-2\.50 +► -0\.50\n", output)
    assert re.search(r"ranks +D: right +B: wrong", output)
    assert re.search(r"reply +D\. +It is ⟨U\+001B⟩\[31mgrey", output) and "\x1b[31mgrey" not in output
    assert re.search(r"parsed +D: right +– \(unparsed\): wrong", output)
    assert re.search(r"flexibly +D: right", output)
    assert max(map(len, output.splitlines())) <= 80
    output = call("--task", "colours", "--where", "student truncated, conversion wrong")
    assert "160, then the budget ran out" in output and "characters more" in output and "0-conversion" in output
    output = call("--task", "programs", "--where", "teacher wrong")
    assert "Write program 0." in output and "option" not in output and "ranks" not in output


def test_few_shot_examples_are_cut(call, folder):
    path = folder / "evaluation/teacher/colours.jsonl"
    example = "<|im_start|>user\nWhich colour has the sky?<|im_end|>\n"
    records = [record | {"prompt": example * 5 + record["prompt"]} for record in TEACHER]
    write_evaluated(path, records)
    output = call("--task", "colours", "--where", "student truncated")
    assert f"… {5 * len(example)} characters before\n<|im_start|>user\nWhich colour has thing 5?" in output
    assert "the sky" not in output


def test_json_holds_everything(call):
    (line,) = call("--task", "colours", "--where", "student truncated", "--json").splitlines()
    item = json.loads(line)
    assert item["prompt"] == TEACHER[5]["prompt"] and item["gold"] == [1]
    assert item["models"]["10-the_last_stage"]["reply"] == STUDENT[5]["reply"]
    assert len(call("--task", "programs", "--json").splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "colors"], "--task colors: no such task here; evaluated are colours, programs"),
        (["--where", "teacher right"], "choose one with --task: colours, programs"),
        (
            ["--stage", "sft"],
            "'sft' is not among the models evaluated here: teacher, 0-conversion, 9-before, 10-the_last",
        ),
        (["--stage", "before", "--task", "programs"], "9-before has not been evaluated on 'programs' yet"),
        (["--task", "programs", "--where", "student ranks right"], "this task is not ranked"),
        (["--task", "colours", "--where", ""], "--where: '' is not understood"),
        (["--task", "colours", "--where", "teacher rihgt"], "'teacher rihgt' is not understood. Write WHO WHAT"),
        (
            ["--task", "colours", "--where", "student right, pupil wrong"],
            "WHO:  teacher, student, 0-conversion, 9-before",
        ),
        (["--task", "colours", "--where", "right"], "WHAT: right, wrong, flexibly right"),
    ],
)
def test_mistakes_are_named(call, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call(*arguments)


def test_folders_without_an_evaluation(call, tmp_path):
    with pytest.raises(UserError, match=r"is no run folder \(no recipe.yaml\)"):
        call(at=tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(UserError, match="nothing has been evaluated yet"):
        call(at=tmp_path)


def test_records_that_do_not_fit(call, folder):
    path = folder / "evaluation/teacher/colours.jsonl"
    write_evaluated(path, TEACHER[::-1])
    with pytest.raises(UserError, match="were evaluated on other items of 'colours'"):
        call()
    write_evaluated(path, [{"id": 0, "question": "?"}])
    with pytest.raises(UserError, match="earlier version"):
        call()


@pytest.mark.parametrize("damaged", ["colours.jsonl", "colours.meta.json"])
def test_records_with_a_changed_byte_are_not_shown(call, folder, damaged):
    path = folder / "evaluation/teacher" / damaged
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"colours\.jsonl: changed since written"):
        call()
