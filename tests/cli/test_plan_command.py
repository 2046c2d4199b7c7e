"""gendistill plan: the price before the run; and runs that cannot fit are refused."""

import json
import math

import pytest
import yaml
from figures import QWEN3_0_6B
from ledger import ROOT
from transformers import Qwen3Config

from cli_tools import RECIPE
from gendistill.errors import Stopped

PARTS = [
    "teacher weights",
    "student weights",
    "float32 masters",
    "optimizer state",
    "gradients",
    "activations",
    "loss",
    "backward pass",
]
TOO_LARGE = ["stages.block_alignment.sequences_per_step=200000", "stages.block_alignment.micro_batch=200000"]


def test_a_probe_gives_hours_and_leaves_nothing(recipe, gendistill, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(recipe.read_text())
    kept = ("qk_alignment", "instruction_distillation")
    settings["stages"] = {name: settings["stages"][name] | {"expected_loss": [0, 1e-9]} for name in kept}
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    code, output = gendistill("plan", recipe, "--json", tmp_path / "plan.json")
    assert code == 0, output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "tiny.yaml"]
    report = json.loads((tmp_path / "plan.json").read_text())
    assert list(report["stages"]) == list(kept)
    for stage in report["stages"].values():
        assert 0 < stage["hours"] < math.inf
        assert stage["probe"]["steps"] == 12  # the whole stage: it has no more
        assert stage["steps"] == 12 and stage["tokens"] == 12 * 2 * 64
        assert list(stage["memory_bytes"]["parts"]) == PARTS
        assert stage["memory_bytes"]["total"] == max(stage["memory_bytes"]["moments"].values())
    assert report["hours"] == pytest.approx(sum(stage["hours"] for stage in report["stages"].values()))
    for needle in ("every stage fits", "rough estimates", "probe of qk_alignment: 12 steps", "training in all", *PARTS):
        assert needle in output


def test_a_probe_that_is_stopped_claims_to_keep_nothing(recipe, gendistill, monkeypatch):
    def stop(run, name):
        raise Stopped("stopped by SIGTERM; probe of qk_alignment is kept as of step 3", 143)

    monkeypatch.setattr("gendistill.run.probe.probe_stage", stop)
    code, output = gendistill("plan", recipe)
    assert code == 143 and "gendistill: stopped by SIGTERM; a probe keeps nothing\n" in output


def test_without_a_probe_there_are_no_hours(recipe, gendistill, tmp_path):
    code, output = gendistill("plan", recipe, "--no-probe", "--json", tmp_path / "plan.json")
    assert code == 0, output
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["hours"] is None and "hours" not in output
    assert list(report["stages"]) == list(RECIPE["stages"])


def test_a_gpu_is_priced_where_there_is_none(gendistill, tmp_path):
    """The shipped recipe with a folder that holds no more than a configuration: neither weights nor data are read."""
    Qwen3Config(**QWEN3_0_6B).save_pretrained(tmp_path)
    code, output = gendistill(
        "plan", ROOT / "recipes/qwen3-0.6b.yaml", f"teacher={tmp_path}", "--no-probe", "--json", tmp_path / "plan.json"
    )
    assert code == 0, output
    report = json.loads((tmp_path / "plan.json").read_text())
    assert (report["device"]["kind"], report["dtype"]) == ("cuda", "bfloat16")
    stage = report["stages"]["logit_distillation"]
    assert stage["parameters"]["student"] == 613_422_800
    assert stage["memory_bytes"]["parts"]["teacher weights"] == 2 * 596_049_920


@pytest.mark.parametrize("verb", [["run"], ["distill", "--stage", "block_alignment"]])
def test_what_cannot_fit_is_refused(recipe, gendistill, tmp_path, verb):
    code, output = gendistill(verb[0], recipe, *TOO_LARGE, *verb[1:], "--output", tmp_path / "run")
    output = " ".join(output.split())
    assert code == 2, output
    assert "Traceback" not in output and output.count("gendistill: ") == 1
    for needle in (
        "stages.block_alignment cannot fit",
        "this machine has",
        "activations",
        "micro_batch: ",
        "adamw_8bit",
    ):
        assert needle in output
    assert not (tmp_path / "run").exists()


def test_stages_that_are_not_to_run_are_not_looked_at(recipe, gendistill, tmp_path):
    code, output = gendistill("distill", recipe, *TOO_LARGE, "--stage", "qk_alignment", "--output", tmp_path / "run")
    assert code == 2 and "which is not there yet: run that first" in output, output
    assert gendistill("convert", recipe, *TOO_LARGE, "--output", tmp_path / "run")[0] == 0


def test_plan_says_what_would_be_refused(recipe, gendistill, tmp_path):
    code, output = gendistill("plan", recipe, *TOO_LARGE, "--no-probe")
    assert code == 0, output
    assert "a run would be refused" in output and "stages.block_alignment cannot fit" in output


def test_a_run_of_many_processes_is_priced_for_each(recipe, gendistill, tmp_path):
    code, output = gendistill("plan", recipe, "--processes", 2, "--no-probe", "--json", tmp_path / "two.json")
    assert code == 0, output
    assert "each of 2 processes" in output and output.count("replicas") == 4
    report = json.loads((tmp_path / "two.json").read_text())
    assert report["processes"] == 2 and {stage["strategy"] for stage in report["stages"].values()} == {"replicas"}
    code, output = gendistill("plan", recipe, "--processes", 2, "--no-probe", "strategy=fsdp")
    assert code == 0 and "gathered layers" in output and output.count("fsdp") == 4
    code, output = gendistill("plan", recipe, "--processes", 3, "--no-probe")
    assert code == 2 and "sequences_per_step 2 cannot be dealt out to 3 processes" in output
    code, output = gendistill("plan", recipe, "--no-probe", "strategy=ddp")
    assert code == 2 and "unknown strategy 'ddp'" in output
