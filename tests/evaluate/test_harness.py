"""The bridge to lm_eval. It is not part of the development install, with its needs it weighs 350 MB: what asks lm_eval
itself is skipped without it. `pip install -e .[harness]` brings it."""

import copy
import importlib.util
import json
import re
import sys

import pytest
import torch
from harness_equality import compare, summary
from ledger import ROOT
from rich.console import Console

from cli_tools import RECIPE
from gendistill.errors import UserError
from gendistill.evaluate.harness import check_harness, harness_cells, run_harness, write_harness_task
from gendistill.evaluate.items import load_items
from gendistill.evaluate.ranking import candidate_ids, rank, render_prompts
from gendistill.models.conversion import convert
from gendistill.models.families import student_config
from gendistill.models.loading import load_model, load_tokenizer
from gendistill.recipe.evaluation import Evaluation, Harness, make_task
from gendistill.recipe.loading import parse_recipe
from gendistill.run.convert import convert_teacher
from gendistill.run.evaluate import evaluate_student, evaluate_teacher
from gendistill.run.run import Run
from gendistill.run.summarise import summarise

with_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where lm_eval's data sets leave their copies of local files."""
    if "datasets" in sys.modules:
        monkeypatch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def teacher():
    return load_model("embedded", torch.float32, "cpu")


@pytest.fixture(scope="module")
def embedded_tokenizer(teacher):
    return load_tokenizer("embedded", teacher.config.vocab_size)


@pytest.fixture(scope="module")
def student(teacher):
    return convert(teacher, student_config(teacher.config, [2]), seed=0)[0].eval()


@pytest.fixture(scope="module")
def choices():
    return load_items("choice", make_task(kind="multiple_choice", path="embedded:choice", items=24), seed=0)


@pytest.fixture
def task_file(choices, embedded_tokenizer, tmp_path):
    prompts = render_prompts(embedded_tokenizer, choices)
    return str(write_harness_task("choice", choices, prompts, embedded_tokenizer, tmp_path))


def ask(model, tokenizer, settings, folder, label="teacher"):
    return run_harness(model, tokenizer, settings, batch_size=8, folder=folder, label=label)


@with_lm_eval
@pytest.mark.parametrize("form", ["letter", "text"])
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_ranking_equals_lm_eval_item_by_item(which, form, choices, embedded_tokenizer, request):
    prompts = render_prompts(embedded_tokenizer, choices)
    records = compare(request.getfixturevalue(which), embedded_tokenizer, choices, prompts, form, batch_size=5)
    found = summary(records)
    assert len(records) == len(choices)
    assert found["items_that_differ"] == 0
    assert found["ours_accuracy"] == found["lm_eval_accuracy"]
    assert found["largest_score_difference"] < 2e-3  # float32, in two ways to cut the same arithmetic
    predicted = [record["ours"]["prediction"] for record in records]
    assert len(set(predicted)) > 1


def test_committed_comparison_differs_in_no_item():
    comparisons = json.loads((ROOT / "results/cpu/harness_equality.json").read_text())["comparisons"]
    letters = [each for each in comparisons if each["form"] == "letter"]
    assert {len({each[what] for each in letters}) for what in ("model", "task")} == {3, 2}
    for comparison in comparisons:
        found = summary(comparison["records"])
        assert found.pop("largest_score_difference") == pytest.approx(comparison["largest_score_difference"], abs=2e-6)
        assert found == {key: comparison[key] for key in found}
        assert found["items_that_differ"] == 0
        assert comparison["largest_score_difference"] < 1e-3


@with_lm_eval
def test_student_loads_by_name(student, choices, embedded_tokenizer, task_file, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    import gendistill.evaluate.harness_model  # noqa: F401  makes the name known

    student.save_pretrained(tmp_path / "student")
    embedded_tokenizer.save_pretrained(tmp_path / "student")
    found = lm_eval.simple_evaluate(
        "gendistill",
        {"pretrained": str(tmp_path / "student")},
        tasks=[task_file],
        task_manager=TaskManager(include_defaults=False),
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
    )
    prompts, candidates = render_prompts(embedded_tokenizer, choices), candidate_ids(embedded_tokenizer, choices)
    rankings = rank(student, choices, prompts, candidates)
    correct = [ranking.prediction in item.gold for ranking, item in zip(rankings, choices, strict=True)]
    assert found["results"]["choice"]["acc,none"] == pytest.approx(sum(correct) / len(correct))


@with_lm_eval
def test_tasks_of_a_recipe_are_asked_once_a_model(
    teacher, student, embedded_tokenizer, task_file, tmp_path, monkeypatch
):
    import lm_eval.evaluator

    settings = Harness(tasks=[task_file], limit=10)
    check_harness(settings)
    theirs = ask(teacher, embedded_tokenizer, settings, tmp_path)
    ask(student, embedded_tokenizer, settings, tmp_path, "1-stage")
    assert theirs["choice"]["items"] == 10
    assert theirs["choice"]["metrics"]["acc,none"] > 0.5
    assert json.loads((tmp_path / "teacher/harness.json").read_text())["results"] == theirs
    (row,) = harness_cells(tmp_path, "1-stage")
    assert row[:4] == ["choice", "10", "0", "acc"]
    assert row[4].startswith(f"{theirs['choice']['metrics']['acc,none']:.3f} ± ")

    def asked(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(lm_eval.evaluator, "simple_evaluate", asked)
    assert ask(teacher, embedded_tokenizer, settings, tmp_path) == theirs
    for again in (Harness(tasks=[task_file], limit=9), settings):
        model = teacher if again is not settings else student
        with pytest.raises(AssertionError, match="asked again"):
            ask(model, embedded_tokenizer, again, tmp_path)


@with_lm_eval
def test_summary_of_a_run_shows_its_scores(task_file, tmp_path):
    settings = copy.deepcopy(RECIPE)
    settings["evaluation"] |= {"harness": {"tasks": [task_file], "limit": 8}, "stages": ["conversion"]}
    run = Run(parse_recipe(settings, origin="test"), tmp_path / "run", Console(quiet=True), evaluates=True)
    convert_teacher(run)
    teacher, student = evaluate_teacher(run), evaluate_student(run, "conversion")
    written = summarise(run.folder, teacher, {"0-conversion": student}).read_text()
    table = written.split("## Tasks of lm-evaluation-harness")[1]
    assert "| lm_eval task | items | shots | metric | teacher | student |" in table
    assert re.search(r"\| choice \| 8 \| 0 \| acc \| \d\.\d{3} ± \d\.\d{3} \| \d\.\d{3} ± \d\.\d{3} \|", table)


@with_lm_eval
def test_tasks_that_cannot_be_asked(tmp_path):
    with pytest.raises(UserError, match=r"knows no task '.*nothing.yaml'"):
        check_harness(Harness(tasks=[str(tmp_path / "nothing.yaml")]))
    unsafe = tmp_path / "unsafe.yaml"
    (tmp_path / "records.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    unsafe.write_text(
        f"task: unsafe\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/records.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: prompt\ndoc_to_target: answer\nunsafe_code: true\n"
    )
    with pytest.raises(UserError, match="unsafe would run code"):
        check_harness(Harness(tasks=[str(unsafe)]))
    unsafe.write_text(unsafe.read_text().replace("records.jsonl", "missing.jsonl"))
    with pytest.raises(UserError, match="cannot be loaded"):
        check_harness(Harness(tasks=[str(unsafe)]))


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'gendistill\[harness\]'"):
        check_harness(Harness(tasks=["arc_easy"]))


def test_written_task_holds_what_ranking_sees(choices, embedded_tokenizer, tmp_path):
    prompts = render_prompts(embedded_tokenizer, choices)
    for texts in (False, True):
        write_harness_task("choice", choices, prompts, embedded_tokenizer, tmp_path, texts)
        lines = [json.loads(line) for line in (tmp_path / "choice.jsonl").read_text().splitlines()]
        for line, item, prompt in zip(lines, choices, prompts, strict=True):
            assert embedded_tokenizer.encode(line["prompt"], add_special_tokens=False) == prompt
            assert line["candidates"] == list(item.choices if texts else item.candidates)
            assert [item.choices[place] for place in line["gold"]] == list(item.answers)


def test_items_that_lm_eval_would_see_otherwise_are_refused(choices, embedded_tokenizer, tmp_path):
    from dataclasses import replace

    unranked = replace(choices[0], candidates=())
    quoting = replace(choices[0], question="What does <|im_end|> end?")
    for item, reason in ((unranked, "nothing to rank"), (quoting, "tokenised otherwise")):
        prompts = render_prompts(embedded_tokenizer, [item])
        with pytest.raises(UserError, match=reason):
            write_harness_task("refused", [item], prompts, embedded_tokenizer, tmp_path)


def test_settings_of_a_recipe():
    tasks = {"choice": {"kind": "multiple_choice", "path": "embedded:choice"}}
    evaluation = Evaluation(tasks=tasks, harness={"tasks": ["arc_easy"], "num_fewshot": 5})
    assert evaluation.harness == Harness(tasks=["arc_easy"], num_fewshot=5)
    with pytest.raises(UserError, match=r"evaluation.harness.few_shot: unknown setting; did you mean 'num_fewshot'"):
        parse_recipe({"evaluation": {"tasks": tasks, "harness": {"tasks": ["a"], "few_shot": 1}}}, origin="test")
