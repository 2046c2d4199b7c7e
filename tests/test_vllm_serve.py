"""What benchmarks/vllm_serve.py keeps between leases, and how it reads vLLM's log."""

import json

import pytest
import torch
import vllm_serve
from vllm_serve import Ledger, requests_held

SETTINGS = {"shape": "qwen3-0.6b", "waves": 2.0}


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_serve, "gpu_machine", lambda *packages: {"gpu": "some"})


def test_rows_are_kept_as_they_come_and_not_measured_again(tmp_path, on_a_gpu):
    path = tmp_path / "vllm_serve.json"
    path.write_text(json.dumps({"pairs": {"other": {"measured": {}}}}))
    Ledger(path, "0.6b", SETTINGS).add("teacher", {"context": 1024, "load": "largest", "output_throughput": 1.0})
    again = Ledger(path, "0.6b", SETTINGS)
    assert again.has("teacher", 1024, "largest")
    assert not again.has("student", 1024, "largest") and not again.has("teacher", 1024, "equal")
    again.add("student", {"context": 1024, "load": "largest"})
    kept = json.loads(path.read_text())
    assert list(kept["pairs"]) == ["other", "0.6b"] and kept["machine"] == {"gpu": "some"}
    assert list(kept["pairs"]["0.6b"]["measured"]) == ["teacher", "student"]


def test_rows_of_other_settings_are_measured_anew(tmp_path, on_a_gpu):
    path = tmp_path / "vllm_serve.json"
    Ledger(path, "0.6b", SETTINGS).add("teacher", {"context": 1024, "load": "largest"})
    assert not Ledger(path, "0.6b", SETTINGS | {"waves": 3.0}).has("teacher", 1024, "largest")
    assert not Ledger(path, "1.5b", SETTINGS).has("teacher", 1024, "largest")


def test_how_many_requests_vllm_holds():
    line = "INFO 11-30 kv_cache_utils.py:1 Maximum concurrency for 32,768 tokens per request: {}x"
    assert requests_held(f"{line.format('12.50')}\nmore\n{line.format('36.25')}") == 36.25
    with pytest.raises(SystemExit, match="did not say how many requests"):
        requests_held("INFO started")
