"""A recipe of windows and no stages is converted, evaluated and told of; windows can be switched off."""

import json

import pytest
import yaml

from cli_tools import RECIPE, in_process

TASKS = {name: RECIPE["evaluation"]["tasks"][name] | dict(items=4) for name in ("facts", "choice")}
WINDOWS = RECIPE | dict(
    name="windows",
    student=dict(keep_attention=dict(method="uniform", layers=2), mixer="window", window=16),
    stages={},
    evaluation=dict(tasks=TASKS),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Recipe and folder of a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("windows")
    (folder / "windows.yaml").write_text(yaml.safe_dump(WINDOWS, sort_keys=False))
    code, output = in_process("run", folder / "windows.yaml", "--output", folder / "run")
    assert code == 0, output
    return folder / "windows.yaml", folder / "run", output


def test_a_run_without_stages_ends_in_a_summary(finished):
    _, run, output = finished
    assert "teacher and student, percent" in output and "summary:" in output
    summary = (run / "summary.md").read_text()
    assert "2 layers keep softmax attention, 6 hold sliding-window attention." in summary
    assert "## Losses" not in summary and not (run / "loss.svg").exists()
    assert "## Layers that keep attention" in summary and (run / "placement.svg").is_file()
    assert sorted(path.name for path in run.iterdir() if path.name[0].isdigit()) == ["0-conversion"]
    report = json.loads((run / "0-conversion/student/conversion_report.json").read_text())
    assert list(report["losses_by_initialisation"]) == ["standard"]  # there is nothing to initialise
    assert report["student_loss"] == pytest.approx(report["teacher_loss"], rel=0.2)


@pytest.mark.parametrize(
    ("verb", "options", "code", "says"),
    [
        ("convert", [], 0, "untrained loss"),
        ("evaluate", [], 0, "teacher and student after conversion"),
        ("distill", [], 2, "the recipe has no stages, so there is nothing to distil"),
        ("distill", ["--stage", "kd"], 2, "there is no stage kd; the recipe's stages are none"),
        ("show-batch", ["--stage", "kd"], 2, "--stage kd: the recipe's stages are none"),
        ("evaluate", ["--without-window"], 2, "this student has no window beside a recurrence"),
    ],
)
def test_verbs_say_what_there_is(gendistill, finished, verb, options, code, says):
    recipe, run, _ = finished
    got, output = gendistill(verb, recipe, "--output", run, *options)
    assert got == code and says in output, output


def test_plan_and_what_looks_at_a_run(gendistill, finished, tmp_path):
    recipe, run, _ = finished
    code, output = gendistill("plan", recipe, "--json", tmp_path / "plan.json")
    assert code == 0 and "no stages: nothing is trained" in output and "hours" not in output
    for tokens in ("32,768", "131,072"):
        assert f"cache of one text of {tokens} tokens: teacher" in output
    report = json.loads((tmp_path / "plan.json").read_text())
    assert 0.7 < report["cache_bytes"]["131072"]["saving"] < 0.75 and report["disk_bytes"] > 0
    for verb, says in (("status", "0-conversion: done, evaluated on 2 of 2 tasks"), ("inspect", "both")):
        code, output = gendistill(verb, run)
        assert code == 0 and says in output, output


def test_windows_beside_a_recurrence_can_be_switched_off_for_an_evaluation(gendistill, tmp_path):
    """Untrained, the recurrence knows nothing, and all that the student can do is its window's."""
    student = dict(keep_attention=[2, 5], window=64, sinks=4, window_share="token")
    evaluation = dict(tasks=dict(choice=TASKS["choice"] | dict(items=12)))
    recipe = tmp_path / "beside.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | dict(student=student, evaluation=evaluation), sort_keys=False))
    run = tmp_path / "run"
    code, output = gendistill("convert", recipe, "--output", run)
    assert code == 0, output
    report = json.loads((run / "0-conversion/student/conversion_report.json").read_text())
    assert list(report["losses_by_initialisation"]) == ["standard"]  # the others would be alike
    code, output = gendistill("evaluate", recipe, "--output", run, "--without-window")
    assert code == 0 and "without" in output and "teacher and student after conversion" in output
    right = {}
    for label in ("teacher", "0-conversion", "0-conversion-without_window"):
        lines = (run / "evaluation" / label / "choice.jsonl").read_text().splitlines()
        right[label] = sum(json.loads(line)["generation_correct"] for line in lines)
    assert right["0-conversion"] == right["teacher"] > right["0-conversion-without_window"] + 4
    code, output = gendistill("inspect", run, "--task", "choice", "--where", "0-conversion-without_window wrong")
    assert code == 0, output
    # The student is the one with its windows, whichever was evaluated last.
    code, output = gendistill("inspect", run, "--task", "choice", "--where", "teacher right, student wrong")
    assert code == 0 and "choice: 0 of 12 items match" in output, output


def test_dropping_windows_that_are_not_there_is_refused(gendistill, recipe, tmp_path):
    stage = "stages.block_alignment.window_dropout=0.5"
    code, output = gendistill("convert", recipe, stage, "--output", tmp_path / "run")
    assert code == 2 and "stages.block_alignment: window_dropout is 0.5" in output
    assert not (tmp_path / "run").exists()
