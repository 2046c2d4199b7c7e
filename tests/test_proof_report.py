"""The proof's report, from records and metrics to tables and figures; nothing is asked here."""

import gzip
import json

import pytest
from proof_report import FOUR, SETS, SEVEN, draw, markdown, pair, proof_figures, ranked_sets, read_runs, tabulate

RECALL = "recall_easy_8192"


def asked(name: str, said: str, ranked: str, recalled: str) -> list[dict]:
    """Records of a student: on each ranked set what it said and ranked right ("1"), and what it recalled."""
    header = {"configuration": name, "teacher": "t", "machine": {"gpu": None}, "questions": {}, "seed": 0}
    header |= {"layers": [1, 2], "mixer": "kda", "window": 8, "placement": {"cost": None}, "seconds": {}}
    lines = [header | {"cache_bytes": {"32768": 100, "131072": 400}}]
    for task in SETS:
        for index, (by_reply, by_rank) in enumerate(zip(said, ranked, strict=True)):
            letters = {"letter": "A" if by_reply == "1" else None, "ranked_letter": "B"}
            lines.append(record(task, index, by_reply) | {"ranked": by_rank == "1"} | letters)
    return lines + [record(RECALL, index, right) for index, right in enumerate(recalled)]


def record(task: str, index: int, right: str) -> dict:
    outcome = {"strict": right == "1", "flexible": right == "1", "parsed": True, "tokens": 3}
    return {"task": task, "index": index} | outcome


@pytest.fixture
def models():
    return {
        "teacher": asked("teacher", "1110", "1110", "11111"),
        "WT4": asked("WT4", "1100", "1110", "11110"),
        "K4-mixers-far_distillation": asked("K4-mixers-far_distillation", "1000", "1100", "11000"),
        FOUR: asked(FOUR, "1111", "1000", "11111"),
    }


def test_retention_of_the_ranked_sets_by_both_protocols(models):
    found = ranked_sets(models["teacher"], models["WT4"])
    assert found["items"] == 4 * len(SETS)
    assert found["generation"]["value"] == pytest.approx(2 / 3) and found["ranking"]["value"] == pytest.approx(1)
    assert found["gap"]["value"] == pytest.approx(100 / 3)
    assert found["letters"] == {"A": 2 * len(SETS)}
    assert ranked_sets(models["teacher"], [models["WT4"][0], *models["WT4"][-5:]]) is None


def test_pairs_are_compared_on_items_that_both_were_asked(models):
    found = pair(models["K4-mixers-far_distillation"], models[FOUR][:-1])[RECALL]
    assert (found["items"], found["right"], found["lead_pp"]) == (4, [2, 4], 50)
    assert found["p"] == 0.5  # of two items that differ, both for the same


def test_orders_that_differ_are_named(models):
    (flip,) = (each for each in tabulate(models)["rank_flips"] if set(each["models"]) == {"WT4", FOUR})
    assert flip["models"] == ("WT4", FOUR)  # ranking prefers the first, generation the other


def test_report(models, tmp_path):
    runs = tmp_path / "runs"
    (runs / SEVEN).mkdir(parents=True)
    (runs / "seconds.json").write_text(json.dumps({SEVEN: {"all": 1800}}))
    losses = {"held_out_loss": None, "distant_loss": {"as_is": 0.2, "without_window": 0.4}}
    before = {"held_out_loss_before": 0.5, "distant_loss_before": {"as_is": 0.6, "without_window": 2.5}}
    ends = [{"tokens": 10} | losses | before, {"tokens": 3_000_000} | losses | before]
    steps = [step | {"seconds": 45.0} for step in ends]
    for stage, lines in (("1-far", steps), ("2-ends", ends)):  # of some runs only the ends were kept
        write(runs / SEVEN / f"{stage}-metrics.jsonl.gz", "".join(json.dumps(line) + "\n" for line in lines))
    write(runs / SEVEN / "1-far-reply_kl.json.gz", json.dumps({"reply_kl": {"mean": 0.25}}))
    table = tabulate(models) | {"runs": read_runs(runs)}
    (tmp_path / "table.json").write_text(json.dumps(table))
    figures = {name: figure["value"] for name, figure in proof_figures(tmp_path).items()}
    assert figures == {
        "proof_k4_retention_mc": 1.3333,
        "proof_k4_protocol_gap_mc_pp": 100.0,  # ranking keeps a third
        "proof_k4_retention_recall_8k": 1.0,
        "proof_k4_minus_wt4_recall_8k_pp": -40.0,  # at equal tokens
        "proof_tokens_millions": 6.0,
        "proof_gpu_hours": 0.5,
    }
    told = markdown(table)
    assert f"| {SEVEN} | 1-far | 3,000,000 | 1.5 | - | 0.600 -> 0.200 | 2.500 -> 0.400 | 0.250 |" in told
    assert f"| {SEVEN} | 2-ends | 3,000,000 | - | - | 0.600 -> 0.200 | 2.500 -> 0.400 | - |" in told
    assert "## K4-mixers-far_distillation beside WT4, on the same items" in told and f"WT4 and {FOUR}" in told
    draw(tmp_path, table)
    assert (tmp_path / "frontier.png").stat().st_size and (tmp_path / "frontier.svg").stat().st_size


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()))
