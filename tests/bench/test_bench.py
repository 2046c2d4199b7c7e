"""The sweep on a CPU: what it measures, what it says where nothing can be measured, the limits it stands beside."""

import json

import pytest
import torch
from typer.testing import CliRunner

from gendistill.bench import measure
from gendistill.bench.limits import prefill_operations, shortest_step, step_bytes
from gendistill.bench.machine import Rates, measure_rates
from gendistill.bench.measure import Cell, measure_cell, seconds_a_token_of_generate
from gendistill.bench.models import student_of_shape, teacher_of_shape
from gendistill.bench.sweep import sweep, wins_from
from gendistill.bench.tables import cells, plot
from gendistill.cli import app

RATES = Rates(copy=1e9, product=1e9, device="none", versions={})


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(measure, "DEFAULT_TOKENS", 3)


@pytest.fixture(scope="module")
def pair():
    teacher = teacher_of_shape("tiny", 64, "cpu", torch.float32)
    return {"teacher": teacher, "student": student_of_shape(teacher, 2, mixer="kda")}


def test_a_sweep_measures_both_models_in_both_forms(pair, tmp_path):
    rows = list(sweep(pair, [32, 64], [1, 2], RATES, 1, lambda row: None))
    assert len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert row["error"] is None and len(row["first"]) == 1 and row["token"]
        if row["form"] == "best":
            assert row["cache"] == row["formula"]
    assert len(cells(rows)) == len(rows)
    assert plot(rows, tmp_path / "plot.svg") and (tmp_path / "plot.svg").stat().st_size > 1000
    assert not plot([row for row in rows if row["batch"] == 2], tmp_path / "none.svg")


def test_running_out_of_memory_is_said_and_the_rest_goes_on(pair, monkeypatch):
    whole = measure.prefill

    def scarce(model, prompts, *rest):
        if len(prompts) * len(prompts[0]) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(measure, "prefill", scarce)
    monkeypatch.setattr("gendistill.bench.sweep.FORMS", ("best",))  # the other has no prefill of ours
    rows = list(sweep(pair, [32, 64], [1, 2, 4], RATES, 1, lambda row: None))
    best = {(row["model"], row["context"], row["batch"]): row["error"] for row in rows}
    assert best["student", 32, 2] is None and best["student", 64, 1] is None
    assert best["student", 32, 4] == best["student", 64, 2] == "out of memory"
    assert ("student", 64, 4) not in best  # more rows would not fit either


def test_limits_are_what_a_reader_works_out(pair):
    """For the tiny shape: hidden 128, MLP 256, 8 layers, 4 query and 2 key heads of 32, vocabulary 1024, tied."""
    teacher = pair["teacher"]
    projections = 8 * (128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 256)
    norms = 8 * (2 * 128 + 2 * 32) + 128
    weights = projections + norms + 1024 * 128  # the embedding is read as the head
    keys_and_values = 8 * 2 * 100 * 2 * 32
    assert step_bytes(teacher, 100, 3) == 4 * (weights + 3 * keys_and_values)
    assert prefill_operations(teacher, 100, 3) == 300 * (2 * projections + 8 * 2 * 100 * 128)
    assert shortest_step(teacher, 100, 3, RATES) == step_bytes(teacher, 100, 3) / 1e9
    # A student reads and writes its states and has fewer keys and values: beyond some context it moves fewer bytes.
    student = pair["student"]
    assert step_bytes(student, 100, 1) > step_bytes(teacher, 100, 1)
    assert step_bytes(student, 10_000, 1) < step_bytes(teacher, 10_000, 1)


def test_the_context_from_which_the_student_wins():
    def row(model, context, seconds):
        return {"model": model, "form": "best", "context": context, "batch": 1, "first_median": seconds}

    times = {"teacher": {1: 1.0, 2: 3.0, 4: 9.0}, "student": {1: 2.0, 2: 2.0, 4: 3.0}}
    rows = [row(model, context, seconds) for model, own in times.items() for context, seconds in own.items()]
    assert wins_from(rows, "first_median", "best") == 2
    assert wins_from(rows, "first_median", "default") is None
    # A sweep of large batches alone, which said "never" whatever it had measured.
    assert wins_from([each | {"batch": batch} for each in rows for batch in (8, 16)], "first_median", "best") == 2


def test_generate_and_machine_are_measured(pair):
    assert seconds_a_token_of_generate(pair["student"], 20, 4) > 0
    rates = measure_rates("cpu", torch.float32)
    assert 1e8 < rates.copy < 1e13 and 1e8 < rates.product < 1e14
    assert measure_cell(pair["student"], Cell("student", "default", 16, 1), 1).token


def test_from_the_command_line(tmp_path):
    options = "--shape tiny --contexts 16,32 --batches 1 --repeats 1 --keep 2 --device cpu".split()
    result = CliRunner().invoke(app, ["bench", *options, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert {row["context"] for row in kept["rows"]} == {16, 32} and kept["machine"]["copy"] > 0
    assert "Student faster than teacher" in (tmp_path / "bench.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give a STUDENT folder (with --teacher), or --shape NAME"),
        ("--shape huge", "unknown shape 'huge'; known: qwen3-0.6b"),
        ("--shape tiny --contexts 100000", "positions end at 65536"),
        ("--shape tiny --contexts 10,x", "--contexts 10,x: give numbers"),
        ("--shape tiny --contexts 16 --device cuda", "torch sees no CUDA device"),
    ],
)
def test_errors(options, message, tmp_path):
    device = [] if "--device" in options else ["--device", "cpu"]
    result = CliRunner().invoke(app, ["bench", *options.split(), *device, "--output", str(tmp_path)])
    text = " ".join((result.output + str(result.exception)).split())
    assert result.exit_code != 0 and message in text
