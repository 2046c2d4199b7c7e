"""The doctor passes a healthy machine, and names the right line of a sick one."""

import json
import os
import subprocess
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli_tools import command, environment
from gendistill.cli import app
from gendistill.doctor import checks as doctor_checks
from gendistill.doctor import machine as machines
from gendistill.doctor import recurrence, student
from gendistill.errors import UserError
from gendistill.models.mixers.layer import LinearAttention
from gendistill.ops import dispatch, set_backend
from gendistill.ops.chunked import chunked_linear_attention
from gendistill.ops.reference import recurrent_linear_attention

SMALL = dict(sizes=recurrence.Sizes(length=80, steps=3), head_sizes=(16,))
RECURRENCE, STUDENT = "recurrence in float32", "student of all mixers"
HOPPER = machines.Machine(
    device="cuda",
    backend="auto",
    python="3.12.3",
    torch="2.13.0+cu130",
    transformers="5.23.0",
    triton="3.8.0",
    fla_core="0.6.0",
    cuda="13.0",
    gpu="NVIDIA H100",
    capability=(9, 0),
    gpu_memory=(79.0, 80.0),
    cpu_cores=16,
    memory=(100.0, 128.0),
    launch_settings="shipped ones for Hopper",
)


@pytest.fixture
def machine():
    return machines.examine("cpu")


@pytest.fixture
def run_doctor(monkeypatch):
    """The command in this process, on small tensors."""
    monkeypatch.setattr(doctor_checks, "all_checks", partial(doctor_checks.all_checks, **SMALL))
    monkeypatch.setenv("COLUMNS", "80")
    yield lambda *arguments: CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    set_backend("auto")


def failed(machine):
    """{table: {column or, for students, row}} of the checks that fail, and all their wrong quantities."""
    outcomes = [check.run() for check in doctor_checks.all_checks(machine, **SMALL) if "bounded" not in check.row]
    bad = [outcome for outcome in outcomes if not outcome.passed]
    quantities = {name for outcome in bad for name, error in outcome.errors.items() if not error <= outcome.check.bound}
    columns = {outcome.check.column for outcome in bad if outcome.check.table == RECURRENCE}
    rows = {outcome.check.row for outcome in bad if outcome.check.table == STUDENT}
    return columns, rows, quantities


def test_a_healthy_machine_passes(tmp_path):
    """The whole doctor, once, as a user calls it."""
    done = subprocess.run(
        command("doctor", "--device", "cpu", "--json", tmp_path / "doctor.json"),
        capture_output=True,
        text=True,
        env=environment() | {"COLUMNS": "80"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass: all" in done.stdout and "FAIL" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["passed"] and report["machine"]["torch"] == torch.__version__
    rows = {check["row"] for check in report["checks"]}
    mixers = ("kda", "gated_deltanet", "gla", "mamba2", "lightning")
    assert {f"{mixer} {size}" for mixer in mixers for size in (64, 128)} | set(student.STUDENT_CASES) == rows
    for check in report["checks"]:
        assert check["passed"] and 0 < max(check["errors"].values()) == check["errors"][check["worst"]]
        assert check["errors"][check["worst"]] <= check["bound"] and check["reason"] is None
    usual = next(check for check in report["checks"] if check["column"] == "usual gates")
    assert list(usual["errors"]) == ["o", "state", "dq", "dk", "dv", "dg", "dbeta", "dstate"]


def test_outputs_that_are_off(machine, monkeypatch):
    def off(*arguments, **named):
        o, state = chunked_linear_attention(*arguments, **named)
        return 1.02 * o, state

    monkeypatch.setattr(dispatch, "chunked_linear_attention", off)
    columns, _, quantities = failed(machine)
    assert columns == set(recurrence.CASES)
    assert "o" in quantities and "state" not in quantities


def test_a_wrong_gradient(machine, monkeypatch):
    def wrong(q, k, *others, **named):
        return chunked_linear_attention(q, k + 0.02 * (k - k.detach()), *others, **named)

    monkeypatch.setattr(dispatch, "chunked_linear_attention", wrong)
    assert failed(machine) == ({"usual gates", "shut gates", "packed"}, set(), {"dk"})


def test_a_leak_across_document_boundaries(machine, monkeypatch):
    def leaks(q, k, v, g, beta, state, documents):
        return chunked_linear_attention(q, k, v, g, beta, state)

    monkeypatch.setattr(dispatch, "chunked_linear_attention", leaks)
    columns, rows, _ = failed(machine)
    assert (columns, rows) == ({"packed"}, {"packed = separate"})


def test_a_step_that_ignores_its_state(machine, monkeypatch):
    def forgets(q, k, v, g, beta, state, documents):
        return recurrent_linear_attention(q, k, v, g, beta)

    monkeypatch.setattr(dispatch, "recurrent_linear_attention", forgets)
    columns, rows, _ = failed(machine)
    assert (columns, rows) == ({"steps"}, {"cached = uncached"})


def test_padding_that_is_not_masked(machine, monkeypatch):
    forward = LinearAttention.forward
    monkeypatch.setattr(
        LinearAttention, "forward", lambda *inputs, **named: forward(*inputs, **named | {"attention_mask": None})
    )
    columns, rows, _ = failed(machine)
    assert (columns, rows) == (set(), {"padded = unpadded"})


def test_shut_gates_that_overflow(machine, monkeypatch):
    def overflows(q, k, v, g, *others, **named):
        return chunked_linear_attention(q, k, v, torch.where(g == recurrence.SHUT, torch.nan, g), *others, **named)

    monkeypatch.setattr(dispatch, "chunked_linear_attention", overflows)
    columns, rows, _ = failed(machine)
    assert (columns, rows) == ({"shut gates"}, set())


def test_a_check_that_raises_is_a_failed_line(run_doctor, monkeypatch, tmp_path):
    def breaks(*_, **__):
        raise RuntimeError("PassManager::run failed\nand pages more")

    monkeypatch.setattr(dispatch, "chunked_linear_attention", breaks)
    result = run_doctor("--device", "cpu", "--json", tmp_path / "doctor.json")
    assert result.exit_code == 1
    output = " ".join(result.stdout.split())
    assert "FAIL: recurrence in float32: RuntimeError: PassManager::run failed ... kda 16, usual gates" in output
    assert "what to do: set backend: reference in the recipe" in output and "and pages more" not in output
    checks = json.loads((tmp_path / "doctor.json").read_text())["checks"]
    assert {check["reason"] for check in checks} == {"RuntimeError: PassManager::run failed\nand pages more"}
    assert not any(check["passed"] for check in checks) and checks[0]["worst"] is None

    assert run_doctor("--device", "cpu", "--backend", "reference").exit_code == 0  # what the advice says, helps


def test_a_failure_names_the_quantity_and_what_to_do(run_doctor, monkeypatch, tmp_path):
    def off(*arguments, **named):
        o, state = chunked_linear_attention(*arguments, **named)
        return o, torch.nan * state

    monkeypatch.setattr(dispatch, "chunked_linear_attention", off)
    result = run_doctor("--device", "cpu", "--json", tmp_path / "doctor.json")
    assert result.exit_code == 1
    output = " ".join(result.stdout.split())
    assert "relative errors above the bound of 1e-05" in output and "kda 16, usual gates: state inf" in output
    checks = json.loads((tmp_path / "doctor.json").read_text())["checks"]
    assert checks[0]["errors"]["state"] == "inf" and checks[0]["worst"] == "state" and checks[0]["advice"]


def test_a_requirement_that_is_not_met_fails_too(run_doctor, monkeypatch):
    monkeypatch.setattr(machines, "examine", lambda *_: replace(HOPPER, device="cpu", transformers="5.9.0"))
    result = run_doctor("--device", "cpu")
    assert result.exit_code == 1
    output = " ".join(result.stdout.split())
    assert "FAIL: transformers is not >=5.17,<6" in output and 'pip install "transformers>=5.17,<6"' in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "triton"], "known: auto, plain, reference, chunked, kernels"),
        (["--json", "nowhere/doctor.json"], "there is no folder nowhere"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA"),
        ),
    ],
)
def test_wrong_arguments(run_doctor, arguments, message):
    result = run_doctor(*arguments)
    assert isinstance(result.exception, UserError) and message in str(result.exception)


@pytest.mark.parametrize(
    ("changes", "expected", "fatal"),
    [
        ({}, [], False),
        ({"torch": "2.10.0+cu130"}, ["torch is not >=2.11"], True),
        ({"transformers": "5.16.1"}, ["transformers is not"], True),
        ({"transformers": "6.0.0"}, ["transformers is not"], True),
        ({"fla_core": None}, ["fla-core, whose kernels it needs, is not installed"], True),
        ({"fla_core": "0.5.2"}, ["fla issue 1240"], True),
        ({"fla_core": "0.7.0"}, ["fla-core is not >=0.6,<0.7"], False),
        ({"capability": (7, 5)}, ["older than sm_80"], True),
        ({"triton": "3.6.0"}, ["fla issue 640"], False),
        ({"triton": "3.7.0"}, ["fla issue 640", "one team saw KDA's kernel hang"], False),
        ({"triton": "3.7.1+git1234"}, ["one team saw KDA's kernel hang"], False),
        ({"triton": "3.6.0", "capability": (8, 0)}, [], False),
        ({"device": "cpu", "fla_core": "0.5.2", "triton": "3.7.0"}, [], False),
        ({"backend": "chunked", "fla_core": None, "capability": (7, 5)}, [], False),
    ],
    ids=str,
)
def test_known_problems(changes, expected, fatal):
    problems = machines.known_problems(replace(HOPPER, **changes))
    assert len(problems) == len(expected)
    assert all(text in problem.what for text, problem in zip(expected, problems, strict=True))
    assert any(problem.fatal for problem in problems) == fatal
    assert all(problem.advice for problem in problems)


def test_versions_are_those_the_package_asks_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    asked = {*project["dependencies"], *project["optional-dependencies"]["gpu"]}
    named = {f"torch{machines.TORCH}", f"transformers{machines.TRANSFORMERS}", f"fla-core{machines.FLA_CORE}"}
    assert named <= asked


def test_what_is_measured_on_a_gpu():
    checks = doctor_checks.all_checks(HOPPER)
    tables = {check.table: check.bound for check in checks}
    assert tables == {"recurrence in float32": 5e-3, "recurrence in bfloat16": 2e-2, STUDENT: 5e-2}
    assert {"kda bounded 64", "kda bounded 128"} < {check.row for check in checks}
    assert {check.table for check in checks if check.column == "packed"} == {"recurrence in bfloat16"}
    assert "set backend: chunked" in checks[0].advice


@pytest.mark.parametrize(
    ("capability", "environment", "shown"),
    [
        (None, {}, "not needed"),
        ((9, 0), {}, "shipped ones for Hopper"),
        ((8, 0), {}, "none for this GPU"),
        ((9, 0), {"FLA_CACHE_MODE": "disabled"}, "off by FLA_CACHE_MODE"),
        ((9, 0), {"FLA_CONFIG_DIR": "/mine"}, "those of FLA_CONFIG_DIR"),
    ],
)
def test_launch_settings(monkeypatch, capability, environment, shown):
    for name in ("FLA_CACHE_MODE", "FLA_CONFIG_DIR"):
        monkeypatch.delitem(os.environ, name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert machines._launch_settings(capability).startswith(shown)
