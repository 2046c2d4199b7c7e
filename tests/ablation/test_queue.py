"""An ablation from its file to its table: what is shared, what fails, what resumes."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from ablation_tools import ABLATION, BASE, LAST, InProcess, run_queue, write_ablation_file
from cli_tools import environment, in_a_process, in_process
from gendistill.ablation.queue import said_last
from gendistill.ablation.result import read_ablation, write_ablation
from gendistill.errors import UserError
from gendistill.models.conversion import weights_sha256

ONE_AXIS = {"objective": ABLATION["axes"]["objective"]}
BASE_RUN, OTHER, DIVERGING = "base-seed0", "objective-reverse_kl-seed0", "rate-huge-seed0"


def states(folder):
    return {variant.name: variant.state for variant in read_ablation(folder).variants}


def results(folder, name):
    """All that a variant's run comes to: metrics without times, weights, answers."""
    run = folder / "variants" / name
    found = {}
    for path in sorted(run.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [{key: x for key, x in row.items() if "second" not in key} for row in rows]
    for path in sorted(run.glob("*/student")):
        found[f"weights of {path.parent.name}"] = weights_sha256(path)
    for path in sorted(run.glob("evaluation/*/*.jsonl")):
        found[str(path.relative_to(run))] = path.read_text()
    return found


def test_every_variant_ends_and_one_that_diverges_says_so(finished):
    assert states(finished) == {
        BASE_RUN: "done",
        OTHER: "done",
        DIVERGING: "diverged",
        "window-seed0": "done",
        "teacher-seed0": "done",
    }
    by_name = {variant.name: variant for variant in read_ablation(finished).variants}
    assert "logit_distillation, step " in by_name[DIVERGING].reason and "the loss is " in by_name[DIVERGING].reason
    assert by_name[BASE_RUN].tokens == 2 * 64 * 2 * 4 and by_name["window-seed0"].tokens == 0
    summary = (finished / "summary.md").read_text()
    assert f"- {DIVERGING}: diverged: logit_distillation, step" in summary and "Holm" in summary
    found = json.loads((finished / "summary.json").read_text())
    assert list(found["rows"]) == ["base", "teacher", "objective=reverse_kl", "window"]
    assert [effect["axis"] for effect in found["effects"]] == ["objective"]


def test_what_variants_have_in_common_is_run_once(finished):
    shared = {stage.stage: stage for stage in read_ablation(finished).shared}
    assert list(shared) == ["evaluation of the teacher", "conversion", "block_alignment"]
    assert shared["evaluation of the teacher"].variants == [BASE_RUN, OTHER, DIVERGING, "window-seed0"]
    assert shared["block_alignment"].variants == [BASE_RUN, OTHER, DIVERGING]
    assert {stage.run_once_in for stage in shared.values()} == {f"variants/{BASE_RUN}"}
    logs = {path.stem: path.read_text() for path in (finished / "logs").glob("*.log")}
    # Who has trained, converted and asked the teacher, by what each has printed.
    trained = [name for name, log in logs.items() if "block_alignment: what trains" in log]
    converted = [name for name, log in logs.items() if "conversion: measures a student" in log]
    asked = [name for name, log in logs.items() if "teacher, facts: " in log]
    assert trained == asked == [BASE_RUN] and sorted(converted) == [BASE_RUN, "window-seed0"]
    # The same files, not copies of them.
    weights = [
        finished / "variants" / name / "1-block_alignment/student/model.safetensors" for name in (BASE_RUN, OTHER)
    ]
    assert os.path.samefile(*weights)


def test_a_shared_stage_changes_no_result(finished, tmp_path):
    """What an ordinary run with the same overrides comes to, to the last digit, its reports too."""
    tiny = finished.parent / "tiny.yaml"
    code, output = in_process("run", tiny, f"{LAST}.objective=reverse_kl", "--output", tmp_path / "variants/alone")
    assert code == 0, output
    assert results(tmp_path, "alone") == results(finished, OTHER)
    for stage in ("1-block_alignment", "2-logit_distillation"):
        report = f"{stage}/student/stage_report.json"
        assert json.loads((tmp_path / "variants/alone" / report).read_text()) == json.loads(
            (finished / "variants" / OTHER / report).read_text()
        )


def test_a_finished_ablation_runs_nothing_again_and_new_values_only(finished, tmp_path):
    root = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    launcher = InProcess()
    run_queue(finished.parent / "ablation.yaml", root, launcher)
    assert launcher.started == []
    axes = ABLATION["axes"] | {"objective": {f"{LAST}.objective": ["reverse_kl", "jensen_shannon"]}}
    run_queue(write_ablation_file(tmp_path, axes=axes), root, launcher)
    assert launcher.started == ["objective-jensen_shannon-seed0"]
    with pytest.raises(UserError, match="not in the file any more: objective-jensen_shannon-seed0"):
        run_queue(finished.parent / "ablation.yaml", root)
    other = BASE | {"stages": BASE["stages"] | {"block_alignment": BASE["stages"]["block_alignment"] | {"tokens": 256}}}
    with pytest.raises(UserError) as error:
        run_queue(write_ablation_file(tmp_path, other, axes=axes), root)
    # All of them, each by its own folder.
    assert str(error.value).count("different: stages.block_alignment.tokens") == 4


def test_one_row_is_run_again(finished, tmp_path):
    root = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    before = results(root, OTHER)
    (root / "variants" / OTHER / "marker").touch()
    launcher = InProcess()
    run_queue(finished.parent / "ablation.yaml", root, launcher, only=["objective=reverse_kl"])
    assert launcher.started == [OTHER] and not (root / "variants" / OTHER / "marker").exists()
    assert results(root, OTHER) == before and states(root) == states(finished)
    with pytest.raises(UserError, match=r"--only objektive: there is no such variant; known: base-seed0, "):
        run_queue(finished.parent / "ablation.yaml", root, launcher, only=["objektive"])


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ("a bar\ngendistill: out of memory\nLower micro_batch", "out of memory\nLower micro_batch"),
        ('Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no', "ValueError: no"),
        (
            "ValueError: one\n\nDuring handling of the above exception, another exception occurred:\n\n"
            "torch.AcceleratorError: CUDA error: invalid argument\nSearch for `cudaErrorInvalidValue' in https://...\n"
            "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
            "torch.AcceleratorError: CUDA error: invalid argument",
        ),
        ("Killed", "Killed"),
        ("", ""),
    ],
)
def test_what_a_process_said_last(errors, said):
    assert said_last(errors) == said


def test_a_failure_stops_nobody_else_and_is_tried_again(tmp_path):
    """The base fails before it has made anything, so that the next one makes what both need."""
    ablation_file = write_ablation_file(tmp_path, axes=ONE_AXIS, controls={})
    launcher = InProcess(fail=BASE_RUN)
    queue = run_queue(ablation_file, tmp_path / "out", launcher)
    assert launcher.started == [BASE_RUN, OTHER]
    assert (queue.variants[BASE_RUN].state, queue.variants[BASE_RUN].reason) == ("failed", "no room on the disk")
    assert {stage.run_once_in for stage in read_ablation(tmp_path / "out").shared} == {f"variants/{OTHER}"}
    assert not (tmp_path / "out/summary.md").exists()  # nothing to compare with
    again = InProcess()
    run_queue(ablation_file, tmp_path / "out", again)
    assert again.started == [BASE_RUN] and states(tmp_path / "out")[BASE_RUN] == "done"
    assert (tmp_path / "out/summary.md").exists()


def test_another_teacher_is_not_compared(finished, tmp_path):
    root = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    path = root / "variants" / OTHER / "teacher.json"
    recorded = json.loads(path.read_text())
    recorded["files"]["model.safetensors"]["sha256"] = "0" * 64
    path.write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=f"{BASE_RUN} and {OTHER} have different teachers"):
        run_queue(finished.parent / "ablation.yaml", root)


def test_killed_twice_it_ends_the_same(finished, tmp_path):
    """kill -9 in the middle of two trainings; the command itself, with processes of its own, brings it to its end."""
    every_step = {name: stage | dict(checkpoint_every=1) for name, stage in BASE["stages"].items()}
    path = write_ablation_file(tmp_path, BASE | dict(stages=every_step), axes=ONE_AXIS, controls={})
    root = tmp_path / "out"
    for name, stage in ((BASE_RUN, "1-block_alignment"), (OTHER, "2-logit_distillation")):
        # Variants run in the queue's process here, which spares starts.
        process = in_a_process(run_queue, path, root)
        log = root / "variants" / name / stage / "metrics.jsonl"
        deadline = time.time() + 120
        while not log.exists() or not log.read_text():
            assert process.exitcode is None and time.time() < deadline, "ended by itself, or no progress"
            time.sleep(0.002)
        process.kill()
        process.join()
        assert not (log.parent / "student").exists(), "killed too late to show anything"
        assert read_ablation(root).shared[-1].run_once_in == f"variants/{BASE_RUN}"
    code, output = in_process("ablate", path, "--output", root)
    assert code == 0, output
    assert states(root) == {BASE_RUN: "done", OTHER: "done"}
    assert f"{root / 'summary.md'}" in output and (root / "logs" / f"{OTHER}.log").read_text()
    for name in (BASE_RUN, OTHER):
        assert results(root, name) == results(finished, name)
    # Corrected for another number of rows, but else the same figures.
    rows = [json.loads((folder / "summary.json").read_text())["rows"] for folder in (root, finished)]
    for name in ("base", "objective=reverse_kl"):
        figures = [{key: x for key, x in row[name]["generation"].items() if key != "p_corrected"} for row in rows]
        assert figures[0] == figures[1]


def test_what_a_killed_queue_has_left_is_waited_for(finished, tmp_path):
    """A process that still holds a variant's folder ends it; only then the variant, and what needs it, goes on."""
    root = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    ablation = read_ablation(root)
    left = [
        each.model_copy(update={"state": "running"}) if each.name == BASE_RUN else each for each in ablation.variants
    ]
    write_ablation(root, ablation.model_copy(update={"variants": left}))
    with holding(root / "variants" / BASE_RUN, seconds=1) as holder:
        launcher = InProcess()
        run_queue(finished.parent / "ablation.yaml", root, launcher)
        assert holder.poll() is not None and launcher.started == [BASE_RUN]
    assert states(root) == states(finished) and results(root, BASE_RUN) == results(finished, BASE_RUN)


@contextmanager
def holding(folder, seconds):
    """A process that has a folder's lock for so long."""
    hold = "import sys, time; from pathlib import Path; from gendistill.run.lock import lock_folder"
    hold += "; lock_folder(Path(sys.argv[1])); print(flush=True); time.sleep(float(sys.argv[2]))"
    call = [sys.executable, "-c", hold, str(folder), str(seconds)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, env=environment()) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_two_queues_in_one_folder_are_refused(ablation_file, tmp_path):
    root = tmp_path / "out"
    root.mkdir()
    with holding(root, seconds=60), pytest.raises(UserError, match="another process works there: process "):
        run_queue(ablation_file, root)
    with pytest.raises(UserError, match="is not empty and holds no ablation"):
        run_queue(ablation_file, tmp_path)
