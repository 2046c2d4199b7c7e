"""A model without a recipe: `init` prints one, `run` prices it, asks, and runs it."""

import copy
import io
import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from cli_tools import in_process
from gendistill import cli
from gendistill.compute import Compute, compute_to_price
from gendistill.recipe.data import Source
from gendistill.recipe.loading import load_recipe, parse_recipe
from gendistill.run.draft import EPOCHS, SHAPES, STAGES, USED, Draft
from gendistill.run.duration import placement_tokens
from gendistill.run.probe import Probe


@pytest.fixture
def folder(model, tokenizer, tmp_path, monkeypatch):
    """The current folder, with the tiny model in it."""
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # no terminal
    return tmp_path


def test_init_prints_a_recipe_that_loads_and_plans(folder):
    done = CliRunner().invoke(cli.app, ["init", "tiny", "--hours", "0.01"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"# gendistill init {folder}/tiny --hours 0.01\n") and done.stdout.count("\n") <= 40
    assert done.stderr == "tiny: measures on cpu what a run takes\n"
    (folder / "recipes").mkdir()
    (folder / "recipes/made.yaml").write_text(done.stdout)
    recipe = load_recipe(folder / "recipes/made.yaml")
    assert (recipe.student.mixer, recipe.student.window, recipe.stages) == ("window", 512, {})
    code, output = in_process("plan", folder / "recipes/made.yaml")
    assert code == 0 and "no stages: nothing is trained" in output, output


def test_run_of_a_model_keeps_its_recipe_and_resumes(folder):
    call = ("run", "embedded", "--hours", "0.001", "--output", "out/tiny")  # too short to measure layers
    code, output = in_process(*call)
    assert (code, output.count("\n")) == (2, 1) and "stdin is no terminal): give --yes" in output
    assert not (folder / "out").exists()
    code, output = in_process(*call, "--yes")
    assert code == 0, output
    assert re.search(r"^the whole run: about [\d.]+ minutes \(loading .*conversion .*evaluation", output, re.M)
    assert "nothing is trained: give --text PATH and --chats PATH" in output
    assert "talk to it: gendistill chat out/tiny/0-conversion/student --teacher embedded" in output
    # The same call resumes with the recipe that is there, and so does the recipe itself.
    written = (folder / "out/tiny.yaml").read_text()
    scores = (folder / "out/tiny/scores.json").read_text()
    for again in (call, ("run", "out/tiny.yaml", "--output", "out/tiny")):
        code, output = in_process(*again)
        assert code == 0 and "measures" not in output and "summary:" in output, output
    assert (folder / "out/tiny.yaml").read_text() == written and (folder / "out/tiny/scores.json").read_text() == scores
    code, output = in_process(*call[:2], "--hours", "0.02", "--output", "out/tiny")
    assert (code, output.count("\n")) == (2, 1) and "was made by another call (gendistill init" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "nowhere"), "nowhere: no such recipe"),
        (("run", "nowhere/model", "--yes"), "'nowhere/model' cannot be loaded"),
        (("run", "tiny", "seed=1", "--yes"), "settings are changed in a recipe"),
        (("run", "tiny", "--yes", "--text", "none.txt"), "none.txt: no such file"),
        (("run", "tiny", "--yes", "--text", "short.txt"), "/short.txt: holds 6 tokens, and a step takes 2,048"),
        (("run", "tiny", "--yes", "--chats", "odd.jsonl"), "--chats odd.jsonl: its first record has the fields say"),
        (("run", "short.yaml", "--hours", "1"), "--text, --chats, --hours and --yes go with a model"),
        (("init",), "give a MODEL"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, arguments, says):
    # What loading from the hub raises where there is none.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (folder / "short.txt").write_text("short\n")
    (folder / "odd.jsonl").write_text('{"say": "hi"}\n')
    (folder / "short.yaml").write_text("name: x\n")
    code, output = in_process(*arguments)
    assert code == 2 and says in output and "Traceback" not in output, output
    assert output.count("\n") == 1, output
    assert not (folder / "runs").exists()


PROBE = Probe(steps=3, sequences_per_step=2, step_seconds=2.0, start_up_seconds=0.0, peak_bytes=None)  # 1,024 tokens/s


def draft(hours, holds=10**9, layers=8):
    blank = {"teacher": "embedded", "device": "cpu", "student": {"keep_attention": [0]}, "stages": {}, "name": "x"}
    tasks = {"facts": {"kind": "short_answer", "path": "embedded:facts"}}
    blank |= {"data": {"text": [{"path": "embedded:text"}]}, "evaluation": {"tasks": tasks}}
    sources = {
        "text": Source(path="embedded:text", epochs=EPOCHS),
        "chats": Source(path="embedded:chat", messages="messages", epochs=EPOCHS),
    }
    return Draft(
        name="x",
        teacher="embedded",
        first_line='# it\'s: a "name"',
        compute=compute_to_price(parse_recipe(blank, "blank")),
        positions=1024,
        layers=layers,
        seconds=hours * 3600,
        sources=sources,
        holds=dict.fromkeys(sources, holds),
    )


@pytest.mark.parametrize("hours", [0.5, 2, 20])
def test_budgets_fill_the_time_that_other_parts_leave(hours):
    made = draft(hours)
    made.choose_counts(1e-4)
    made.choose_budgets(1e-4, dict.fromkeys(STAGES, PROBE))
    recipe = made.recipe()
    assert list(recipe.stages) == list(STAGES) and recipe.evaluation.stages == ["conversion", "far_distillation"]
    assert all(stage.tokens == stage.whole_tokens for stage in recipe.stages.values())
    assert made.text().count("\n") <= 40
    parts = made.parts(1e-4, dict.fromkeys(STAGES, PROBE))
    # Within the time, less a step of each stage and what measuring the loss on records held out takes.
    assert 0.85 * hours * 3600 < sum(parts.values()) < 1.15 * hours * 3600


def test_budgets_end_with_the_data():
    made = draft(20, holds=100_000)
    made.choose_budgets(1e-4, dict.fromkeys(STAGES, PROBE))
    tokens = {name: stage.tokens for name, stage in made.recipe().stages.items()}
    held = int(100_000 * EPOCHS * USED)
    # Two thirds of the second stage are text.
    assert tokens == {"qk_alignment": held // 2048 * 2048, "far_distillation": held // round(2048 * 2 / 3) * 2048}


@pytest.mark.parametrize(
    ("given", "alignment", "far"),
    [
        (["text", "chats"], "text", [("distant", 2.0), (None, 1.0)]),
        (["text"], "text", [("distant", 2.0)]),
        (["chats"], "chats", [(None, 1.0)]),
    ],
)
def test_the_recurrence_alone_learns_from_what_there_is(given, alignment, far):
    made = draft(2)
    made.sources = {name: made.sources[name] for name in given}
    recipe = made.recipe()
    assert {tuple(stage.train) for stage in recipe.stages.values()} == {("mixer_conv", "mixer_gate")}
    assert recipe.stages["qk_alignment"].data == alignment and recipe.stages["far_distillation"].data == "far"
    assert [(source.made, source.weight) for source in recipe.data["far"]] == far
    for source in recipe.data["far"]:
        # Beyond the window, and within a row.
        assert source.made is None or source.distances == (512, 922)


def test_rows_are_as_long_as_memory_allows(model, tmp_path, monkeypatch):
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = 32_768
    config.save_pretrained(tmp_path / "long")
    found = []
    for gib in (40, 0.7, 0.62):
        made = draft(2)
        made.teacher, made.positions = str(tmp_path / "long"), 32_768
        made.layers, made.placement = config.num_hidden_layers, None
        made.compute = replace(made.compute, device="cuda", dtype=torch.bfloat16)
        made.shape = SHAPES["cuda"]
        monkeypatch.setattr(Compute, "memory", lambda _, gib=gib: ("a GPU", gib * 2**30))
        made.fit_memory()
        stages = made.recipe().stages
        found.append([(stage.sequence_length, stage.micro_batch) for stage in stages.values()])
    assert found == [[(4096, 4), (16_384, 1)], [(4096, 1), (8192, 1)], [(4096, 1), (4096, 1)]]


def test_layers_are_measured_as_well_as_the_time_allows():
    found = []
    for hours in (100, 0.5, 0.001):
        made = draft(hours)
        made.positions = 32_768
        made.choose_counts(1e-3)
        found.append(made.recipe().student.keep_attention)
    assert (found[0].prompts, found[0].length) == (12, 4096)
    assert found[1].prompts < 12 and placement_tokens(found[1], 8) * 1e-3 <= 0.3 * 0.5 * 3600
    assert found[2].method == "uniform" and placement_tokens(found[2], 8) == 0


def test_the_price_of_a_placement_is_what_it_costs(folder):
    """Counted as the search itself counts the tokens that went through a layer."""
    recipe = {"name": "placed", "teacher": "embedded", "device": "cpu", "stages": {}}
    keep = {"method": "beam", "layers": 2, "prompts": 2, "length": 128, "window": 32}
    recipe |= {"student": {"mixer": "window", "window": 32, "keep_attention": keep}}
    recipe |= {"data": {"text": [{"path": "embedded:text"}]}}
    recipe |= {"evaluation": {"tasks": {"facts": {"kind": "short_answer", "path": "embedded:facts"}}}}
    (folder / "placed.yaml").write_text(yaml.safe_dump(recipe))
    code, output = in_process("place", "placed.yaml", "--output", "placed")
    assert code == 0, output
    cost = json.loads((folder / "placed/placement.json").read_text())["cost"]
    priced = placement_tokens(load_recipe(folder / "placed.yaml").student.keep_attention, 8)
    assert cost["tokens"] <= priced <= 1.3 * cost["tokens"]
