"""The launch settings in the package can be read by fla, and the rule that chose them does what it says."""

import json
import math
from pathlib import Path

import choose_settings as tune
import pytest

from gendistill.ops import kernels

SHIPPED = sorted(Path(kernels.__file__).with_name("launch_settings").glob("*.json"))
INF = math.inf


def config(stages, block=32):
    return json.dumps({"kwargs": {"BV": block}, "num_ctas": 1, "num_stages": stages, "num_warps": 4}, sort_keys=True)


def timings(times, dtype="bfloat16", number=64, case="", candidates=None, kernel="kernel"):
    """One case's timings: milliseconds by configuration."""
    key, name = [number, True, f"torch.{dtype}", "torch.int64"], f"{dtype} {number} {case}"
    return [tune.Timing(kernel, key, name, candidates or len(times), text, ms, "3.6.0") for text, ms in times.items()]


A, B, C, D = config(1), config(2), config(3), config(4)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_file_is_complete(path):
    content = json.loads(path.read_text())
    assert content["kernel_name"] == path.stem
    entries = content.get("autotune_entries", {})
    configs = [entry["config"] for entry in entries.values()]
    if "default_config" in content:
        configs.append(content["default_config"])
    assert configs
    for settings in configs:
        assert isinstance(settings["kwargs"], dict)
        assert all(settings[name] >= 1 for name in ("num_warps", "num_stages", "num_ctas"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_file_has_one_entry_a_signature(path):
    entries = json.loads(path.read_text()).get("autotune_entries", {})
    assert all(name == tune.key_hash(entry["autotune_key"]) for name, entry in entries.items())
    assert len({tune.signature(entry["autotune_key"]) for entry in entries.values()}) == len(entries)


def test_least_loss_in_the_worst_case_wins():
    sizes = timings({A: 1.0, B: 1.5, C: 4.0}) + timings({A: 40.0, B: 15.0, C: 10.0}, number=128)
    choice = tune.choose(sizes)
    assert (choice.config, choice.worst) == (B, 1.5)


def test_equal_worst_cases_are_told_apart_by_the_mean():
    sizes = timings({A: 2.0, B: 2.0, C: 1.0}) + timings({A: 1.5, B: 1.0, C: 4.0}, number=128)
    assert tune.choose(sizes).config == B


def test_what_does_not_run_somewhere_is_never_chosen():
    sizes = timings({A: 1.0, B: 9.0}) + timings({A: INF, B: 9.0}, number=128)
    assert tune.choose(sizes).config == B
    nowhere_both = timings({A: 1.0, B: INF}) + timings({A: INF, B: 1.0}, number=128)
    assert tune.choose(nowhere_both) is None
    assert tune.choose(timings({A: INF, B: INF})) is None


def test_candidate_that_pruning_removed_somewhere_is_not_chosen():
    assert tune.choose(timings({A: 1.0, B: 2.0}) + timings({B: 2.0}, number=128)).config == B


def test_case_cut_off_half_way_counts_only_if_there_is_no_other():
    half = timings({C: 1.0}, number=128, candidates=3)
    assert tune.choose(timings({A: 1.0, B: 2.0, C: 3.0}) + half).config == A
    assert tune.choose(half).config == C


def test_default_runs_in_every_case_and_is_the_best_of_those_in_bfloat16():
    both = timings({A: 1.0, B: 2.0, C: 3.0}) + timings({A: INF, B: 9.0, C: 1.0}, "float32")
    content, choices = tune.settings_file("kernel", both)
    assert content["default_config"] == json.loads(B)
    assert [choice.config for _, choice in choices] == [A, C]


def test_file_has_one_entry_a_signature_under_the_name_fla_looks_up():
    sizes = timings({A: 1.0}) + timings({A: 1.0}, number=128) + timings({B: 1.0}, "float32")
    content, _ = tune.settings_file("kernel", sizes)
    assert content["kernel_name"] == "kernel" and content["triton_version"] == "3.6.0"
    assert content["autotune_entries"] == {
        "a127ce5887a0b813569f9899804c2205": {
            "autotune_key": [64, True, "torch.bfloat16", "torch.int64"],
            "config": json.loads(A),
        },
        tune.key_hash([64, True, "torch.float32", "torch.int64"]): {
            "autotune_key": [64, True, "torch.float32", "torch.int64"],
            "config": json.loads(B),
        },
    }
    assert "default_config" not in content  # neither runs in both


def test_signature_ignores_numbers_but_not_flags():
    assert tune.signature([64, True, None, "a"]) == tune.signature([128, True, None, "a"])
    assert tune.signature([64, True]) != tune.signature([64, False])
    assert tune.signature([64, True]) != tune.signature([64, 1])


def test_shortlist_is_the_best_and_the_smallest():
    times = {config(4): 1.0, config(3): 2.0, config(2, 64): 3.0, config(1, 64): 4.0, config(1): 9.0, config(5): 1.5}
    bfloat16 = timings(times)
    slower_in_float32 = timings({config(4): 9.0, config(1, 64): 1.0}, "float32")
    kept = tune.shortlist(bfloat16 + slower_in_float32, keep=2)
    assert kept == {"kernel": {config(4), config(5), config(1)}}


def test_timings_survive_a_torn_line_and_infinity(tmp_path):
    path = tmp_path / "timings.jsonl"
    known = timings({A: 1.25, B: INF})
    path.write_text("".join(tune.to_line(timing) + "\n" for timing in known) + '{"kernel": "ker')
    assert "Infinity" not in path.read_text()
    assert tune.read_timings(path) == known
    assert tune.read_timings(tmp_path / "none.jsonl") == []


def test_files_are_written_for_kernels_with_a_choice(tmp_path, capsys):
    known = timings({A: 1.0, B: 2.0}) + timings({A: INF}, kernel="broken")
    tune.write_settings(known, tmp_path / "settings")
    assert [path.name for path in (tmp_path / "settings").iterdir()] == ["kernel.json"]
    assert json.loads((tmp_path / "settings/kernel.json").read_text())["default_config"] == json.loads(A)
    assert "1.00x" in capsys.readouterr().out
