"""Layers chosen by `gendistill place`, in the run itself, or read from another run's result; from the command line."""

import json
import shutil

import pytest
import yaml

from cli_tools import RECIPE, in_process
from gendistill.files import read_hashed_json

RECALL = "length: 160, prompts: 3, window: 24, sinks: 2"
BEAM = f"student.keep_attention={{method: beam, layers: 2, {RECALL}}}"


def check(result, *needles):
    code, output = result
    assert code == 2, output
    assert output.count("gendistill: ") == 1 and "Traceback" not in output, output
    for needle in needles:
        assert needle in " ".join(output.split()), output


def layers_of(folder):
    return json.loads((folder / "placement.json").read_text())["layers"]


def attention_of(folder):
    """The layers of the converted student that keep softmax attention."""
    types = json.loads((folder / "0-conversion/student/config.json").read_text())["layer_types"]
    return [layer for layer, kind in enumerate(types) if kind == "full_attention"]


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """A run folder with the result of a beam search on the embedded teacher, and what the search printed."""
    folder = tmp_path_factory.mktemp("placed")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    code, output = in_process("place", folder / "tiny.yaml", BEAM, "--output", folder / "run")
    assert code == 0, output
    return folder / "run", output


def test_the_result_says_what_was_found_and_how(placed):
    folder, output = placed
    result = json.loads((folder / "placement.json").read_text())
    assert result["teacher"]["layers"] == 8 and len(result["teacher"]["weights_sha256"]) == 64
    assert (result["method"], result["settings"]["window"], result["dtype"]) == ("beam", 24, "float32")
    # None kept, one layer of eight, one more of seven.
    assert [len(one["layers"]) for one in result["sets"]] == [0, *[1] * 8, *[2] * 7]
    pairs = [one for one in result["sets"] if len(one["layers"]) == 2]
    best = min(pairs, key=lambda one: one["score"]["likelihood"])
    assert best["layers"] == result["layers"] and best["score"] == result["scores"]["chosen"]
    assert result["scores"]["teacher"]["kl"] == 0 < result["scores"]["nothing"]["kl"]
    assert 0 < result["cost"]["tokens"] < 17 * 3 * 165  # fewer than a pass for each set
    assert "8 sets scored" in output and ",".join(map(str, result["layers"])) in output
    assert "<svg" in (folder / "placement.svg").read_text()


def test_a_search_that_is_done_is_not_done_again(placed, recipe, gendistill, tmp_path):
    run = shutil.copytree(placed[0], tmp_path / "run")
    before = (run / "placement.json").read_text()
    code, output = gendistill("place", recipe, BEAM, "--output", run)
    assert code == 0 and "sets scored" not in output, output
    assert (run / "placement.json").read_text() == before


def test_a_killed_search_resumes_and_ends_the_same(placed, recipe, gendistill, tmp_path):
    run = shutil.copytree(placed[0], tmp_path / "run")
    whole = json.loads((run / "placement.json").read_text())
    lines = (run / "placement.jsonl").read_text().splitlines(keepends=True)
    (run / "placement.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # the last step was being written
    (run / "placement.json").unlink()
    code, output = gendistill("place", recipe, BEAM, "--output", run)
    assert code == 0 and "7 sets scored" in output and "8 sets scored" not in output, output
    again = json.loads((run / "placement.json").read_text())
    for result in (whole, again):
        del result["cost"]["seconds"], result["sha256"]
    assert again == whole


def test_other_methods_and_their_comparison(placed, recipe, gendistill, tmp_path):
    method = f"student.keep_attention={{method: leave_one_out, layers: 2, others: silenced, {RECALL}}}"
    other = placed[0] / "placement.json"
    code, output = gendistill("place", recipe, method, "--output", tmp_path / "run", "--compare", other)
    assert code == 0, output
    shared = len({*layers_of(tmp_path / "run")} & {*layers_of(placed[0])})
    assert f"{shared}/2" in output and "1 leave_one_out" in output.replace("leave one out", "leave_one_out"), output
    picture = (tmp_path / "run/placement.svg").read_text()
    assert picture.count('id="axes_') == 4  # layers of both, the beam's growth, agreement


def test_a_run_places_its_layers_first(placed, recipe, gendistill, tmp_path):
    run = tmp_path / "run"
    settings = yaml.safe_load(recipe.read_text())
    settings["stages"] = {"only": settings["stages"]["qk_alignment"] | {"tokens": 128}}
    settings["evaluation"]["tasks"] = {"facts": settings["evaluation"]["tasks"]["facts"] | {"items": 2}}
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    code, output = gendistill("run", recipe, BEAM, "--output", run)
    assert code == 0, output
    assert attention_of(run) == layers_of(run) == layers_of(placed[0])
    assert "2 layers keep softmax attention, 6 hold Kimi Delta Attention" in (run / "summary.md").read_text()
    assert "](placement.svg)" in (run / "summary.md").read_text() and (run / "placement.svg").is_file()


def test_a_place_by_count_alone_is_a_method_too(recipe, gendistill, tmp_path):
    code, output = gendistill(
        "convert", recipe, "student.keep_attention={method: last, layers: 2}", "--output", tmp_path / "run"
    )
    assert code == 0, output
    assert attention_of(tmp_path / "run") == layers_of(tmp_path / "run") == [6, 7]


def test_a_run_takes_layers_from_a_file_beside_its_recipe(placed, recipe, gendistill, tmp_path, monkeypatch):
    file = recipe.parent / "found.json"
    shutil.copy(placed[0] / "placement.json", file)
    settings = yaml.safe_load(recipe.read_text())
    settings["student"]["keep_attention"] = {"from": "found.json"}
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    monkeypatch.chdir(placed[0])  # anywhere else
    run = tmp_path / "run"
    assert gendistill("convert", recipe, "--output", run)[0] == 0
    assert attention_of(run) == layers_of(placed[0])
    # The run keeps its own copy, and says so if the file is another one by now.
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"layers": [0, 1]}))
    check(gendistill("convert", recipe, "--output", run), "as that wrote it", "changed since written")
    del result["sha256"]  # as the message says: it was changed on purpose
    file.write_text(json.dumps(result | {"layers": [0, 1]}))
    check(gendistill("convert", recipe, "--output", run), "says [0, 1] now", "begun with")
    file.unlink()
    assert gendistill("convert", recipe, "--output", run)[0] == 0


def test_a_placement_of_another_teacher_is_refused(placed, recipe, gendistill, tmp_path):
    result = read_hashed_json(placed[0] / "placement.json")
    keep = "student.keep_attention={from: other.json}"
    (tmp_path / "other.json").write_text(json.dumps(result | {"teacher": result["teacher"] | {"weights_sha256": "0"}}))
    run = tmp_path / "run"
    check(gendistill("convert", recipe, keep, "--output", run), "of another teacher (embedded)", "gendistill place")
    assert not (run / "placement.json").exists() and not (run / "0-conversion").exists()
    (tmp_path / "other.json").write_text(json.dumps(result | {"teacher": result["teacher"] | {"layers": 28}}))
    check(
        gendistill("run", recipe, keep, "--output", tmp_path / "new"), "of another teacher", "28 layers; this one has 8"
    )
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """The folder of a student without attention; not aligned in truth, which nothing here depends on."""
    folder = tmp_path_factory.mktemp("aligned")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    code, output = in_process("convert", folder / "tiny.yaml", "student.keep_attention=[]", "--output", folder / "run")
    assert code == 0, output
    return folder / "run/0-conversion/student"


@pytest.mark.parametrize(
    "method",
    [
        "method: gates, steps: 2, prompts_per_step: 1",
        "method: kl",
        "method: kl, stage: logit_distillation, tokens: 128",
        "method: beam, others: mixer, score: kl",
    ],
)
def test_methods_that_measure_an_aligned_student(aligned, recipe, gendistill, tmp_path, method):
    keep = f"student.keep_attention={{{method}, layers: 2, student: {aligned}, length: 160, prompts: 2}}"
    code, output = gendistill("place", recipe, keep, "--output", tmp_path / "run")
    assert code == 0, output
    result = json.loads((tmp_path / "run/placement.json").read_text())
    values = result["by_layer"]["values"]
    # Of gates the largest are kept, of divergences the least; a beam's best pair need not be the two best alone.
    expected = sorted(range(8), key=lambda layer: -values[layer] if "gates" in method else values[layer])
    assert "beam" in method or result["layers"] == sorted(expected[:2])
    assert len(set(values)) == 8
    # The students trained, of layers that were restored one by one, are told apart by what they learnt from.
    assert ("layer 7 restored and trained" in output) == ("stage" in method)
    pieces = len((tmp_path / "run/placement.jsonl").read_text().splitlines())
    (tmp_path / "run/placement.json").unlink()
    code, output = gendistill("place", recipe, keep, "--output", tmp_path / "run")
    assert code == 0 and "placement:" not in output, output
    again = json.loads((tmp_path / "run/placement.json").read_text())
    assert again == result and len((tmp_path / "run/placement.jsonl").read_text().splitlines()) == pieces


def test_plan_prices_what_is_not_placed_yet(recipe, gendistill, tmp_path):
    reports = []
    for keep in ("[1, 3, 5]", "{method: beam, layers: 3, length: 160}", "{method: last, layers: 3}"):
        file = tmp_path / "plan.json"
        code, output = gendistill("plan", recipe, f"student.keep_attention={keep}", "--no-probe", "--json", file)
        assert code == 0, output
        reports.append(json.loads(file.read_text()))
    assert reports[0] == reports[1] == reports[2]


@pytest.mark.parametrize(
    ("keep", "needles"),
    [
        ("{method: beam, layers: 9}", ["keep_attention.layers is 9; the teacher has 8"]),
        ("{method: uniform, layers: 9}", ["keep_attention.layers is 9; the teacher has 8"]),
        ("{method: beam, layers: 2, window: 0, length: 160}", ["keep_attention.window", "greater than 0"]),
        ("{method: beam, layers: 2, window: 1025, length: 160}", ["keep_attention.window is 1025", "end at 1024"]),
        ("{method: beam, layers: 2, window: 3, length: 160}", ["sinks are 4", "at most the window's 3"]),
        ("{method: beam, layers: 2}", ["keep_attention.length is 4096", "positions end at 1024"]),
        ("{method: beam, layers: 3, candidates: 2}", ["candidates are 2, fewer than the 3 layers"]),
        ("{method: beem, layers: 2}", ["unknown method 'beem'", "did you mean 'beam'"]),
        ("{method: beam, layers: 2, widht: 2}", ["keep_attention.widht: unknown setting", "'width'"]),
        ("{method: kl, layers: 2}", ["others: mixer needs `student`"]),
        ("{method: kl, layers: 2, student: a, stage: block_alignment, tokens: 9}", ["must minimise forward_kl"]),
        ("{method: kl, layers: 2, student: a, stage: nonsense, tokens: 9}", ["stage is 'nonsense'", "qk_alignment"]),
        ("{method: kl, layers: 2, student: a, stage: block_alignment}", ["stage and tokens go together"]),
        ("{layers: 2}", ["give a list of layers, {from: FILE}, or {method: NAME"]),
        ("{from: nowhere.json}", ["nowhere.json: no such file", "gendistill place"]),
        ("[2, 5]", ["lists the layers", "{method: beam, layers: 7}"]),
    ],
)
def test_mistakes(recipe, gendistill, tmp_path, keep, needles):
    check(gendistill("place", recipe, f"student.keep_attention={keep}", "--output", tmp_path / "run"), *needles)
    assert not (tmp_path / "run/placement.json").exists()
