"""Many processes are one: same losses, gradients and weights; and what breaks one of them breaks no run.

One process here, and two that torchrun starts, run the stages of cases.py.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cases
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cli_tools import environment
from gendistill.distill.checkpoint import checkpoints
from gendistill.models.conversion import weights_sha256

EXACT = [name for name, case in cases.CASES.items() if case.dtype == torch.float32]
DECAY_GATE = ("A_log", "dt_bias")


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt")


def assert_equal(found: Path, expected: Path) -> None:
    assert metrics(found) == metrics(expected)
    torch.testing.assert_close(weights(found), weights(expected), rtol=0, atol=0)


def assert_same_trajectory(found: Path, expected: Path) -> None:
    """Losses to 1e-5; later gradients and updates to what Adam makes of rounding in the steps before."""
    for a, b in zip(metrics(expected), metrics(found), strict=True):
        for key in ("step", "tokens", "loss_tokens", "learning_rate"):
            assert b[key] == a[key]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), a["step"]
        assert b["terms"] == pytest.approx(a["terms"], rel=1e-5), a["step"]
        for key in ("held_out_loss", "held_out_loss_before"):  # None where it was not measured
            assert b[key] == (a[key] and pytest.approx(a[key], rel=1e-5)), a["step"]
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-5 if a["step"] == 1 else 1e-3), a["step"]
        assert b["update_ratio"] == pytest.approx(a["update_ratio"], rel=1e-3), a["step"]
    torch.testing.assert_close(weights(found), weights(expected), rtol=0, atol=5e-6)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder of one process."""
    root = tmp_path_factory.mktemp("one")
    cases.write_rows(root)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would get in each other's way
    for name in cases.CASES:
        cases.run_case(name, root)
    cases.ask(root / "asked")
    yield root
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ended(one, tmp_path_factory):
    """Folder of two processes, what they said, and when all was over; one was killed twice, and revived once."""
    root = tmp_path_factory.mktemp("two")
    cases.write_rows(root)
    (root / "tiny.yaml").write_text(yaml.safe_dump(cases.SHORT_RECIPE, sort_keys=False))
    for strategy in cases.STRATEGIES:
        cases.run_and_stop(root, f"one, then {strategy}")
    cases.ask(root / "one, then asked", answers=2)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
        + [cases.__file__, str(root)],
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
        timeout=300,
        check=False,
    )
    assert (root / "died").exists(), done.stdout + done.stderr
    return root, done, time.time()


@pytest.fixture(scope="module")
def two(ended):
    return ended[0]


by_either = pytest.mark.parametrize("strategy", cases.STRATEGIES)


@by_either
@pytest.mark.parametrize("case", EXACT)
def test_two_processes_train_as_one(one, two, case, strategy):
    folder = two / f"{strategy}, {case}"
    assert len(metrics(folder)) == cases.CASES[case].steps
    assert metrics(folder)[0]["held_out_loss_before"] and metrics(folder)[-1]["held_out_loss"]
    assert_same_trajectory(folder, one / case)


def test_hosts_that_are_replicas_of_each_other_train_as_one(one, two):
    """Two hosts of one process: gradients pass between them, and norms count each shard once."""
    assert_same_trajectory(two / "hybrid, short", one / "short")


@pytest.mark.parametrize("case", [name for name in cases.GATHERED_ONCE if name in EXACT])
def test_layers_that_stay_for_a_step_train_as_one(one, two, case):
    assert_same_trajectory(two / f"zero2, {case}", one / case)


def test_layers_stay_until_the_last_micro_batch_of_a_step(two):
    kept = json.loads((two / "zero2, logits/sharded.json").read_text())
    # Of the two in each step the first; what measures the loss frees them each time.
    assert kept.count(False) == cases.CASES["logits"].steps
    assert all(json.loads((two / "fsdp, logits/sharded.json").read_text()))


@by_either
def test_two_processes_write_the_replies_of_one(one, two, strategy):
    """Of a sharded student each has a whole copy; what they wrote is kept once."""
    folders = (two / f"{strategy}, on policy", one / "on policy")
    found, expected = ((folder / "replies.jsonl").read_text().splitlines() for folder in folders)
    assert len(expected) == 8
    assert [sorted(json.loads(line)["replies"]) for line in found] == [
        sorted(json.loads(line)["replies"]) for line in expected
    ]
    counts = [[row["replies"] for row in metrics(folder)] for folder in folders]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("strategy", [*cases.STRATEGIES, "zero2"])
def test_two_processes_round_as_one(one, two, strategy):
    folder = two / f"{strategy}, bfloat16"
    for a, b in zip(metrics(one / "bfloat16"), metrics(folder), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)
        assert b["update_ratio"] == pytest.approx(a["update_ratio"], rel=2e-2)
    seen = json.loads((folder / "seen.json").read_text())
    assert seen == {name: f"torch.{'float32' if name in DECAY_GATE else 'bfloat16'}" for name in seen}


@pytest.mark.parametrize("case", ["bfloat16", "logits", "mixers"])
@pytest.mark.parametrize("strategy", ["whole", *cases.STRATEGIES, "zero2"])
def test_plan_knows_to_the_byte_what_each_process_holds(one, two, case, strategy):
    folders = [one / case] if strategy == "whole" else [two / f"{strategy}, {case}"] * 2
    for rank, folder in enumerate(folders):
        memory = json.loads((folder / f"memory-{rank}.json").read_text())
        assert memory["held"] == {name: memory["planned"][name] for name in memory["held"]}


@by_either
@pytest.mark.parametrize("case", ["hidden states, tied embedding", "data only, head of its own", "bfloat16"])
def test_the_gathered_student_is_a_folder_for_transformers(two, case, strategy):
    folder = two / f"{strategy}, {case}" / "student"
    model = AutoModelForCausalLM.from_pretrained(folder)
    stored, expected = load_file(folder / "model.safetensors"), weights(folder.parent)
    torch.testing.assert_close(stored, expected, rtol=0, atol=0)
    gates = [name for name in stored if name.endswith(DECAY_GATE)]
    assert gates and all(stored[name].dtype == torch.float32 for name in gates)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name].to(parameter.dtype)), name


def test_a_worker_killed_in_an_accumulation_leaves_no_trace(ended, two):
    assert "exitcode: -9" in ended[1].stderr
    assert_equal(two / "killed", two / "replicas, short")


@by_either
def test_two_processes_resume_where_one_stopped(one, two, strategy):
    assert_same_trajectory(two / f"one, then {strategy}", one / "short")


@by_either
def test_one_process_resumes_where_two_stopped(one, two, strategy):
    folder = two / f"{strategy}, then one"
    assert len(metrics(folder)) < cases.CASES["short"].steps
    cases.run_case("short", two, folder.name)
    assert_same_trajectory(folder, one / "short")


@pytest.mark.parametrize("name", ["replicas, then fsdp", "fsdp, then replicas", "zero2, then fsdp"])
def test_a_stage_resumes_under_the_other_strategy(one, two, name):
    assert_same_trajectory(two / name, one / "short")


@pytest.mark.parametrize("name", ["asked", "asked, then one", "one, then asked"])
def test_records_do_not_depend_on_how_many_processes_answered(one, two, name):
    """To the byte, in float32; nor on how many each attempt had."""
    if name.endswith("one"):
        left = sorted(path.name for path in (two / name / "model").iterdir())
        assert left == ["facts.partial.jsonl", "facts.partial.jsonl.1"]
        # Behind the line that says of what, each process's own answers.
        assert all((two / name / "model" / file).read_text().count("\n") > 1 for file in left)
        cases.ask(two / name)
    files = sorted(path.relative_to(one / "asked") for path in (one / "asked").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two / name) for path in (two / name).rglob("*") if path.is_file())
    timed = ("stats.json", "SHA256SUMS", "placement.jsonl", "placement.json")
    for file in files:
        assert file.name in timed or (two / name / file).read_bytes() == (one / "asked" / file).read_bytes(), file
    stats, expected = (json.loads((folder / "set/stats.json").read_text()) for folder in (two / name, one / "asked"))
    assert stats.pop("seconds_this_time") > 0 and expected.pop("seconds_this_time") > 0
    assert stats == expected and stats["replies"] == 12
    placed, expected = (json.loads((folder / "placement.json").read_text()) for folder in (two / name, one / "asked"))
    assert placed["cost"].pop("seconds") >= 0 and expected["cost"].pop("seconds") >= 0
    assert placed.pop("sha256") and expected.pop("sha256")
    assert placed == expected and len(placed["sets"]) > 6


def test_sigterm_to_one_process_stops_all_behind_the_same_step(one, two):
    """And the step is kept, though no checkpoint was due; what resumes from it ends as an unbroken run."""
    said = {(two / "terminated" / f"said-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    # It is told with step 4, which is looked at while step 5 runs.
    assert "stopped by SIGTERM; short is kept as of step 5, and" in said.pop()
    assert_same_trajectory(two / "terminated", one / "short")


def test_a_disk_full_for_one_process_is_one_clear_error_and_loses_nothing(one, two):
    said = [json.loads((two / f"errors-{rank}.json").read_text())["disk"] for rank in (0, 1)]
    assert said[0] == said[1]
    assert "step-00000006: the checkpoint could not be written (OSError: [Errno 27] File too large). Free" in said[0]
    folder = two / "full" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]
    cases.run_case("short", two, "full")
    assert_same_trajectory(two / "full", one / "short")
    assert len(checkpoints(folder)) == 2


def test_processes_that_differ_are_refused_by_all(two):
    for rank in (0, 1):
        said = json.loads((two / f"errors-{rank}.json").read_text())["differ"]
        assert said.startswith("processes 0 and 1 differ in: recipe. Start all of them with the same command")


def test_8_bit_state_is_refused_in_two_processes(two):
    for rank in (0, 1):
        said = json.loads((two / f"errors-{rank}.json").read_text())["optimizer"]
        assert "adamw_8bit runs in one process only; take adamw" in said


def test_a_whole_run_ends_with_its_summary_and_says_everything_once(ended, two):
    output, run = ended[1].stdout, two / "run"
    said = ["tiny: embedded on cpu, float32", "teacher and student, percent", "summary: "]
    said += [f"{stage}: {what}" for stage in cases.STAGES for what in ("what trains", "loss")]
    assert {text: output.count(text) for text in said} == dict.fromkeys(said, 1), output
    assert "2-instruction_distillation" in (run / "summary.md").read_text()
    for number, stage in enumerate(cases.STAGES, 1):
        student = run / f"{number}-{stage}" / "student"
        report = json.loads((student / "stage_report.json").read_text())
        assert report["weights_sha256"] == weights_sha256(student)
        assert len(metrics(student.parent)) == 2
        assert not (student.parent / "checkpoints").exists()


def test_a_death_without_restarts_left_ends_the_run(ended, two):
    _, done, end = ended
    assert done.returncode != 0
    assert "Root Cause" in done.stderr and "Signal 9 (SIGKILL)" in done.stderr
    assert end - float((two / "died").read_text()) < 20


def test_an_error_of_all_processes_is_said_once(ended):
    said = ended[1].stderr
    assert said.count("gendistill: ") == 1, said
    assert "gendistill: stages.qk_alignment: sequences_per_step 3 cannot be dealt out to 2 processes; start" in said
