"""gendistill evaluate: new tasks on a run that is there, and any model without a recipe."""

import json

import pytest

from gendistill.embedded import teacher_folder

NEW_TASK = "evaluation.tasks.more={kind: last_number, path: 'embedded:arithmetic', items: 3, max_new_tokens: 4}"


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}


def test_a_run_may_be_asked_more_and_keeps_what_is_answered(recipe, gendistill, converted_run):
    code, output = gendistill("evaluate", recipe, "--output", converted_run)
    assert code == 0, output
    folder = converted_run / "evaluation/0-conversion"
    before = stamps(folder)
    assert len(before) == 3
    code, output = gendistill("evaluate", recipe, NEW_TASK, "--output", converted_run)
    assert code == 0, output
    after = stamps(folder)
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"more.jsonl"}


@pytest.fixture
def own_task(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("kind: last_number\npath: own.jsonl\nmax_new_tokens: 4\n")
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(5))
    )
    return path


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_any_model_is_scored_without_a_recipe(gendistill, tmp_path, monkeypatch, own_task, converted, which):
    monkeypatch.chdir(tmp_path)
    model = {"teacher": teacher_folder(), "student": converted / "0-conversion/student"}[which]
    code, output = gendistill("evaluate", "--model", model, "--tasks", "own.yaml", "--items", 3, "--device", "cpu")
    assert code == 0, output
    assert "own" in output and "generation" in output
    records = tmp_path / f"evaluations/{model.name}/model/own.jsonl"
    assert len(records.read_text().splitlines()) == 3
    before = records.stat().st_mtime_ns
    assert gendistill("evaluate", "--model", model, "--tasks", own_task, "--items", 3, "--device", "cpu")[0] == 0
    assert records.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ([], "give a recipe, whose tasks are evaluated, or --model"),
        (["--model", "embedded"], "--model takes --tasks"),
        (["--tasks", "gsm8k"], "give a recipe"),
        (["--model", "embedded", "--tasks", "gsm9k"], "no task file 'gsm9k'; did you mean 'gsm8k'?"),
        (["--model", "embedded", "--tasks", "gsm8k,gsm8k"], "names gsm8k more than once"),
        (["--model", "./nowhere", "--tasks", "{own}"], "./nowhere': no such folder"),
        (["--model", "embedded", "--tasks", "{own}", "--items", "9"], "task 'own' asks for 9 items"),
    ],
)
def test_mistakes_are_one_line(gendistill, tmp_path, own_task, arguments, needle):
    given = [argument.format(own=own_task) for argument in arguments]
    code, output = gendistill("evaluate", *given, "--output", tmp_path / "out")
    assert code == 2 and needle in " ".join(output.split()), output
    assert not (tmp_path / "out").exists()
