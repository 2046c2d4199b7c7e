"""Processes of this machine and jobs of a cluster."""

import sys
import time

import pytest

from gendistill.ablation.launch import Cluster, Local, errors_of
from gendistill.errors import UserError


def fails(text):
    return [sys.executable, "-c", f"import sys; print('working'); sys.exit({text!r})"]


def ended(process):
    deadline = time.time() + 60
    while (code := process.poll()) is None:
        assert time.time() < deadline
        time.sleep(0.05)
    return code


def test_a_process_leaves_what_it_says_and_how_it_ended(tmp_path):
    local = Local("cpu", None)
    assert local.places == 1 and Local("cpu", 3).places == 3
    log = tmp_path / "one.log"
    for _ in range(2):
        assert ended(local.start(fails("no"), log, 0)) == 1
    # What was printed adds up; errors are the last process's own.
    assert log.read_text() == "working\nworking\n" and errors_of(log).read_text() == "no\n"


def test_each_gpu_has_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    local = Local("auto", None)
    assert local.places == 2 and Local("cpu", None).places == 1
    show = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    for place, gpu in ((0, "4"), (1, "6")):
        assert ended(local.start(show, tmp_path / f"{gpu}.log", place)) == 0
        assert (tmp_path / f"{gpu}.log").read_text() == f"{gpu}\n"


def test_processes_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(7))
    show = [sys.executable, "-c", "import os; print(os.environ.get('OMP_NUM_THREADS'))"]
    for jobs, threads in ((None, "None"), (3, "2"), (9, "1")):
        log = tmp_path / f"{jobs}.log"
        assert ended(Local("cpu", jobs).start(show, log, 0)) == 0
        assert log.read_text() == f"{threads}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert ended(Local("cpu", 3).start(show, tmp_path / "asked.log", 0)) == 0
    assert (tmp_path / "asked.log").read_text() == "5\n"


def test_a_job_is_a_process_of_another_machine(tmp_path):
    pytest.importorskip("submitit", reason="the extra 'cluster' is not installed")
    cluster = Cluster("local", tmp_path / "jobs", {"timeout_min": 1}, jobs=2)
    log = tmp_path / "one.log"
    assert ended(cluster.start(fails("no"), log, 0)) == 1
    assert log.read_text() == "working\n" and errors_of(log).read_text() == "no\n"
    with pytest.raises(UserError, match="--cluster nowhere: "):
        Cluster("nowhere", tmp_path / "jobs", {}, jobs=1)
    with pytest.raises(UserError, match="--cluster local: "):
        Cluster("local", tmp_path / "jobs", {"partitions": 1}, jobs=1)
