"""The whole path from the command line: it ends with the pair, resumes where it stopped, and survives kill -9."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
import yaml

from cli_tools import RECIPE, command, environment, forked
from gendistill.models.conversion import weights_sha256

STAGES = ["qk_alignment", "block_alignment", "logit_distillation", "instruction_distillation"]
STEPS, TOKENS = 8, 8 * 2 * 64
SHORT = dict(tokens=TOKENS, checkpoint_every=3)


def metrics(run, number, stage):
    rows = [json.loads(line) for line in (run / f"{number}-{stage}" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def write_recipe(folder):
    path = folder / "tiny.yaml"
    stages = {name: stage | SHORT for name, stage in RECIPE["stages"].items()}
    path.write_text(yaml.safe_dump(RECIPE | dict(stages=stages), sort_keys=False))  # stages have an order
    return path


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    done = subprocess.run(
        command("run", write_recipe(folder), "--output", folder / "run"),
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"},  # as a job on a cluster may have them
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", done.stdout


def test_what_is_printed_into_a_file_is_plain_lines(unbroken):
    """Progress of every step of a run, with what is left; no bars, no colours, no path that is broken at column 80."""
    run, output = unbroken
    assert output.isascii() and not set("\r\x1b") & set(output)
    lines = output.splitlines()
    assert "" not in lines and f"summary: {run / 'summary.md'}" in lines
    for label in ("teacher", "0-conversion", "4-instruction_distillation"):
        for task in ("facts", "choice", "arithmetic"):
            assert re.search(rf"^{label}, {task}: (\d+) of \1 answers, 0:00:00 left$", output, re.M), (label, task)
    for stage in STAGES:
        assert re.search(rf"^{stage}: {STEPS} of {STEPS} steps, loss .* left$", output, re.M)
        assert any(line.startswith(f"{stage}: student ") and line.endswith(" by ranking)") for line in lines)
    assert "conversion: initialisation 'teacher'" in lines
    # Of a table that is too narrow, names are whole for all that: broken where their parts meet.
    assert {"distillation", "instruction"} <= set(re.findall(r"\w+", output))


def test_run_writes_everything(unbroken):
    run, output = unbroken
    assert "teacher and student, percent" in output
    summary = (run / "summary.md").read_text()
    assert (
        "| mean |" in summary
        and "4-instruction_distillation" in summary
        and "![Loss of each stage](loss.svg)" in summary
    )
    assert (run / "loss.svg").stat().st_size > 1000
    taken = {(line["part"], line["of"]) for line in map(json.loads, (run / "times.jsonl").read_text().splitlines())}
    expected = {("conversion", "conversion"), ("evaluation", "teacher"), *(("training", stage) for stage in STAGES)}
    assert expected <= taken
    assert re.search(rf"^{run / 'times.jsonl'}: \d+ seconds in all: \S+ \d+, ", output, re.M)
    conversion_report = json.loads((run / "0-conversion/student/conversion_report.json").read_text())
    assert conversion_report["student_loss"] < conversion_report["uniform_loss"]
    assert all(layer["cosine"] > 0 for layer in conversion_report["layers"])
    parent, settings = None, set()
    for number, stage in enumerate(["conversion", *STAGES]):
        label = f"{number}-{stage}"
        assert len((run / "evaluation" / label / "facts.jsonl").read_text().splitlines()) == 8
        (report,) = (run / label / "student").glob("*_report.json")
        stored = json.loads(report.read_text())
        assert stored["weights_sha256"] == weights_sha256(run / label / "student")
        if parent is not None:  # a trained student's report says what it was trained from, and nothing of the untrained
            assert report.name == "stage_report.json" and "student_loss" not in stored
            assert stored["stage"] == stage
            assert (stored["parent"], stored["parent_weights_sha256"]) == parent
            losses = [row["loss"] for row in metrics(run, number, stage)]
            first, last = metrics(run, number, stage)[0], metrics(run, number, stage)[-1]
            held_out = (first["held_out_loss_before"], last["held_out_loss"])
            assert None not in held_out and held_out == (stored["held_out_loss_first"], stored["held_out_loss_last"])
            assert f"{stage}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, held out {held_out[0]:.4f} -> " in output
            assert f"| {held_out[0]:.4f} | {held_out[1]:.4f} |" in summary
            assert (stored["loss_first"], stored["loss_last"], stored["tokens"]) == (losses[0], losses[-1], TOKENS)
            settings.add(stored["recipe_key"])
            assert (stored["machine"]["device"], stored["machine"]["processes"]) == ("CPU", 1)
            assert {"gendistill", "torch", "transformers"} == set(stored["machine"]["versions"])
        parent = (label, stored["weights_sha256"])
        assert not (run / label / "checkpoints").exists()
    assert len(settings) == len(STAGES)  # each depends on the stages up to it
    assert len(metrics(run, 4, STAGES[3])) == STEPS
    # Completion-only: fewer loss tokens than the row has; on plain text nearly all of them.
    assert metrics(run, 4, STAGES[3])[0]["loss_tokens"] < 64 < metrics(run, 3, STAGES[2])[0]["loss_tokens"]


def test_a_finished_run_does_nothing_again(unbroken, gendistill):
    run, _ = unbroken
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    code, output = gendistill("run", run.parent / "tiny.yaml", "--output", run)
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before


def test_a_summary_draws_no_metrics_that_have_changed(unbroken, gendistill):
    run, _ = unbroken
    log = run / "2-block_alignment/metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b'"loss": 0.', b'"loss": 1.', 1))
    code, output = gendistill("run", run.parent / "tiny.yaml", "--output", run)
    assert code == 2 and "metrics.jsonl changed since written. Delete metrics.jsonl there" in output, output
    log.unlink()  # as the message says
    assert gendistill("run", run.parent / "tiny.yaml", "--output", run)[0] == 0
    log.write_bytes(whole)
    assert gendistill("run", run.parent / "tiny.yaml", "--output", run)[0] == 0


def test_an_empty_list_of_stages_evaluates_nothing(recipe, converted_run, gendistill):
    code, output = gendistill("run", recipe, "stages={}", "evaluation.stages=[]", "--output", converted_run)
    assert code == 0, output
    assert not list((converted_run / "evaluation").glob("*/*"))


def test_evaluate_prints_the_pair(unbroken, gendistill):
    run, _ = unbroken
    code, output = gendistill("evaluate", run.parent / "tiny.yaml", "--output", run, "--stage", "block_alignment")
    assert code == 0, output
    assert "teacher and student after block_alignment" in output


def test_killed_in_the_middle_of_each_stage_ends_the_same(unbroken, recipe, tmp_path):
    """kill -9 in every stage, twice: before its first checkpoint and after one."""
    expected, _ = unbroken
    run = tmp_path / "run"
    ended(forked("convert", recipe, "--output", run))
    for number, stage in enumerate(STAGES, 1):
        log = run / f"{number}-{stage}" / "metrics.jsonl"
        for lines in (2, 4):  # the first also ends the stage before
            process = forked("distill", recipe, "--output", run)
            wait_for_lines(log, lines, lambda process=process: process.exitcode)
            process.kill()
            process.join()
            assert not (run / f"{number}-{stage}" / "student").exists(), "killed too late to show anything"
    ended(forked("distill", recipe, "--output", run))
    for number, stage in enumerate(STAGES, 1):
        assert metrics(run, number, stage) == metrics(expected, number, stage)
        student = f"{number}-{stage}/student"
        assert weights_sha256(run / student) == weights_sha256(expected / student)


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (
            signal.SIGINT,
            130,
            "gendistill: interrupted; what is whole is kept, and the same command resumes from there\n",
        ),
        (signal.SIGTERM, 143, "gendistill: stopped by SIGTERM; qk_alignment is kept as of step "),
    ],
)
def test_a_signal_says_what_happened_and_how_to_resume(recipe, converted_run, tmp_path, number, code, says):
    settings = ["stages.qk_alignment.tokens=1e5", "stages.qk_alignment.checkpoint_every=1000"]
    streams = {name: tmp_path / name for name in ("output", "errors")}
    process = forked("distill", recipe, *settings, "--output", converted_run, **streams)
    wait_for_lines(converted_run / "1-qk_alignment/metrics.jsonl", 2, lambda: process.exitcode)
    os.kill(process.pid, number)
    process.join(timeout=60)
    output, errors = (path.read_text() for path in streams.values())
    assert process.exitcode == code, errors
    assert says in errors and "Traceback" not in output + errors
    checkpoints = list((converted_run / "1-qk_alignment").glob("checkpoints/step-*"))
    assert bool(checkpoints) == (number == signal.SIGTERM)


def ended(process):
    process.join()
    assert process.exitcode == 0


def wait_for_lines(path, lines, exit_code, seconds=120):
    deadline = time.time() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert exit_code() is None, "the process ended by itself"
        assert time.time() < deadline, "no progress"
        time.sleep(0.005)
