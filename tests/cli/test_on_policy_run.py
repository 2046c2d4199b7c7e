"""A whole run whose last stage learns from the student's own replies, through the command line."""

import json
from copy import deepcopy

import pytest
import yaml

from cli_tools import RECIPE, STAGE, in_process
from gendistill.errors import UserError
from gendistill.models.loading import load_config
from gendistill.recipe.loading import load_recipe
from gendistill.run import checks

LAST = STAGE | dict(
    objective="reverse_kl",
    loss_on="completion",
    train=["mixer", "mlp", "norm"],
    data=dict(on_policy="instructions", new_tokens=[4, 12], reply_kl_bound=1000),
    sequence_length=128,
    tokens=128 * 2 * 3,
    learning_rate=1e-4,
    checkpoint_every=2,
)
SHORT = RECIPE | dict(
    stages=dict(
        instruction_distillation=RECIPE["stages"]["instruction_distillation"] | dict(sequence_length=128, tokens=512),
        on_policy=LAST,
    ),
    evaluation=dict(tasks=dict(facts=RECIPE["evaluation"]["tasks"]["facts"] | dict(items=4))),
)


def written(folder, **changes):
    recipe = deepcopy(SHORT)
    recipe["stages"]["on_policy"] = LAST | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    """The run's folder, and what came of three attempts there, of which the last has settings that can be."""
    folder = tmp_path_factory.mktemp("on-policy")
    in_process("convert", written(folder), "--output", folder / "run")
    outcomes = []
    for verb, change in (("distill", dict(new_tokens=[4, 120])), ("distill", dict(reply_kl_bound=0.001)), ("run", {})):
        recipe = written(folder, data=LAST["data"] | change)
        outcomes.append(in_process(verb, recipe, "--output", folder / "run"))
    return folder / "run", outcomes


@pytest.fixture
def run(attempts):
    folder, (*_, (code, output)) = attempts
    assert code == 0, output
    return folder, output


def test_prompts_too_long_for_their_replies_are_refused(attempts):
    code, output = attempts[1][0]
    assert code == 2
    assert "prompts leave no room for new_tokens 120 in sequence_length 128" in output


def test_a_stage_too_far_from_its_teacher_does_not_start(attempts):
    """The bound may be changed afterwards; the stages before it stay."""
    code, output = attempts[1][1]
    assert code == 2
    assert "stages.on_policy: the reply-KL on held-out prompts is" in output
    assert "reply_kl_bound is 0.001" in output


def test_the_run_says_where_replies_lead(run, attempts):
    folder, output = run
    said = "".join(text for _, text in attempts[1])
    for label in ("0-conversion", "1-instruction_distillation", "2-on_policy"):
        found = json.loads((folder / label / "reply_kl.json").read_text())["reply_kl"]
        assert f"{label[2:]}: reply-KL {found['mean']:.4f} nats a token, over {len(found['sums'])} replies" in said
    assert "on_policy: step 2: reply-KL" in output  # at the checkpoint
    assert "at the limit" in output
    summary = (folder / "summary.md").read_text()
    assert "## Reply-KL" in summary
    assert f"| 2-on_policy | {found['mean']:.4f} |" in summary
    assert "2-on_policy" in (folder / "reply_kl.svg").read_text()
    replies = [json.loads(line) for line in (folder / "2-on_policy" / "replies.jsonl").read_text().splitlines()]
    assert [line["step"] for line in replies] == [0, 1, 2]


def test_what_was_measured_is_not_measured_again(run):
    folder, _ = run
    code, output = in_process("run", folder.parent / "recipe.yaml", "--output", folder)
    assert code == 0, output
    assert "reply-KL" not in output


def test_a_batch_is_shown_as_the_data_have_it(run):
    folder, _ = run
    code, output = in_process(
        "show-batch", folder.parent / "recipe.yaml", "--stage", "on_policy", "--step", "1", "--output", folder
    )
    assert code == 0, output
    assert "The student writes the replies of sequences 2, of at most 8 tokens; shown are the data's." in output


WRONG = {
    "objective=cross_entropy": "the objective is one of forward_kl, reverse_kl, jensen_shannon, not cross_entropy",
    "loss_on=all": "on_policy needs loss_on: completion",
    "data={on_policy: instructions, new_tokens: [4, 128]}": "new_tokens 128 leaves no room for a prompt in",
    "data={on_policy: instructions, new_tokens: [9, 4]}": "may not fall, not [9, 4]",
    "data={on_policy: elsewhere, new_tokens: [4, 9]}": "asks for data 'elsewhere'; the data section has: text",
    "data={on_policy: text, new_tokens: [4, 9]}": "loss_on completion needs conversations",
    "data={on_policy: instructions, share: 0}": "greater than 0",
    "data={on_policy: instructions, tokens: 4}": "data.tokens: unknown setting; did you mean 'new_tokens'?",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_cannot_be_is_said(tmp_path, override):
    """Before anything is computed."""
    code, output = in_process("plan", written(tmp_path), f"stages.on_policy.{override}")
    assert (code, WRONG[override] in " ".join(output.split())) == (2, True), output


def test_a_student_that_cannot_be_decoded_is_refused(tmp_path, monkeypatch):
    """Under dynamic RoPE a token's position depends on the whole text's length."""
    config = load_config("embedded")
    config.rope_parameters = dict(config.rope_parameters, rope_type="dynamic", factor=2.0)
    monkeypatch.setattr(checks, "load_config", lambda name: config)
    recipe = load_recipe(written(tmp_path))
    with pytest.raises(UserError, match="stages.on_policy: with RoPE of type dynamic"):
        checks.check_shapes(recipe)
    recipe.stages.pop("on_policy")
    checks.check_shapes(recipe)
