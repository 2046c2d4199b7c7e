"""The model card of a student of the proof, from records and a recipe; no weights are there."""

import gzip
import json
import shutil
from pathlib import Path

from proof_card import card_of, parameters

from gendistill.bench.models import SHAPES
from gendistill.models.families import student_config

RUNS = Path(__file__).parents[1] / "results/proof/runs"


def write(folder, name, answers, ranked):
    """Records of a model: by task, which answers are right ("1"), and on ARC which are ranked right."""
    lines = [{"questions": {}, "layers": [], "mixer": None, "window": None, "cache_bytes": {}}]
    for task, rights in answers.items():
        for index, right in enumerate(rights):
            line = {"task": task, "index": index, "strict": right == "1", "flexible": right == "1", "parsed": True}
            line |= {"ranked": ranked[index] == "1"} if task == "arc_easy" else {}
            lines.append(line | {"tokens": 3, "truncated": False})
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


def test_card_has_results_stages_and_what_was_asked_otherwise(tmp_path):
    records, run = tmp_path / "records", tmp_path / "runs/K7-token"
    run.mkdir(parents=True)
    shutil.copy(RUNS / "K7-token/recipe.yaml", run)
    write(records, "teacher", {"gsm8k": "1" * 20, "arc_easy": "1110", "humaneval": "00"}, "1110")
    write(records, "K7-token", {"gsm8k": "1" * 10 + "0" * 10, "arc_easy": "1100", "humaneval": "10"}, "1110")
    write(records, "K7-token-window-1024", {"gsm8k": "1" * 19 + "0"}, "")
    card = card_of("K7-token", tmp_path)
    assert "7 of them keep the teacher's softmax attention (layers 6, 14, 16, 19, 21, 22, 23, from 0)" in card
    assert "| arc_easy | 75.0 | 75.0 | 100.0 | 75.0 | 50.0 | 66.7 | 66.7 | +33.3 | 0.0 |" in card
    (tested,) = (line for line in card.splitlines() if line.startswith("| arc_easy | 4 |"))
    assert tested.split(" | ")[4] == "50.0"  # of 50 points above a guess among four, 25 are left
    assert "| settling | forward_kl | mixer_conv, mixer_gate | settled | 4,000,000 |" in card
    assert "| gsm8k | 50.0 [30, 70] | 95.0 [85, 100] |" in card
    assert "| humaneval | - | - |" in card  # of a teacher that has none right nothing can be retained
    assert "- as above: gsm8k\n- a window of 1,024: nowhere\n" in card


def test_parameters_are_those_of_the_student_with_its_head_tied():
    config = student_config(SHAPES["tiny"], [1, 3], mixer="window", window=16, sinks=4)
    weights = 8 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256)  # q and o, k and v, the MLP
    norms = 8 * (2 * 128 + 2 * 32) + 128
    assert parameters(config) == 1024 * 128 + weights + norms
