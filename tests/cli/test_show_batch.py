"""gendistill show-batch: the next batch of a stage, from the recipe alone."""

import json
import re

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from gendistill.cli import show_batch
from gendistill.data.dataset import PackedDataset
from gendistill.errors import UserError
from gendistill.models.loading import load_config, load_tokenizer
from gendistill.report.batch_view import visible

STAGE = "instruction_distillation"


@pytest.fixture
def call(recipe, tmp_path, monkeypatch):
    """Runs the verb in this process, where loading a model would be an error; returns its output."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gendistill.run.run.load_model", refuse)
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(show_batch.command)

    def run(*arguments):
        arguments = [str(recipe), *map(str, arguments), "--output", str(tmp_path / "run")]
        return CliRunner().invoke(app, arguments, catch_exceptions=False).output

    return run


def replies(tmp_path, step):
    """What the data set's mask says is learnt in a step, run by run, as it would be shown."""
    (stats,) = (tmp_path / "run" / "data").glob("*/stats.json")
    rows = PackedDataset(stats.parent)[2 * step : 2 * step + 2]
    tokenizer = load_tokenizer("embedded", load_config("embedded").vocab_size)
    for ids, mask in zip(rows["input_ids"], rows["loss_mask"], strict=True):
        borders = np.flatnonzero(np.diff(np.pad(mask.astype(int), 1)))
        for start, stop in borders.reshape(-1, 2):
            yield visible(tokenizer.decode(ids[start:stop]))


def learnt(output):
    legend, *runs = re.findall("⟦(.*?)⟧", output.replace("\n", ""))
    assert legend == "loss tokens"
    return runs


def test_shows_what_the_next_step_learns(call, tmp_path):
    output = call("--stage", STAGE, "--full")
    assert f"{STAGE}: the batch after 0 of 12 steps" in output and "consistent: each of" in output
    assert learnt(output) == list(replies(tmp_path, 0)) != []
    checkpoints = tmp_path / "run" / f"4-{STAGE}" / "checkpoints"
    for step in (4, 8):
        (checkpoints / f"step-{step:08d}").mkdir(parents=True)
    output = call("--stage", STAGE, "--full")
    assert "the batch after 8 of 12 steps" in output
    assert learnt(output) == list(replies(tmp_path, 8)) != list(replies(tmp_path, 0))
    assert "the batch after 11 of 12 steps" in call("--stage", STAGE, "--step", 11)
    (checkpoints / "step-00000012").mkdir()
    with pytest.raises(UserError, match="all 12 steps are done"):
        call("--stage", STAGE)


def test_alignment_writes_a_page(call, tmp_path):
    page = tmp_path / "batch.html"
    output = call("--stage", "block_alignment", "--page", page, "--rows", 1)
    assert "compared tokens 128 (100.0%)" in output and "1 more sequence" in output and str(page) in output
    assert "tiny, block_alignment: the batch after 0 of 12 steps" in page.read_text()
    assert page.read_text().count('class="learnt" title=') == 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--stage", "sft"],
            "--stage sft: the recipe's stages are qk_alignment, block_alignment, logit_distillation, ",
        ),
        (["--stage", STAGE, "--step", 12], "--step 12: stage instruction_distillation has 12 steps, 0 to 11"),
        (["--stage", STAGE, "--step", -1], "--step -1: stage instruction_distillation has 12 steps, 0 to 11"),
        (
            ["--stage", STAGE, "--page", "/nowhere/batch.html"],
            "--page /nowhere/batch.html: there is no folder /nowhere",
        ),
    ],
)
def test_mistakes_are_named(call, arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        call(*arguments)


@pytest.mark.parametrize(
    ("fields", "record", "asked", "reply"),
    [
        (
            {"prompt": "instruction", "input": "input", "completion": "output"},
            {"instruction": "Add.", "input": "2 and 3", "output": "It is five"},
            ("Add.", "2 and 3"),
            "It is five",
        ),
        (
            {"messages": "conversations"},
            {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat"}]},
            ("What is it?",),
            "A cat",
        ),
        (
            {"prompt": "p", "completion": "c"},
            {
                "p": [
                    {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "am I?"}]}
                ],
                "c": [{"role": "assistant", "content": "You"}],
            },
            ("Who am I?",),
            "You",
        ),
    ],
)
def test_shows_what_each_form_of_data_becomes(call, recipe, tmp_path, fields, record, asked, reply):
    (tmp_path / "a.json").write_text(json.dumps([record] * 20))
    settings = yaml.safe_load(recipe.read_text())
    mixture = settings["stages"][STAGE]["data"]
    settings["data"][mixture] = [{"path": str(tmp_path / "a.json"), "epochs": 10_000, **fields}]
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    output = call("--stage", STAGE, "--full")
    shown = output.replace("\n", "")
    assert all(visible(text) in shown for text in asked)
    assert learnt(output) and all(run.startswith(visible(reply)) for run in learnt(output))


def test_distant_answers(recipe, call, tmp_path):
    """Made, checked, packed and shown: of their documents the replies alone are learnt."""
    settings = yaml.safe_load(recipe.read_text())
    settings["data"]["far"] = [
        {"path": "embedded:text", "made": "distant", "distances": [128, 480], "weight": 3},
        {"path": "embedded:chat", "messages": "messages"},
    ]
    settings["stages"][STAGE] |= dict(data="far", sequence_length=512, tokens=512 * 2 * 4)
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    output = call("--stage", STAGE, "--full", "--step", 1)
    assert "conversations made, answers" in output and re.search(r"loss tokens \d+ \(\d\.\d%\)", output)
    assert learnt(output) == list(replies(tmp_path, 1))
    (records,) = (tmp_path / "run" / "distant").glob("*/records.jsonl")
    made = [json.loads(line)["messages"][1]["content"] for line in records.read_text().splitlines()]
    assert {visible(answer + "<|im_end|>") for answer in made} & set(learnt(output))
    (data,) = (tmp_path / "run" / "data").glob("*/stats.json")
    shares = [source["share"] for source in json.loads(data.read_text())["stats"]["sources"]]
    assert shares == pytest.approx([0.75, 0.25], abs=0.06)
    assert "conversations made" not in call("--stage", STAGE)  # they are there
