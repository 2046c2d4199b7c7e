"""Every figure in the ledger follows from the raw output committed beside it."""

import json

from figures import (
    ablation_figures,
    cold_start_figures,
    demo_figures,
    embedded_window_figures,
    graded_replies_figures,
    hostile_figures,
    kda_cpu_figures,
    on_policy_cost_figures,
    placement_cost_figures,
    plan_accuracy_figures,
    prepare_figures,
    prepare_memory_figures,
    report_page_figures,
    student_parameters,
    suite_figures,
    training_speed_figures,
    trials_figures,
    window_figures,
)
from ledger import LEDGER, ROOT
from proof_report import proof_figures
from scaling import without
from speed_figures import (
    bench_figures,
    evaluation_speed_figures,
    gsm8k_speed_figures,
    scaling_figures,
    serve_leak_figures,
    serve_throughput_figures,
    synthesize_figures,
    vllm_serve_figures,
)
from test_suite import LEFT_OUT, seconds_by_file, share_of_cli

SUITE = ROOT / "results/cpu/test_suite.json"
ABLATION = ROOT / "results/cpu/ablation.json"
ON_POLICY = ROOT / "results/gpu/on_policy_cost.json"
SERVE = ROOT / "results/gpu/serve_throughput.json"
VLLM = ROOT / "results/gpu/vllm_serve.json"
WINDOW = ROOT / "results/window/table.json"


def test_ledger_follows_from_its_sources():
    ledger = json.loads(LEDGER.read_text())
    expected = demo_figures(ROOT / "results/demo") | kda_cpu_figures(ROOT / "results/cpu")
    expected |= prepare_figures(ROOT / "results/cpu") | prepare_memory_figures(ROOT / "results/cpu")
    expected |= embedded_window_figures(ROOT / "results/window")
    expected |= bench_figures(ROOT / "results/gpu/bench")
    expected |= graded_replies_figures(ROOT / "tests") | hostile_figures(ROOT / "results/cpu")
    expected |= trials_figures(ROOT / "results/cpu") | report_page_figures(ROOT / "results/cpu")
    if ABLATION.exists():  # not before it is measured
        expected |= ablation_figures(ABLATION.parent)
    expected |= trials_figures(ROOT / "results/cpu") | serve_leak_figures(ROOT / "results/cpu")
    if SUITE.exists():  # not yet where the suite is timed for the first time, which has to pass
        expected |= suite_figures(SUITE.parent)
    if WINDOW.exists():  # not before the table is measured
        expected |= window_figures(WINDOW.parent)
    expected |= proof_figures(ROOT / "results/proof")
    expected |= placement_cost_figures(WINDOW.parent / "placements")
    if SERVE.exists():  # measured on a GPU
        expected |= serve_throughput_figures(SERVE.parent)
    if VLLM.exists():
        expected |= vllm_serve_figures(VLLM.parent)
    if ON_POLICY.exists():
        expected |= on_policy_cost_figures(ON_POLICY.parent)
    for path in (ROOT / "results/gpu").glob("scaling_*.json"):
        expected |= scaling_figures(path)
    for on_gpu in (
        cold_start_figures,
        training_speed_figures,
        plan_accuracy_figures,
        synthesize_figures,
        evaluation_speed_figures,
        gsm8k_speed_figures,
    ):
        expected |= on_gpu(ROOT / "results/gpu")
    for key in ("value", "spread"):
        assert {name: ledger[name].get(key) for name in expected} == {name: f.get(key) for name, f in expected.items()}
    assert set(ledger) == set(expected)
    for entry in ledger.values():
        assert (ROOT / entry["source"]).is_file()
        assert {"unit", "command", "hardware", "versions", "measured"} <= set(entry)


def test_parameters_are_counted():
    assert (
        json.loads(LEDGER.read_text())["qwen3_0_6b_student_parameters"]["value"] == student_parameters()["parameters"]
    )


def test_the_command_line_is_no_more_than_a_quarter_of_the_suite():
    if SUITE.exists():
        raw = json.loads(SUITE.read_text())
        assert share_of_cli(raw["seconds_by_file"]) <= 0.25


def test_the_suite_that_is_timed_is_the_one_of_make_test():
    assert f'-m "{LEFT_OUT}" -n 2 --dist loadfile' in (ROOT / "Makefile").read_text()


def test_seconds_of_a_suite_are_read_off_its_durations():
    output = """
3.21s call     tests/cli/test_run.py::test_run_writes_everything
0.79s setup    tests/cli/test_run.py::test_run_writes_everything
12.00s call     tests/models/test_conversion.py::test_round_trip[qwen3-1.5s call]
"""
    files = seconds_by_file(output)
    assert files == {"tests/models/test_conversion.py": 12.0, "tests/cli/test_run.py": 4.0}
    assert share_of_cli(files) == 0.25


def test_a_part_of_scaling_that_is_measured_again_leaves_no_side_of_an_older_run():
    each = {"kd": {"loss": [1.0]}, "evaluation": {"seconds": [9.0]}}
    results = {"machine": {"gpu": "x"}, "1": each, "2": each}
    others = {"kd": each["kd"]}
    assert without(results, ["evaluation", "synthesis"]) == {"machine": {"gpu": "x"}, "1": others, "2": others}
    assert without({}, ["kd"]) == {}


def test_scaling_compares_with_one_gpu_of_the_same_run(tmp_path):
    """FSDP too with one that has the models whole: with what a user would leave for it."""

    def stage(speed):
        return {"tokens_per_second": [speed, speed, 9 * speed], "mfu": [0.4], "seconds": 60.0}

    one = {"kd": stage(100), "exchange": stage(99), "fsdp": stage(86), "kd_1p5b": stage(50), "fsdp_1p5b": stage(40)}
    two = {"kd": stage(195), "fsdp_1p5b": stage(85), "fsdp_8b": stage(10)}
    asked = {"evaluation": {"seconds": [90.0, 20.0]}}, {"evaluation": {"seconds": [80.0, 10.5]}}
    raw = {"machine": {}, "1": one | asked[0], "2": two | asked[1]}
    (tmp_path / "scaling.json").write_text(json.dumps(raw))
    assert {name: figure["value"] for name, figure in scaling_figures(tmp_path / "scaling.json").items()} == {
        "replica_path_speed_share": 0.99,
        "fsdp_compiled_speed_share_one_gpu": 0.86,
        "gpu2_kd_speedup": 1.95,
        "gpu2_fsdp_speedup_1p5b": 1.7,
        "gpu2_evaluation_speedup": 1.9,
        "gpu2_fsdp_mfu_8b": 0.4,
    }
    raw["1"]["kd_16"] = stage(90)  # in micro-batches of fsdp's size
    (tmp_path / "scaling.json").write_text(json.dumps(raw))
    share = scaling_figures(tmp_path / "scaling.json")["fsdp_compiled_speed_share_one_gpu"]
    assert share["value"] == round(86 / 90, 3)


def test_vllm_is_compared_at_32k_under_the_most_that_each_holds(tmp_path):
    def rows(equal, largest):
        speeds = {(32768, "equal"): equal, (32768, "largest"): largest, (65536, "largest"): 1}
        return [{"context": at, "load": load, "output_throughput": x} for (at, load), x in speeds.items()]

    pairs = {
        name: {"measured": {"teacher": rows(9, 100), "student": rows(9, x)}} for name, x in (("a", 300), ("b", 250))
    }
    pairs["of one side yet"] = {"measured": {"teacher": rows(9, 100)}}
    (tmp_path / "vllm_serve.json").write_text(json.dumps({"pairs": pairs}))
    figure = vllm_serve_figures(tmp_path)["vllm_throughput_ratio_32k"]
    assert (figure["value"], figure["spread"]) == (2.5, [2.5, 3.0])
